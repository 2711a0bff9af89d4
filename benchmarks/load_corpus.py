"""Malformed requests by the thousand, from a seed: what `load_malformed.py` sends to the reward server."""

from __future__ import annotations

import base64
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

TOKEN = "the-token-of-the-benchmark"
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "ICO", "PPM")
Asked = tuple[str, str, dict[str, str], bytes]  # method, path, headers, body

NO_PICTURES = (
    b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", b"%PDF-1.7", b"%!PS-Adobe",
    b"GIF89a" + b"\xff" * 30, b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 20, b"BM" + b"\xff" * 60,
)  # fmt: skip
NO_BASE64 = ("", " ", "%%%", "AAA", "\u202e", "data:", "data:image/png,abc", "data:text/html;base64,AAAA", "data:image/png;base64,")
FILES = ("/etc/passwd", "/proc/self/environ", "/dev/zero", "C:\\a.png", "../../../../etc/passwd", "~/.ssh/id_rsa")
FILE_SCHEMES = ("file://", "file:", "FILE://localhost", "", "file:///../..", "file://%2e%2e", "\\\\?\\")
HOSTS = (
    "127.0.0.1:{p}", "localhost:{p}", "[::1]:{p}", "2130706433:{p}", "169.254.169.254", "0x7f.1:{p}", "a@127.0.0.1:{p}",
    "[::ffff:127.0.0.1]:{p}", "metadata.google.internal", "127.0.0.1.nip.io:{p}",
)  # fmt: skip
SCHEMES = ("http", "https", "HTTP", "ftp", "gopher", "dict", "jar:http")
VALUES: tuple[Callable[[random.Random], Any], ...] = (
    lambda rng: None, lambda rng: rng.random() < 0.5, lambda rng: rng.randrange(-(10**30), 10**30), lambda rng: "", lambda rng: "\0",
    lambda rng: "\ud800", lambda rng: 1e308, lambda rng: " ", lambda rng: "x" * 10_001, lambda rng: "\u2028",
)  # fmt: skip
NO_JSON = (
    b"null", b"[]", b"NaN", b"-", b"1" * 5000, b'"' + b"a" * 500_000, b"[" + b"0," * 400_000 + b"0]", b" " * 1_048_577, b"[" * 50_000,
    b'{"a":' * 20_000,
)  # fmt: skip
METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "PROPFIND")
PATHS = (
    "/", "/../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/score/../../x", "/static/a.png", "/v1/%00", "/v1/scorer;a", "/" + "a" * 5000,
)  # fmt: skip
TOKENS = ("", "Bearer", "Bearer x", TOKEN, f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer " + "x" * 9000)
HEADERS = ("x-request-id", "x-timeout", "content-type", "content-encoding")
HEADER_VALUES = ("", "a b", "../..", "-1", "nan", "1e9", "text/plain", "gzip", "x" * 300, "0")
HEAD = b"POST /v1/score HTTP/1.1\r\nHost: x\r\n"
RAW = (
    b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"POST /v1/score HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    HEAD + b"Content-Length: -1\r\n\r\n", HEAD + b"Content-Length: 1e9\r\n\r\n", HEAD + b"A: " + b"b" * 100_000 + b"\r\n\r\n",
    HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\nzz\r\n", b"\0" * 1000, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
)  # fmt: skip


def picture(rng: random.Random, format: str) -> bytes:
    buffer = io.BytesIO()
    colour = tuple(rng.randrange(256) for _ in range(3))
    Image.new("RGB", (rng.randrange(1, 40), rng.randrange(1, 40)), colour).save(buffer, format=format)
    return buffer.getvalue()


def flipped(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randrange(1, 12)):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def bomb(rng: random.Random) -> bytes:
    """A small PNG that says, and unpacks to, far more."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    width, height = rng.choice([(50_000, 50_000), (2**31 - 1, 1), (1001, 1000), (30_000, 2), (2**31 - 1, 2**31 - 1)])
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b"\0" * 3_000_000)) if rng.random() < 0.3 else b""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, rng.choice([0, 2, 3, 6]), 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", zlib.compress(b"\0" * 1_000_000)) + chunk(b"IEND", b"")


def bad_image(rng: random.Random, file: str, port: int) -> str:
    """What stands where a picture belongs; `file` and `port` are those that nobody may touch."""
    kind = rng.randrange(9)
    data = picture(rng, rng.choice(FORMATS))
    if kind == 0:
        data = data[: rng.randrange(len(data))]
    elif kind == 1:
        data = flipped(rng, data)
    elif kind == 2:
        data = bomb(rng)
    elif kind == 3:
        data = rng.choice([*NO_PICTURES, rng.randbytes(rng.randrange(1, 300))])
    if kind < 5:
        return rng.choice(["", "data:image/png;base64,"]) + base64.b64encode(data).decode()
    if kind == 5:
        return rng.choice(NO_BASE64)
    if kind == 6:
        return rng.choice(FILE_SCHEMES) + rng.choice([file, file, *FILES])
    if kind == 7:
        return f"{rng.choice(SCHEMES)}://{rng.choice(HOSTS).format(p=port)}" + "/a.png?q=\r\nX: y"[: rng.randrange(20)]
    return "A" * rng.choice([699_100, 800_000])


def bad_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(12) if depth < 4 else 11
    if kind == 0:
        return [bad_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return {"a": bad_value(rng, depth + 1)} if kind == 1 else rng.choice(VALUES)(rng)


def bad_body(rng: random.Random, file: str, port: int) -> bytes:
    good: dict[str, Any] = {"question": "How many?", "solutions": ["Step 1: look.\nAnswer: 1"], "images": []}
    kind = rng.randrange(10)
    if kind < 4:
        good["images"] = [bad_image(rng, file, port) for _ in range(rng.choice([1, 1, 1, 2]))]
    elif kind < 6:
        good[rng.choice([*good, "answer", "id", "meta", "unknown", "__proto__", "timeout"])] = bad_value(rng)
    elif kind == 6:
        good[rng.choice(["solutions", "images"])] = [""] * rng.choice([17, 400, 20_000])
    elif kind == 7:
        del good[rng.choice(["question", "solutions"])]
    text = json.dumps(good).encode()
    if kind == 8:
        text = rng.choice([text[: rng.randrange(len(text))], flipped(rng, text), rng.randbytes(40), text + text])
    return rng.choice(NO_JSON) if kind == 9 else text


def malformed(rng: random.Random, file: str, port: int) -> Asked:
    """One request; a few of them are well formed by chance."""
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    method, path = "POST", rng.choice(["/v1/score", "/v1/score", "/v1/critique", "/v1/search"])
    kind = rng.randrange(20)
    if kind == 0:
        method, path = rng.choice(["GET", "POST", "PUT"]), rng.choice(PATHS)
    elif kind == 1:
        method = rng.choice(METHODS)
    elif kind == 2:
        headers["authorization"] = rng.choice(TOKENS)
    elif kind == 3:
        headers[rng.choice(HEADERS)] = rng.choice(HEADER_VALUES)
    return method, path, headers, b"{}" if kind < 4 else bad_body(rng, file, port)
