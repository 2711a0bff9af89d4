"""Pictures in: a path, a PIL image or bytes become an RGB PIL image, or one clear InputError.

The size is read from the file's header and refused there when it is too large, so a decompression bomb is never decoded.
"""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 50_000_000


def open_image(source: Any, max_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None) -> Image:
    """An RGB PIL image from a path, a PIL image or the bytes of an image file (the first frame of several).

    Transparent parts become white. `formats` are Pillow's names of the formats that are read; None is all. Raises InputError for a missing,
    truncated or unreadable file, for a picture of more than `max_pixels` pixels (before it is decoded), and for any other type.
    """
    from PIL import Image, ImageOps

    with _clear_errors(source, max_pixels):
        picture = _open_header(source, max_pixels, formats)
        picture.load()
        picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture if picture.mode == "RGB" else picture.convert("RGB")


def check_image(source: Any, max_pixels: int = MAX_PIXELS, formats: Sequence[str] | None = None) -> int:
    """The number of pixels. Raises InputError for what `open_image` refuses, as far as a file's header tells. Quick: nothing is decoded."""
    with _clear_errors(source, max_pixels):
        picture = _open_header(source, max_pixels, formats)
        pixels = picture.width * picture.height
        if picture is not source:
            picture.close()
        return pixels


def _open_header(source: Any, max_pixels: int, formats: Sequence[str] | None = None) -> Image:
    from PIL import Image

    if isinstance(source, Image.Image):
        picture = source
    elif isinstance(source, (bytes, bytearray, memoryview)):
        picture = Image.open(io.BytesIO(source), formats=formats)
    elif isinstance(source, (str, os.PathLike)):
        path = Path(source)
        if not path.is_file():
            raise InputError(f"{_name(source)} {'is a folder' if path.is_dir() else 'does not exist'}; give the path of an image file")
        picture = Image.open(path, formats=formats)
    else:
        raise InputError(f"an image must be a path, a PIL image or bytes, got {type(source).__name__}")
    if picture.width * picture.height > max_pixels:
        size = f"{picture.width}x{picture.height}"
        raise InputError(f"{_name(source)} has {size} pixels, more than the limit of {max_pixels:,}; make it smaller first")
    return picture


@contextmanager
def _clear_errors(source: Any, max_pixels: int) -> Iterator[None]:
    """Everything that Pillow raises on bad data as one line that names the picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            yield
    except Image.DecompressionBombError as error:
        raise InputError(f"{_name(source)} has more pixels than the limit of {max_pixels:,}; make it smaller first") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{_name(source)} is not an image that Pillow can read; convert it to PNG or JPEG") from error
    except InputError:
        raise
    except Exception as error:  # Pillow's decoders raise of every kind, struct.error and MemoryError among them
        raise InputError(f"{_name(source)} is truncated or damaged ({error}); replace the file") from error


def _name(source: Any) -> str:
    if isinstance(source, (str, os.PathLike)):
        return f"image {os.fspath(source)!r}"
    return f"the image given as {len(source)} bytes" if isinstance(source, (bytes, bytearray, memoryview)) else "the PIL image"


def image_key(source: Any) -> Any:
    """Equal for two sources that are surely the same picture; good for the time of one call."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    return bytes(source) if isinstance(source, (bytes, bytearray, memoryview)) else id(source)


def open_images(groups: Iterable[Sequence[Any]], max_pixels: int = MAX_PIXELS) -> list[list[Image]]:
    """The opened pictures of several prompts; a picture that several prompts share is decoded once."""
    opened: dict[Any, Image] = {}
    result = []
    for group in groups:
        for source in group:
            if (key := image_key(source)) not in opened:
                opened[key] = open_image(source, max_pixels)
        result.append([opened[image_key(source)] for source in group])
    return result


def to_data_url(image: Any) -> str:
    """The picture as a `data:image/png;base64,...` URL, for OpenAI-compatible servers. Lossless."""
    buffer = io.BytesIO()
    open_image(image).save(buffer, format="PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
