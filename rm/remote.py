"""A scorer that lives elsewhere: one or several reward servers (`vlrm serve`) behind the same object that scores in process.

    scorer = vlrm.load_scorer("reward+http://10.0.0.1:8100,10.0.0.2:8100")    # or RemoteScorer([...])

What cannot be scored in time has no value and says why; it is counted and never 0. A server may end and come back meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..serving.images import image_key, to_data_url
from ..serving.reward_client import RewardClient, ask_body
from ..serving.wire import plain
from ..types import InputError, Sample, Score, Usage

PREFIX = "reward+"
MAGIC = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}


class RemoteScorer:
    """A Scorer over reward servers of the same scorer.

    - `urls`: `http://host:port` of each replica; the one with least to do is asked. `token` defaults to the environment's VLRM_TOKEN.
    - `expect`: the name or the fingerprint that the servers must tell; another scorer is an InputError before anything is scored.
    - `timeout`: seconds in which a score must be had, retries included; `attempt`: seconds for one try; `connect`: seconds in which one
      server must answer the very first time.
    - `concurrency` requests at once, each of at most `per_request` solutions of one problem.
    - `hedge`: seconds after which a request that is not answered is sent to a second replica too, once; None never.
    - `meta`: whether `Problem.meta` is sent too, for a scorer that reads it.

    Samples of one problem travel together, its pictures once. The first call, or `check()`, raises InputError for a wrong token or scorer
    and EngineError where no server answers; later calls raise nothing of the kind. `max_steps`, once a server was met, is the served
    scorer's. `usage` is what the servers spent for these scores; `counts` has samples, unscored, retries, hedged, busy, failed, refused,
    gave_up and mixed_up (answers that belonged elsewhere).
    """

    def __init__(
        self,
        urls: str | Sequence[str],
        *,
        token: str | None = None,
        expect: str | None = None,
        timeout: float = 600.0,
        attempt: float = 120.0,
        connect: float = 30.0,
        concurrency: int = 64,
        per_request: int = 8,
        hedge: float | None = None,
        backoff: float = 0.25,
        meta: bool = False,
    ):
        self.urls = replica_urls(urls)
        for name, value in (("timeout", timeout), ("attempt", attempt), ("connect", connect), ("hedge", hedge or 1), ("backoff", backoff)):
            if not value > 0:
                raise InputError(f"{name} must be above 0 seconds, got {value!r}")
        if concurrency < 1 or per_request < 1:
            raise InputError(f"concurrency and per_request must be at least 1, got {concurrency} and {per_request}")
        token = token or os.environ.get("VLRM_TOKEN")
        self.client = RewardClient(self.urls, token, concurrency, attempt, hedge, backoff, expect)
        self.timeout, self.connect, self.per_request, self.meta = timeout, connect, per_request, meta
        self.usage = Usage()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._meeting: asyncio.Lock | None = None

    @property
    def counts(self) -> Counter[str]:
        return self.client.counts

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        """One score for each sample, in order."""
        return self._wait(self._score(list(samples)))

    async def score_async(self, samples: Sequence[Sample]) -> list[Score]:
        """The same in any event loop."""
        return await asyncio.wrap_future(self._start(self._score(list(samples))))

    def check(self) -> dict[str, Any]:
        """What the servers serve: name, fingerprint, version, limits. Raises as the first call does."""
        return self._wait(self._meet())

    def close(self) -> None:
        """Closes the connections; the next call opens new ones."""
        with self._lock:
            loop, self.loop = self.loop, None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self.client.__aexit__(), loop).result()
            loop.call_soon_threadsafe(loop.stop)

    async def _score(self, samples: list[Sample]) -> list[Score]:
        if not samples:
            return []
        started = time.perf_counter()
        await self._meet()
        parts = grouped(samples, min(self.per_request, self.client.scorer["limits"]["solutions"]))
        urls: dict[Any, str] = {}

        async def one(part: list[int]) -> list[Score]:
            body = await asyncio.to_thread(_body, [samples[i] for i in part], urls, self.meta)
            return await self.client.score(body, [samples[i].solution for i in part], self.timeout)

        scores: list[Score] = [Score(None)] * len(samples)
        for part, found in zip(parts, await asyncio.gather(*[one(part) for part in parts]), strict=True):
            for i, score in zip(part, found, strict=True):
                scores[i] = score
        spent = sum((score.details["usage"] for score in scores if "usage" in score.details), Usage())
        seconds = time.perf_counter() - started
        self.usage += Usage(spent.prompt_tokens, spent.completion_tokens, spent.calls, seconds)
        self.counts.update(samples=len(scores), unscored=sum(score.value is None for score in scores))
        return scores

    async def _meet(self) -> dict[str, Any]:
        self._meeting = self._meeting or asyncio.Lock()
        async with self._meeting:
            if not self.client.scorer:
                await self.client.meet(self.connect)
                if self.client.scorer["max_steps"] is not None:
                    self.max_steps = self.client.scorer["max_steps"]
        return self.client.scorer

    def _start(self, task: Coroutine[Any, Any, Any]) -> Any:
        """The task in the one loop that the connections belong to, which runs in a thread of its own."""
        with self._lock:
            if self.loop is None:
                self.loop = asyncio.new_event_loop()
                threading.Thread(target=self.loop.run_forever, name="remote scorer", daemon=True).start()
                asyncio.run_coroutine_threadsafe(self.client.__aenter__(), self.loop).result()
                self._meeting = None
        return asyncio.run_coroutine_threadsafe(task, self.loop)

    def _wait(self, task: Coroutine[Any, Any, Any]) -> Any:
        future = self._start(task)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


def replica_urls(urls: str | Sequence[str]) -> list[str]:
    """`http://host:port` of each replica, from a list or one string with commas; `reward+` and a scheme may be left out after the first."""
    parts = urls.split(",") if isinstance(urls, str) else list(urls)
    found, scheme = [], ""
    for part in parts:
        url = part.strip().removeprefix(PREFIX).rstrip("/")
        if "://" not in url and scheme:
            url = f"{scheme}://{url}"
        scheme = url.partition("://")[0]
        if scheme not in ("http", "https") or not url.partition("://")[2] or any(mark in url for mark in " #?"):
            raise InputError(f"a reward server is named reward+http://host:port, several with commas between them, got {part!r}")
        found.append(url.removesuffix("/v1"))
    if not found or len(set(found)) < len(found):
        raise InputError(f"give the URL of at least one reward server, and each once, got {urls!r}")
    return found


def grouped(samples: Sequence[Sample], most: int) -> list[list[int]]:
    """Indices of samples that can share a request: the same problem, at most `most` solutions."""
    groups: dict[Any, list[list[int]]] = {}
    for i, sample in enumerate(samples):
        problem = sample.problem
        key = (problem.id, problem.question, problem.answer, tuple(image_key(image) for image in problem.images), id(problem.meta))
        parts = groups.setdefault(key, [[]])
        if len(parts[-1]) == most:
            parts.append([])
        parts[-1].append(i)
    return [part for parts in groups.values() for part in parts]


def _body(samples: Sequence[Sample], urls: dict[Any, str], meta: bool) -> bytes:
    problem = samples[0].problem
    content: dict[str, Any] = {"question": problem.question, "id": problem.id[:200], "solutions": [sample.solution for sample in samples]}
    if problem.images:
        content["images"] = [_data_url(image, urls) for image in problem.images]
    if problem.answer is not None:
        content["answer"] = problem.answer
    if meta and problem.meta:
        content["meta"] = plain(problem.meta)
    return ask_body(content)


def _data_url(image: Any, urls: dict[Any, str]) -> str:
    """The picture as it will be read there: PNG and JPEG files as they are, others as a PNG. Raises InputError for a damaged one."""
    key = image_key(image)
    if key not in urls:
        data = Path(image).read_bytes() if isinstance(image, (str, os.PathLike)) and Path(image).is_file() else image
        kind = next((kind for magic, kind in MAGIC.items() if isinstance(data, (bytes, bytearray)) and data.startswith(magic)), None)
        if kind is None:
            urls[key] = to_data_url(image)
        else:
            import base64

            urls[key] = f"data:image/{kind};base64," + base64.b64encode(data).decode("ascii")
    return urls[key]


def load_remote(source: str, engine_options: Mapping[str, Any], settings: Mapping[str, Any]) -> RemoteScorer:
    """The scorer that `reward+http://...` names."""
    if engine_options:
        raise InputError(f"{source}: a reward server has its own engine; give engine options to `vlrm serve`, and here none")
    return RemoteScorer(source, **settings)
