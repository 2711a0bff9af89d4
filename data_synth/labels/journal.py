"""An engine whose finished batches are on the disk: what a killed run asked before it is not asked again.

Labelling is deterministic, so a run that begins anew asks the same batches in the same order; those of the journal are answered from it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...rm.rows import append_jsonl, drop_torn_line
from ...serving.engine import Completion, Engine, Request
from ...serving.images import image_key
from ...types import InputError, Usage


class Journal:
    """The finished batches of one unit of work, kept in the file `path` under `name`. `told` hears of every answered batch."""

    def __init__(self, path: Path, name: Any, told: Callable[[int], None] = lambda sequences: None):
        self.path, self.name, self.told = path, name, told
        drop_torn_line(path)
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line] if path.exists() else []
        self.done = [row for row in rows if row["unit"] == name]
        self.at = 0

    def answer(self, key: str, ask: Callable[[], list[list[Completion]]]) -> list[list[Completion]]:
        """What the journal holds for the next batch, else what `ask` gives. From a batch on that differs, all are asked again."""
        if self.at < len(self.done) and self.done[self.at]["key"] == key:
            rows = self.done[self.at]["completions"]
            answers = [[Completion(text, (), finish, tokens, prompt) for text, finish, tokens, prompt in group] for group in rows]
        else:
            self.done = self.done[: self.at]
            answers = ask()
            rows = [[[c.text, c.finish_reason, c.completion_tokens, c.prompt_tokens] for c in group] for group in answers]
            append_jsonl(self.path, [{"unit": self.name, "key": key, "completions": rows}])
        self.at += 1
        self.told(sum(map(len, answers)))
        return answers


class Journaled:
    """An engine that goes through a journal, in batches of at most `batch` sequences. Log-probabilities are not kept. `engine` is called
    for the model when it is first needed: a run that finds all in its journal loads none."""

    def __init__(self, engine: Callable[[], Engine], name: str, journal: Journal, batch: int = 4096):
        if batch < 1:
            raise InputError(f"batch must be at least 1, got {batch}")
        self.engine, self.name, self.journal, self.batch, self.usage = engine, name, journal, batch, Usage()

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """`n` completions for each request, in order."""
        answers: list[list[Completion]] = []
        for part in _parts(requests, self.batch):
            answers += self.journal.answer(_key(self.name, part), lambda part=part: self.engine().generate(part))
        read = sum(group[0].prompt_tokens for group in answers)
        written = sum(completion.completion_tokens for group in answers for completion in group)
        self.usage += Usage(read, written, sum(map(len, answers)))
        return answers

    def choice_logprobs(self, requests: Sequence[Request], choices: Sequence[str]) -> list[dict[str, float]]:
        """Straight from the engine: these are not kept."""
        return self.engine().choice_logprobs(requests, choices)

    def close(self) -> None:
        """The engine is not ours to close."""


def _parts(requests: Sequence[Request], batch: int) -> Iterator[Sequence[Request]]:
    start = size = 0
    for index, request in enumerate(requests):
        if size and size + request.n > batch:
            yield requests[start:index]
            start, size = index, 0
        size += request.n
    if requests:
        yield requests[start:]


def _key(name: str, requests: Sequence[Request]) -> str:
    digest = hashlib.blake2b(name.encode(), digest_size=12)
    for r in requests:
        images = [key if isinstance(key := image_key(image), (str, bytes)) else None for image in r.images]
        digest.update(repr((r.messages, images, r.prefix, r.n, r.max_tokens, r.temperature, r.top_p, r.top_k, r.stop, r.seed)).encode())
    return digest.hexdigest()
