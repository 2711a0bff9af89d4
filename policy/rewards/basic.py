"""Rewards that need no model: is the answer right, does the text have the form that was asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ...prm.steps import MARKER
from ...rm.answers import extract_answer
from ...rm.checkers import load_checker
from ...types import InputError, Sample, Score, Usage


class AnswerReward:
    """1 where the answer is right, 0 where it is wrong, None where the problem has no gold answer. `checker` as in `load_checker`."""

    looks = False  # does not see the picture
    columns = ("answer",)  # of a problem, without which there is no score

    def __init__(self, *, checker: str = "auto"):
        self.check = load_checker(checker)
        self.usage = Usage()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        return [self._score(self.check(sample.solution, sample.problem)) for sample in samples]

    def _score(self, right: bool | None) -> Score:
        return (
            Score(None, error="the answer could not be checked: no gold answer, or one of another kind")
            if right is None
            else Score(float(right))
        )


class FormatReward:
    """1 where the text has the form, else 0. The form: at least `min_steps` steps marked `Step k:` and a final answer; or `pattern`, a
    regular expression that must match the whole text (a dot matches line ends too)."""

    looks = False

    def __init__(self, *, pattern: str | None = None, min_steps: int = 1):
        try:
            self.pattern = None if pattern is None else re.compile(pattern, re.DOTALL)
        except re.error as error:
            raise InputError(f"pattern is not a regular expression ({error}), got {pattern!r}") from None
        self.min_steps = min_steps
        self.usage = Usage()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        return [Score(float(self._fits(sample.solution))) for sample in samples]

    def _fits(self, text: str) -> bool:
        if self.pattern is not None:
            return self.pattern.fullmatch(text.strip()) is not None
        return len(MARKER.findall(text)) >= self.min_steps and extract_answer(text) is not None
