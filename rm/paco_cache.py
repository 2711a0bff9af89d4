"""Answers that need not be asked for again, keyed on all that enters a request: the model, the chat, the pictures' content, the words.

(The released cache leaves the instructions out of its key, so that another prompt can get an old answer.)
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..serving.engine import Engine, Request
from ..types import InputError
from .rows import append_jsonl, drop_torn_line


class ChoiceCache:
    """`choice_logprobs` of an engine, each request asked once. `hits` and `misses` count requests.

    The latest `size` answers are kept in memory. With `path` all are kept in that JSONL file too, and read from it when the cache is made.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, size: int = 100_000):
        if size < 1:
            raise InputError(f"the size of a cache must be at least 1, got {size}")
        self.path, self.size = None if path is None else Path(path), size
        self.hits = self.misses = 0
        self.known: OrderedDict[str, dict[str, float]] = OrderedDict()
        if self.path is not None and self.path.exists():
            drop_torn_line(self.path)
            for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
                try:
                    row = json.loads(line)
                    self._keep(row["key"], {str(word): float(value) for word, value in row["logprobs"].items()})
                except (ValueError, KeyError, TypeError, AttributeError):
                    raise InputError(f"{self.path}, line {number}: is not a cached answer; choose another file or delete it") from None

    def choice_logprobs(self, engine: Engine, requests: Sequence[Request], choices: Sequence[str]) -> list[dict[str, float]]:
        """As `Engine.choice_logprobs`. Equal requests of one call are asked once; the answers are on the disk before they are returned."""
        stamp, digests = model_stamp(engine.name), {}
        keys = [request_key(stamp, request, choices, digests) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.known}
        self.misses += len(missing)
        self.hits += len(requests) - len(missing)
        made = dict(zip(missing, engine.choice_logprobs(list(missing.values()), choices), strict=True)) if missing else {}
        if self.path is not None and made:
            append_jsonl(self.path, [{"key": key, "logprobs": values} for key, values in made.items()])
        answers = [dict(made[key] if key in made else self.known[key]) for key in keys]
        for key, values in made.items():
            self._keep(key, values)
        return answers

    def _keep(self, key: str, values: Mapping[str, float]) -> None:
        self.known[key] = dict(values)
        while len(self.known) > self.size:
            self.known.popitem(last=False)


def request_key(stamp: str, request: Request, choices: Sequence[str], digests: dict[Any, str] | None = None) -> str:
    """A key of the request: equal only where model, messages, prefix, choices and every picture's content are."""
    digests = {} if digests is None else digests
    images = [_digest(image, digests) for image in request.images]
    content = json.dumps([stamp, list(request.messages), request.prefix, list(choices), images], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def image_digest(image: Any) -> str:
    """Names a picture by its content: the bytes of its file, or the pixels of a PIL image."""
    if isinstance(image, (str, os.PathLike)):
        try:
            return hashlib.blake2b(Path(image).read_bytes(), digest_size=16).hexdigest()
        except OSError as error:
            raise InputError(f"image {os.fspath(image)!r} cannot be read ({error.strerror}); give the path of an image file") from None
    if isinstance(image, (bytes, bytearray, memoryview)):
        return hashlib.blake2b(bytes(image), digest_size=16).hexdigest()
    if not hasattr(image, "tobytes"):
        raise InputError(f"an image must be a path, a PIL image or bytes, got {type(image).__name__}")
    header = f"{image.mode} {image.size} {image.getpalette() if image.mode == 'P' else ''}"
    return hashlib.blake2b(header.encode() + image.tobytes(), digest_size=16).hexdigest()


def _digest(image: Any, digests: dict[Any, str]) -> str:
    key = os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image)  # for the time of one call
    if key not in digests:
        digests[key] = image_digest(image)
    return digests[key]


def model_stamp(name: str) -> str:
    """An engine's name, with sizes and times of the files where it names a folder of this machine: a model trained again is another."""
    parts = [name]
    for place in name.split(":", 1)[-1].split("+"):
        folder = Path(place)
        if folder.is_dir():
            parts += [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in sorted(folder.iterdir()) if p.is_file()]
    return "\n".join(parts)
