"""Pictures of requests: caps before decoding, no files and no addresses but those of an allow-list."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import os
import socket
import struct
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from vlrm.serving import fetch
from vlrm.serving.batching import Full
from vlrm.serving.fetch import Sources, is_public
from vlrm.serving.images import to_data_url
from vlrm.serving.intake import Intake, from_base64
from vlrm.serving.limits import Limits
from vlrm.types import InputError


def encoded(format="PNG", size=(20, 10), **options):
    buffer = io.BytesIO()
    Image.effect_noise(size, 80).convert("RGB").save(buffer, format=format, **options)
    return buffer.getvalue()


def b64(data):
    return base64.b64encode(data).decode()


def open_all(texts, limits=None, sources=None):
    async def run():
        async with Intake(limits or Limits(), sources).pictures(texts) as pictures:
            return pictures

    return asyncio.run(run())


def refused(text, limits=None, sources=None):
    with pytest.raises(InputError) as caught:
        open_all([text], limits, sources)
    assert str(caught.value).startswith("images[0]: ") and "\n" not in str(caught.value)
    return str(caught.value)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width, height):
    """A PNG of a few bytes that says it is large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def webp_bomb():
    canvas = b"\0\0\0\0" + (16383).to_bytes(3, "little") * 2
    body = (
        b"WEBPVP8X" + struct.pack("<I", 10) + canvas + b"VP8L" + struct.pack("<I", 5) + b"\x2f" + (0x0FFFFFFF).to_bytes(4, "little") + b"\0"
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body


def test_every_form_of_a_picture():
    data = encoded()
    wrapped = "\n".join(b64(data)[i : i + 76] for i in range(0, len(b64(data)), 76))
    jpeg = encoded("JPEG")
    texts = [b64(data), wrapped, f"data:image/png;base64,{b64(data)}", f"DATA:image/x-anything;BASE64,{b64(data)}", b64(jpeg)]
    pictures = open_all([*texts, to_data_url(data), b64(encoded("WEBP")), b64(encoded("GIF")), b64(encoded("BMP"))])
    assert all(picture.mode == "RGB" and picture.size == (20, 10) for picture in pictures)
    assert pictures[0].tobytes() == pictures[1].tobytes() == pictures[2].tobytes() == pictures[3].tobytes() == pictures[5].tobytes()


@pytest.mark.parametrize("format", ["TIFF", "ICO", "PPM", "TGA", "PCX"])
def test_other_formats_are_refused(format):
    assert "not an image" in refused(b64(encoded(format)))


def test_bombs_are_refused_before_they_are_decoded(monkeypatch):
    large = bytearray(encoded("BMP"))
    large[18:26] = struct.pack("<ii", 50_000, 40_000)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for data in (bomb(100_000, 100_000), bomb(20_000, 1000), bomb(2**31 - 1, 2**31 - 1), bytes(large)):
        message = refused(b64(data))
        assert "pixels" in message or "truncated or damaged" in message, message
    assert "pixels" in refused(b64(webp_bomb())) or "not an image" in refused(b64(webp_bomb()))


def test_damaged_files_are_refused():
    for data in (
        encoded()[:60],
        encoded("JPEG")[:100],
        bomb(100, 100),
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM" + b"\0" * 60,
        os.urandom(500),
    ):
        message = refused(b64(data))
        assert "damaged" in message or "not an image" in message


def test_what_is_not_base64():
    for text in ("", "   ", "not base64!", "AAA", "=", "a" * 13, "é" * 8, "\0", "data:image/png;base64,", "data:image/png;base64,%41"):
        assert "base64" in refused(text)
    for text in ("data:text/html;base64,AAAA", "data:image/png,AAAA", "data:;base64,AAAA", "data:"):
        assert "data URL must begin with data:image/png;base64," in refused(text)
    for text in ("ftp://a/b", "javascript:alert(1)", "gopher://x", "c:\\windows\\a.png", "jar:file:///a"):
        assert "no kind of picture that this server reads" in refused(text)


def test_large_files_are_refused():
    limits = Limits(image_bytes=1000)
    assert "more than the limit of 1,000" in refused("A" * 5000, limits)
    assert "more than the limit of 1,000" in refused(b64(os.urandom(1020)), limits)
    assert from_base64(b64(b"x" * 1000), 1000) == b"x" * 1000


def test_pixels_of_a_request_and_of_all_together():
    limits = Limits(image_pixels=300, waiting_pixels=500)
    with pytest.raises(InputError, match="600 pixels in one request"):
        open_all([b64(encoded())] * 3, limits)

    async def two():
        intake = Intake(limits)
        async with intake.pictures([b64(encoded())] * 2):
            assert intake.pixels == 400
            with pytest.raises(Full):
                async with intake.pictures([b64(encoded())]):
                    pass
        assert intake.pixels == 0

    asyncio.run(two())


def test_requests_that_are_open_at_one_time_share_equal_pictures():
    async def run():
        intake, same, other = Intake(Limits()), encoded(), encoded(size=(8, 8))
        async with intake.pictures([b64(same), b64(other)]) as first, intake.pictures([to_data_url(same), b64(other)]) as second:
            seen = [id(picture) for picture in (*first, *second)]
        del first, second
        gc.collect()
        assert seen[1] == seen[3] and len(set(seen[:2])) == 2, "equal files are one object"
        assert len(intake.open) < 2, "what nobody holds is not kept (a thread may still have the last one in hand)"

    asyncio.run(run())


# Files and addresses


def test_files_and_addresses_are_refused_where_none_are_allowed(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    assert "reads no files" in refused(f"file://{tmp_path}/a.png")
    assert "fetches no web addresses" in refused("https://example.com/a.png") and "fetches no web" in refused("HTTP://127.0.0.1/")


def test_files_below_the_root_only(tmp_path):
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a b.png").write_bytes(encoded())
    (tmp_path / "secret.png").write_bytes(encoded())
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "a.png").write_bytes(encoded())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(root / "pipe.png")
    sources = Sources(root=root)
    assert open_all([f"file://{root}/sub/a%20b.png", f"file://localhost{root}/sub/../sub/a%20b.png"], sources=sources)[0].size == (20, 10)
    paths = [
        "/../secret.png",
        "/%2e%2e/secret.png",
        "2/a.png",
        "/link.png",
        "/none.png",
        "/sub",
        "/pipe.png",
        "/a%00.png",
        "/sub/a%20b.png?x",
        "",
    ]
    others = ["file:///etc/passwd", "file://host/etc/passwd", "file:etc", "file://[::1", "file:///proc/self/mem"]
    for url in [f"file://{root}{path}" for path in paths] + others:
        assert "names no picture below the folder" in refused(url, sources=sources), url
    (root / "text.png").write_text("secret words")
    assert "secret" not in refused(f"file://{root}/text.png", sources=sources)
    for wrong in ("/", tmp_path / "none"):
        with pytest.raises(InputError, match="no folder of pictures"):
            Sources(root=wrong)


@pytest.mark.parametrize("address", [
    "127.0.0.1", "10.1.2.3", "192.168.1.1", "172.16.0.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1", "255.255.255.255",
    "240.0.0.1", "198.18.0.1", "::1", "::", "fe80::1", "fc00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "fe80::1%eth0", "2001:db8::1",
])  # fmt: skip
def test_private_addresses(address):
    assert not is_public(address)


def test_public_addresses():
    assert is_public("1.1.1.1") and is_public("2606:4700:4700::1111") and is_public("::ffff:1.1.1.1")


class Web:
    """A little web server on the loopback; names are resolved to it, and it counts who comes."""

    def __init__(self, monkeypatch, addresses=("127.0.0.1",)):
        web = self
        self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                web.asked.append((self.path, self.headers["host"]))
                data, status = encoded(), 302 if "turn" in self.path else 404 if "none" in self.path else 200
                data = b"x" * 5000 if "long" in self.path else data
                self.send_response(status)
                self.send_header("location", "http://169.254.169.254/secret")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words): ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

        async def resolved(loop, host, port, **options):
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

        monkeypatch.setattr(asyncio.BaseEventLoop, "getaddrinfo", resolved)


