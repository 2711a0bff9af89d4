"""For the tests of the reward server: a scorer that can be watched and held up, and a real uvicorn on a free port of the loopback."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import zlib

import uvicorn

from vlrm.serving.limits import Limits
from vlrm.serving.reward_server import RewardServer
from vlrm.serving.run_server import _bound
from vlrm.types import EngineError, InputError, Score, Usage, Verdict

TOKEN = "a-token-for-tests"


def value_of(sample) -> float:
    """A value that tells one sample from every other."""
    pictures = b"".join(image.tobytes() for image in sample.problem.images)
    text = f"{sample.problem.question}|{sample.problem.answer}|{sample.solution}"
    return zlib.crc32(text.encode() + pictures) / 2**32


class Stub:
    """Scores by `value_of`. While `hold` is set it does not answer; words in a solution make it misbehave."""

    def __init__(self):
        self.usage, self.calls, self.seen = Usage(), [], []
        self.free = threading.Event()
        self.free.set()
        self.begun = threading.Event()

    def __call__(self, samples):
        self.begun.set()
        assert self.free.wait(60)
        self.calls.append(len(samples))
        for sample in samples:
            if "InputError" in sample.solution:
                raise InputError("the solution is too long; shorten it")
            if "EngineError" in sample.solution:
                raise EngineError("the engine is away")
            if "crash" in sample.solution:
                raise ZeroDivisionError("division by zero")
        if any("short" in sample.solution for sample in samples):
            return []
        self.seen += [sample.solution for sample in samples]
        self.usage += Usage(10 * len(samples), len(samples), len(samples))
        return [self.score(sample) for sample in samples]

    def score(self, sample):
        if "nan" in sample.solution:
            return Score(float("nan"))
        if "nothing" in sample.solution:
            return Score(None, error="no steps")
        value = value_of(sample)
        verdict = Verdict(0, value >= 0.5, value, True, False, "looks fine")
        return Score(value, (value,), (verdict,), None, "Step 1: better", {"critique": f"of {sample.solution}", "odd": (1, float("inf"))})


class Served:
    """A server of `scorer` in a thread; `stop()` drains it, `kill()` breaks its connections."""

    def __init__(self, scorer=None, port=0, **options):
        self.scorer = scorer or Stub()
        limits = {name: options.pop(name) for name in list(options) if name in Limits.__dataclass_fields__}
        options.setdefault("tokens", [TOKEN])
        self.server = RewardServer(self.scorer, limits=Limits(**{"wait": 0.0, **limits}), **options)
        listening = _bound("127.0.0.1", port)
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(self.server.app, http="h11", ws="none", lifespan="on", log_config=None, timeout_graceful_shutdown=20)
        self.uvicorn = uvicorn.Server(config)
        self.thread = threading.Thread(target=lambda: asyncio.run(self.uvicorn.serve([listening])), daemon=True)
        self.thread.start()
        wait_until(lambda: self.uvicorn.started)

    def metric(self, name: str, **labels) -> float:
        return self.server.telemetry.registry.get_sample_value(name, labels) or 0.0

    @property
    def waiting(self) -> int:
        return self.server.batchers[0].waiting

    def stop(self):
        self.uvicorn.should_exit = True
        self.thread.join(30)

    def kill(self):
        self.uvicorn.force_exit = True
        self.stop()


@contextlib.contextmanager
def served(scorer=None, **options):
    it = Served(scorer, **options)
    try:
        yield it
    finally:
        if hasattr(it.scorer, "free"):
            it.scorer.free.set()
        it.kill()


def wait_until(true, seconds=30.0):
    until = time.time() + seconds
    while not true():
        assert time.time() < until, "this did not happen in time"
        time.sleep(0.005)
