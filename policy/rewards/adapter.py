"""A scorer as a reward function of TRL: `GRPOTrainer(reward_funcs=[reward_function(scorer, "gm_prm")])`.

What a scorer cannot judge, fails on, or judges by something that is no number becomes None, never 0: TRL leaves such a row out. Every
None is counted by its reason.
"""

from __future__ import annotations

import math
import queue
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ...types import InputError, Problem, Sample, Score, Scorer


class RewardFunction:
    """Callable as TRL wants it, with a name of its own for the log. `scores` are the Scores of the last call, `reasons` counts why there
    was none. `timeout`: seconds that one call of the scorer may take (None: as long as it likes, and in this thread)."""

    def __init__(self, scorer: Scorer, name: str, timeout: float | None = None):
        self.scorer, self.__name__, self.timeout = scorer, name, timeout
        self.scores: list[Score] = []
        self.reasons: Counter[str] = Counter()
        self._jobs: queue.SimpleQueue[Any] | None = None

    def __call__(self, prompts: Sequence[Any] = (), completions: Sequence[Any] = (), **columns: Any) -> list[float | None]:
        """`sample` holds vlrm's samples; without that column they are made of TRL's own."""
        samples = columns.get("sample") or _samples(prompts, completions, columns)
        self.scores = self.score(samples)
        return [score.value for score in self.scores]

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """A Score for each sample; its value is a finite number or None."""
        try:
            scores = self._call(samples)
            if len(scores) != len(samples):
                raise InputError(f"the scorer gave {len(scores)} scores for {len(samples)} samples")
            scores = [_finite(score) for score in scores]
        except Exception as error:  # whatever a scorer or its server does, the run goes on without its scores
            scores = [Score(None, error=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")] * len(samples)
        for reason in {score.error or "no reason given" for score in scores if score.value is None}:
            if reason not in self.reasons:
                print(f"vlrm: reward {self.__name__}: no score ({reason}); such completions are left out and counted", file=sys.stderr)
        self.reasons.update(score.error or "no reason given" for score in scores if score.value is None)
        return scores

    def _call(self, samples: Sequence[Sample]) -> list[Score]:
        if self.timeout is None:
            return self.scorer(samples)
        if self._jobs is None:
            self._jobs = queue.SimpleQueue()
            threading.Thread(target=_work, args=(self._jobs,), daemon=True).start()
        # One thread: while a call hangs, later ones wait for it and give up in their turn, unrun.
        done, given_up = queue.SimpleQueue(), threading.Event()
        self._jobs.put((lambda: self.scorer(samples), done, given_up))
        try:
            result = done.get(timeout=self.timeout)
        except queue.Empty:
            given_up.set()
            raise TimeoutError(f"no scores within {self.timeout:g} s") from None
        if isinstance(result, BaseException):
            raise result
        return result


def reward_function(scorer: Scorer, name: str, timeout: float | None = None) -> RewardFunction:
    """A scorer as a reward function of TRL's trainers."""
    return RewardFunction(scorer, name, timeout)


def _work(jobs: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any], threading.Event]]) -> None:
    while True:
        call, done, given_up = jobs.get()
        if given_up.is_set():
            continue
        try:
            done.put(call())
        except Exception as error:
            done.put(error)


def _finite(score: Score) -> Score:
    value = score.value
    if value is None:
        return score
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return Score(None, error=f"the score {value!r} is no finite number")
    return score


def _samples(prompts: Sequence[Any], completions: Sequence[Any], columns: dict[str, Any]) -> list[Sample]:
    """From TRL's columns: the text of the last message is the question; `images` or `image`, `answer` and `id` if there are such."""
    images = columns.get("images") or [[image] for image in columns.get("image") or []] or [[] for _ in prompts]
    answers, ids = (columns.get(name) or [None] * len(prompts) for name in ("answer", "id"))
    result = []
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        question = _text(prompt)
        result.append(Sample(Problem(str(ids[i] or f"row {i}"), question, list(images[i] or []), answers[i]), _text(completion)))
    return result


def _text(messages: Any) -> str:
    if isinstance(messages, str):
        return messages
    content = messages[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
