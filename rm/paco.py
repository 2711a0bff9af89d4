"""PaCo-Reward, the pairwise consistency reward (arXiv 2512.04784), as a scorer.

The model sees two pictures and a question; the score is the probability of Yes against No at the first token of its answer,
sigmoid(lY - lN). The reasons that it has learnt to give come after that token, so scoring costs one forward pass and writes nothing.

A sample's pictures are what is judged: they are the problem's `images`, its `question` is what is asked of them, and the solution is empty.
Two pictures make a pair; more make a set, whose reward is the mean over all pairs; one picture with `meta["layout"]` ("2x2") is a set in
one grid. `meta["criteria"]` and `meta["task"]` choose the instructions: see `paco_prompt`. Trained by `train_paco`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..serving.engine import Engine, Request
from ..types import InputError, Sample, Score, Usage
from .paco_cache import ChoiceCache
from .paco_prompt import PairStyle, orders, questions_of
from .paco_sets import all_pairs, edit_reward, set_reward, split_grid

_Place = tuple[str, str, int]  # dimension, criterion, pair


def yes_probability(yes: float, no: float) -> float | None:
    """sigmoid(yes - no) of two log-probabilities: P(Yes) / (P(Yes) + P(No)). A word that the engine did not list is -inf; None where
    neither was."""
    if math.isnan(yes) or math.isnan(no) or (yes == no == -math.inf):
        return None
    if yes == -math.inf or no == -math.inf:
        return float(no == -math.inf)
    gap = yes - no
    return 1 / (1 + math.exp(-gap)) if gap >= 0 else math.exp(gap) / (1 + math.exp(gap))


def add_spellings(logprobs: Sequence[float]) -> float:
    """log of the summed probabilities of a word's spellings."""
    top = max(logprobs)
    return top if top == -math.inf else top + math.log(math.fsum(math.exp(value - top) for value in logprobs))


class PaCo:
    """A scorer of pictures' consistency; `value` lies in [0, 1].

    - `words`, `marks`, `ending`, `system`: as trained (see `PairStyle`).
    - `spellings`: for each word other spellings whose probabilities are added to its own, such as
      `[["yes", "YES"], ["no", "NO"]]` (the released code does so for EditReward-Bench).
    - `prefix`: what the model writes before its verdict, such as `<|begin_of_box|>`; the verdict is read after it.
    - `both_orders`: ask each pair in both orders and take the mean; not of edits, whose pictures have an order. Inferred: the released code
      asks once.
    - `cache_file`: a JSONL file that keeps all answers; `cache_size` answers are kept in memory.

    `details` of a score: `pairs` (for each pair of the set, the mean over criteria), `dimensions`, and `order_gap`, the mean absolute
    difference between the two orders. A sample without two pictures gets no value, and an `error` that says so. `counts` tells how many
    samples, pairs and requests there were; `cache.hits` how many requests were not asked again.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        words: Sequence[str] = PairStyle.words,
        marks: Sequence[str] = PairStyle.marks,
        ending: str = PairStyle.ending,
        system: str = PairStyle.system,
        spellings: Sequence[Sequence[str]] = ((), ()),
        prefix: str = "",
        both_orders: bool = True,
        cache_file: str | None = None,
        cache_size: int = 100_000,
    ):
        as_given = tuple(words) if not isinstance(words, str) else words
        self.style = PairStyle(as_given, marks if isinstance(marks, str) else tuple(marks), ending, system)
        if len(spellings) != 2 or any(isinstance(group, str) for group in spellings):
            raise InputError(f"spellings must be two lists, one for each verdict word, got {spellings!r}")
        self.groups = [[word, *more] for word, more in zip(self.style.words, spellings, strict=True)]
        self.engine, self.both_orders, self.prefix = engine, both_orders, prefix
        self.cache = ChoiceCache(cache_file, cache_size)
        self.usage = Usage()
        self.counts: Counter[str] = Counter()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        """One score for each sample, in order; all requests go to the engine in one batch."""
        plans = [self._plan(sample) for sample in samples]
        requests = [request for plan in plans if not isinstance(plan, str) for _, group in plan for request in group]
        before = self.engine.usage
        answers = iter(self.cache.choice_logprobs(self.engine, requests, [word for group in self.groups for word in group]))
        self.usage += self.engine.usage - before
        self.counts.update(samples=len(samples), requests=len(requests))
        scores = []
        for plan in plans:
            if isinstance(plan, str):
                self.counts["unscored"] += 1
                scores.append(Score(None, error=plan))
                continue
            read = [(place, [self._probability(next(answers)) for _ in group]) for place, group in plan]
            scores.append(self._score(read))
        return scores

    def pair(self, question: str, first: Any, second: Any, ordered: bool = False) -> list[Request]:
        """The requests whose mean is the score of a pair."""
        pairs = orders([first, second], self.both_orders and not ordered)
        return [replace(self.style.request(question, *pair), prefix=self.prefix) for pair in pairs]

    def _plan(self, sample: Sample) -> list[tuple[_Place, list[Request]]] | str:
        """What is to be asked of a sample, or why nothing can be."""
        problem = sample.problem
        images = list(problem.images)
        if layout := problem.meta.get("layout"):
            if len(images) != 1:
                return f"a layout belongs to one grid picture, but there are {len(images)}"
            images = split_grid(images[0], layout)
        if len(images) < 2:
            return f"{len(images)} picture{'' if len(images) == 1 else 's'} where two are needed"
        asked = questions_of(problem)
        ordered = any(flag for texts in asked.values() for _, flag in texts.values())
        if ordered and len(images) != 2:
            return f"an edit has two pictures, the original and the edited one, but there are {len(images)}"
        return [
            ((dimension, name, k), self.pair(question, images[i], images[j], flag))
            for dimension, texts in asked.items()
            for name, (question, flag) in texts.items()
            for k, (i, j) in enumerate(all_pairs(len(images)))
        ]

    def _probability(self, logprobs: dict[str, float]) -> float | None:
        return yes_probability(*(add_spellings([logprobs[word] for word in group]) for group in self.groups))

    def _score(self, read: Sequence[tuple[_Place, list[float | None]]]) -> Score:
        scores: dict[str, dict[str, list[float]]] = {}
        pairs: dict[int, list[float]] = {}
        gaps = []
        for (dimension, name, k), values in read:
            if None in values:
                self.counts["unscored"] += 1
                return Score(None, error=f"the model gave no probability to any of {', '.join(map(repr, self.style.words))}")
            value = math.fsum(values) / len(values)
            scores.setdefault(dimension, {}).setdefault(name, []).append(value)
            pairs.setdefault(k, []).append(value)
            gaps += [abs(values[0] - values[1])] if len(values) == 2 else []
        self.counts["pairs"] += len(pairs)
        value, dimensions = set_reward(scores)
        if set(scores) == {"SC", "PF"}:
            value = edit_reward(dimensions["SC"], dimensions["PF"])
        details: dict[str, Any] = {"pairs": [math.fsum(values) / len(values) for values in pairs.values()]}
        if gaps:
            details["order_gap"] = math.fsum(gaps) / len(gaps)
        if set(dimensions) != {""}:
            details["dimensions"] = dimensions
        return Score(value, details=details)
