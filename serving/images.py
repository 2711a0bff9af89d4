"""Pictures in: a path, a PIL image or bytes become an RGB PIL image, or one clear InputError.

The size is read from the file's header and refused there when it is too large, so a decompression bomb is never decoded.
"""

from __future__ import annotations

import base64
import io
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 50_000_000


def open_image(source: Any, max_pixels: int = MAX_PIXELS) -> Image:
    """An RGB PIL image from a path, a PIL image or the bytes of an image file (the first frame of several).

    Transparent parts become white. Raises InputError for a missing, truncated or unreadable file, for a picture of more
    than `max_pixels` pixels (before it is decoded), and for any other type.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, Image.Image):
        what, opened = f"the {source.width}x{source.height} PIL image", source
    elif isinstance(source, (bytes, bytearray, memoryview)):
        what, opened = f"the image given as {len(source)} bytes", io.BytesIO(source)
    elif isinstance(source, (str, os.PathLike)):
        what, opened = f"image {os.fspath(source)!r}", Path(source)
        if not opened.is_file():
            missing = "is a folder" if opened.is_dir() else "does not exist"
            raise InputError(f"{what} {missing}; give the path of an image file")
    else:
        raise InputError(f"an image must be a path, a PIL image or bytes, got {type(source).__name__}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower limit follows
            picture = opened if isinstance(opened, Image.Image) else Image.open(opened)
        if picture.width * picture.height > max_pixels:
            raise InputError(
                f"{what} has {picture.width}x{picture.height} pixels, more than the limit of {max_pixels:,}; make it smaller first"
            )
        return _to_rgb(picture)
    except Image.DecompressionBombError as error:
        raise InputError(f"{what} has more than the limit of {max_pixels:,} pixels; make it smaller first") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{what} is not an image that Pillow can read; convert it to PNG or JPEG") from error
    except InputError:
        raise
    except (OSError, ValueError, SyntaxError, EOFError, ArithmeticError, LookupError, TypeError) as error:
        # Pillow's decoders raise all of these on damaged data.
        raise InputError(f"{what} is truncated or damaged ({error}); replace the file") from error


def _to_rgb(picture: Image) -> Image:
    from PIL import Image, ImageOps

    picture.load()
    picture = ImageOps.exif_transpose(picture)
    if picture.mode == "RGB":
        return picture
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, picture).convert("RGB")
    return picture.convert("RGB")


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
