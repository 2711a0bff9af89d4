"""Pictures from every source, and one clear error for each kind of bad one."""

from __future__ import annotations

import base64
import io
import struct
import zlib

import pytest
from PIL import Image

from vlrm.serving.images import check_image, open_image, open_images, to_data_url
from vlrm.types import InputError


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def picture():
    return Image.effect_noise((40, 30), 90).convert("RGB")


def test_path_image_and_bytes_give_the_same_pixels(tmp_path, picture):
    (tmp_path / "a.png").write_bytes(png(picture))
    for source in (str(tmp_path / "a.png"), tmp_path / "a.png", png(picture), bytearray(png(picture)), picture):
        opened = open_image(source)
        assert opened.mode == "RGB" and opened.size == (40, 30) and opened.tobytes() == picture.tobytes()


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "RGBA", "LA", "I", "F"])
def test_every_mode_becomes_rgb(mode):
    assert open_image(Image.new(mode, (3, 2))).mode == "RGB"


def test_transparent_parts_become_white():
    assert open_image(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(Image.new("RGBA", (1, 1), (255, 0, 0, 255))).getpixel((0, 0)) == (255, 0, 0)


def test_missing_folder_and_wrong_type(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        open_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="is a folder"):
        open_image(tmp_path)
    with pytest.raises(InputError, match="got int"):
        open_image(3)
    with pytest.raises(InputError, match="not an image"):
        open_image(b"hello, this is text")
    with pytest.raises(InputError, match="not an image"):
        open_image(b"")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
def test_truncated_files(picture, format):
    buffer = io.BytesIO()
    picture.save(buffer, format=format)
    whole = buffer.getvalue()
    open_image(whole)
    for length in (len(whole) // 2, len(whole) - len(whole) // 4):
        with pytest.raises(InputError):
            open_image(whole[:length])


def test_headers_are_checked_without_decoding(picture, tmp_path, monkeypatch):
    whole = png(picture)
    (tmp_path / "a.png").write_bytes(whole)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for source in (whole, whole[: len(whole) // 2], tmp_path / "a.png", picture):
        check_image(source)
    for source, message in ((b"text", "not an image"), (tmp_path / "none.png", "does not exist"), (None, "got NoneType")):
        with pytest.raises(InputError, match=message):
            check_image(source)


def test_damaged_data(picture):
    whole = bytearray(png(picture))
    whole[60:80] = bytes(20)
    with pytest.raises(InputError, match="truncated or damaged"):
        open_image(whole)


def bomb(width: int, height: int) -> bytes:
    """A small PNG file whose header promises width x height pixels and whose data would decode to that."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(1 + width // 8)) for _ in range(height)) + rows.flush()
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [20_000, 9_000])
def test_bombs_are_refused_before_decoding(tmp_path, monkeypatch, size):
    data = bomb(size, size)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    (tmp_path / "bomb.png").write_bytes(data)
    for source in (data, tmp_path / "bomb.png"):
        for look in (open_image, check_image):
            with pytest.raises(InputError, match="50,000,000"):
                look(source)


def test_the_limit_is_an_argument(picture):
    with pytest.raises(InputError, match="40x30"):
        open_image(picture, max_pixels=1199)
    assert open_image(picture, max_pixels=1200).size == (40, 30)


def test_shared_pictures_are_decoded_once(tmp_path, picture):
    (tmp_path / "a.png").write_bytes(png(picture))
    groups = open_images([[tmp_path / "a.png"], [str(tmp_path / "a.png"), picture], []])
    assert groups[0][0] is groups[1][0] and len(groups[1]) == 2 and groups[2] == []


def test_data_url_is_lossless(picture):
    url = to_data_url(picture)
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    assert open_image(base64.b64decode(data)).tobytes() == picture.tobytes()
