"""A baseline, not the GM-PRM: solve each step again from its prefix and compare.

The model continues the solution greedily from the end of the previous step; a step scores 1 when what it writes is the step's text, else
0, and its own step is the correction. With the policy itself as the engine this is the self-critic control of a search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..serving.engine import Engine, Request
from ..serving.images import image_key
from ..types import Sample, Score, Step, Usage, Verdict
from .aggregate import mean
from .records import same_text
from .steps import MARKER, prefix_with, split_steps


class RederiveScorer:
    """Scores by re-deriving; `instruction` is what the policy's prompt has after the question. Equal prefixes are continued once."""

    def __init__(self, engine: Engine, *, instruction: str = "", max_tokens: int = 256, max_steps: int = 12):
        self.engine, self.instruction, self.max_tokens, self.max_steps = engine, instruction, max_tokens, max_steps
        self.usage = Usage()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        """One score for each sample, in order, from one batch over the prefixes of all of them."""
        split = [split_steps(sample.solution, self.max_steps) for sample in samples]
        requests: dict[tuple[Any, ...], Request] = {}
        keys: list[list[tuple[Any, ...]]] = []
        for sample, steps in zip(samples, split, strict=True):
            asked = [self._request(sample, steps, k) for k in range(len(steps))]
            picture = tuple(image_key(image) for image in sample.problem.images)
            keys.append([(sample.problem.question, picture, request.prefix, request.stop) for request in asked])
            requests.update(zip(keys[-1], asked, strict=True))
        before = self.engine.usage
        completions = self.engine.generate(list(requests.values())) if requests else []
        self.usage += self.engine.usage - before
        texts = {key: completion[0].text.strip() for key, completion in zip(requests, completions, strict=True)}
        return [_score(steps, [texts[key] for key in own]) for steps, own in zip(split, keys, strict=True)]

    def _request(self, sample: Sample, steps: Sequence[Step], k: int) -> Request:
        problem = sample.problem
        text = f"{problem.question}\n\n{self.instruction}" if self.instruction else problem.question
        prefix = prefix_with(sample.solution, steps, k, "")
        marked = MARKER.search(sample.solution) is not None
        return Request(
            messages=[{"role": "user", "content": [{"type": "image"} for _ in problem.images] + [{"type": "text", "text": text}]}],
            images=problem.images,
            prefix=prefix.rstrip() if marked else prefix,  # words after "Step 2:" begin with their space, as models tokenize them
            max_tokens=self.max_tokens,
            stop=("\nStep",) if marked else ("\n\n",) if k < len(steps) - 1 else (),  # a closing answer is part of the last step
        )


def _score(steps: Sequence[Step], own: Sequence[str]) -> Score:
    if not steps:
        return Score(value=None, error="the solution has no text")
    scores = tuple(float(same_text(step.text, text)) for step, text in zip(steps, own, strict=True))
    first_error = next((k for k, score in enumerate(scores) if score == 0), None)
    verdicts = tuple(Verdict(k, score == 1, score, analysis=text) for k, (score, text) in enumerate(zip(scores, own, strict=True)))
    correction = own[first_error] or None if first_error is not None else None
    return Score(mean(scores), scores, verdicts, first_error, correction)
