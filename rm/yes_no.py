"""The verdict token as a reward: P(Yes) at the first token of the answer to "Is this answer right?", from any image-text model.

sigmoid(l_yes - l_no), with l the log-probabilities of the two words there. One token is read for each answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..serving.engine import Engine, Request
from ..types import InputError, Sample, Score, Usage

QUESTION = "Is this answer right, in all that it says of the picture and in its conclusion? Say Yes or No."


class YesNo:
    """A scorer of whole answers by the words that a model would begin its verdict with. `words`: the positive one first."""

    def __init__(self, engine: Engine, *, words: Sequence[str] = ("Yes", "No"), question: str = QUESTION):
        if isinstance(words, str) or len(words) != 2 or not all(words) or words[0] == words[1]:
            raise InputError(f"words must be two different words, the positive one first, got {words!r}")
        self.engine, self.words, self.question, self.usage = engine, tuple(words), question, Usage()

    def request(self, sample: Sample) -> Request:
        problem = sample.problem
        text = f"Question:\n{problem.question}\n\nAnswer:\n{sample.solution}\n\n{self.question}".replace("<image>", "image")
        content = [{"type": "image"} for _ in problem.images] + [{"type": "text", "text": text}]
        return Request([{"role": "user", "content": content}], problem.images, max_tokens=1)

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        """One score for each sample, in order: its value is P(first word)."""
        before = self.engine.usage
        found = self.engine.choice_logprobs([self.request(sample) for sample in samples], self.words) if samples else []
        self.usage += self.engine.usage - before
        scores = []
        for row in found:
            yes, no = (row[word] for word in self.words)
            value = 1 / (1 + math.exp(min(700.0, no - yes)))
            scores.append(Score(value, details={"mass": math.exp(yes) + math.exp(no), "share": True}))
        return scores