def test_allowed_hosts_are_asked_at_the_address_that_was_checked(monkeypatch):
    web = Web(monkeypatch)
    sources = Sources([f"Pictures.example:{web.port}"])
    url = f"http://pictures.example:{web.port}"
    assert "has an address that is not public" in refused(f"{url}/a.png", sources=sources) and not web.asked
    monkeypatch.setattr(fetch, "is_public", lambda address: address == "127.0.0.1")
    assert open_all([f"{url}/a.png?x=1"], sources=sources)[0].size == (20, 10)
    assert web.asked == [("/a.png?x=1", f"pictures.example:{web.port}")]
    assert "answers 302; redirects are not followed" in refused(f"{url}/turn", sources=sources)
    assert "answers 404" in refused(f"{url}/none", sources=sources)
    assert "more than the limit of 1,000" in refused(f"{url}/long", Limits(image_bytes=1000), sources)


def test_other_hosts_ports_and_tricks_are_not_asked(monkeypatch):
    web = Web(monkeypatch)
    monkeypatch.setattr(fetch, "is_public", lambda address: True)
    sources = Sources([f"pictures.example:{web.port}", "plain.example"])
    tricks = [
        "http://127.0.0.1:{p}/", "http://pictures.example:1/", "http://pictures.example/", "http://evil.example:{p}/",
        "http://plain.example:{p}/", "http://pictures.example:{p}@evil.example:{p}/", "http://user@pictures.example:{p}/",
        "http://pictures.example.evil.example:{p}/", "http://[::1]:{p}/", "http://2130706433:{p}/", "http://0x7f.1:{p}/",
        "http:///a", "http://", "http:pictures.example", "https://\u2025/", "http://pictures.example:99999/",
        "http://a\\@pictures.example:{p}/",
    ]  # fmt: skip
    for trick in tricks:
        refused(trick.format(p=web.port), sources=sources)
    assert not web.asked


def test_a_name_with_one_private_address_among_public_ones(monkeypatch):
    web = Web(monkeypatch, addresses=("1.1.1.1", "127.0.0.1"))
    assert "not public" in refused("http://mixed.example/", sources=Sources(["mixed.example"])) and not web.asked


@pytest.mark.parametrize("host", ["", "a/b", "http://a", "*", "a b"])
def test_allowed_hosts_are_names(host):
    with pytest.raises(InputError, match="written host or host:port"):
        Sources([host])


@pytest.mark.parametrize("wrong", [{"images": -1}, {"batch": 0}, {"seconds": 0}, {"waiting": 3}, {"waiting_pixels": 5}])
def test_limits_are_checked(wrong):
    with pytest.raises(InputError):
        Limits(**wrong)
