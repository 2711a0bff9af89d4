"""Pictures that come with a request: base64 or data URLs, decoded only when their size is known to be allowed.

Files and web addresses are read from an allow-list alone, which is empty unless the server is given one.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from ..types import InputError
from .batching import Full
from .fetch import Sources
from .images import check_image, open_image
from .limits import Limits

if TYPE_CHECKING:
    from PIL.Image import Image

DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,", re.IGNORECASE)
SCHEME = re.compile(r"([a-z][a-z0-9+.-]*):", re.IGNORECASE)


class Intake:
    """Opens pictures within `limits`, in threads; the decoded ones of all requests together hold at most `waiting_pixels`."""

    def __init__(self, limits: Limits, sources: Sources | None = None):
        self.limits, self.sources = limits, sources or Sources()
        self.pixels = 0
        self.open: WeakValueDictionary[bytes, Image] = WeakValueDictionary()
        self.threads = ThreadPoolExecutor(2, "pictures")

    @asynccontextmanager
    async def pictures(self, texts: Sequence[str]) -> AsyncIterator[list[Image]]:
        """The decoded pictures; they count as held until the block is left. Raises InputError that names the picture, and Full.

        Equal files of requests that are open at one time are the same object, so a scorer sees that solutions share a picture.
        """
        loop, limits = asyncio.get_running_loop(), self.limits
        if len(texts) > limits.images:
            raise InputError(f"images: {len(texts)} pictures are more than the limit of {limits.images}; send fewer")
        files, pixels = [], 0
        for i, text in enumerate(texts):
            with _named(i):
                data = await self._bytes(text)
                pixels += await loop.run_in_executor(self.threads, check_image, data, limits.image_pixels, limits.formats)
                files.append(data)
        if pixels > limits.waiting_pixels:
            raise InputError(f"images: {pixels:,} pixels in one request are more than the limit of {limits.waiting_pixels:,}; send fewer")
        if self.pixels + pixels > limits.waiting_pixels:
            raise Full(f"pictures of {self.pixels:,} pixels are waiting already; ask again later", 1.0)
        self.pixels += pixels
        try:
            opened = []
            for i, data in enumerate(files):
                with _named(i):
                    key = hashlib.blake2b(data, digest_size=16).digest()
                    if (picture := self.open.get(key)) is None:
                        picture = await loop.run_in_executor(self.threads, open_image, data, limits.image_pixels, limits.formats)
                        picture = self.open.setdefault(key, picture)
                    opened.append(picture)
            yield opened
        finally:
            self.pixels -= pixels

    async def _bytes(self, text: str) -> bytes:
        limit = self.limits.image_bytes
        if found := DATA_URL.match(text[:100]):
            return from_base64(text[found.end() :], limit)
        if text[:5].lower() == "data:":
            raise InputError("a data URL must begin with data:image/png;base64, (or another image type)")
        if scheme := SCHEME.match(text[:30]):
            return await self.sources.read(text, scheme[1].lower(), limit)
        return from_base64(text, limit)


class _named:
    """InputErrors inside the block say which picture they are about."""

    def __init__(self, index: int):
        self.index = index

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InputError):
            raise InputError(f"images[{self.index}]: {error}") from None


def from_base64(text: str, max_bytes: int) -> bytes:
    """The bytes; line breaks are allowed. Raises InputError, for too many before they are decoded."""
    if len(text) > max_bytes * 1.4 + 100:
        raise InputError(f"the picture has more than the limit of {max_bytes:,} bytes; make it smaller")
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError("the picture is not base64; send the file's bytes as base64 or as a data URL") from None
    if not data:
        raise InputError("the picture is empty; send the file's bytes as base64 or as a data URL")
    if len(data) > max_bytes:
        raise InputError(f"the picture has {len(data):,} bytes, more than the limit of {max_bytes:,}; make it smaller")
    return data
