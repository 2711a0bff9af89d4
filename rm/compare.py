"""Which of two answers does a scorer prefer? One way to ask every kind of scorer.

A judge that compares has `compare(pairs)` of its own; any other scorer gives each answer a value, and the larger one wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..types import InputError, Pair, Sample, Score, Scorer
from .judgement import Said, majority

EDGE = 1e-6  # a probability of 0 or 1 has no logit


@dataclass(frozen=True)
class Vote:
    """One judgement. `swapped`: the second answer was shown first; `said` names the answer as the pair has them."""

    swapped: bool
    said: Said

    @property
    def shown_first(self) -> bool | None:
        """Whether the answer that was shown first won; None where none did."""
        return None if self.said not in ("first", "second") else (self.said == "first") != self.swapped


@dataclass(frozen=True)
class Comparison:
    """What a scorer says of a pair. `said` is the whole's verdict; `logit` the log-odds that the first is better, where there are any;
    `values` the two answers' own, for scorers that give them; `votes` a judge's; `texts` its words."""

    said: Said
    logit: float | None = None
    values: tuple[float | None, float | None] | None = None
    votes: tuple[Vote, ...] = ()
    texts: tuple[str, ...] = ()
    error: str | None = None


def compare(scorer: Scorer, pairs: Sequence[Pair]) -> list[Comparison]:
    """One comparison for each pair, in order."""
    own = getattr(scorer, "compare", None)
    if own is not None and getattr(scorer, "mode", "pairwise") == "pairwise":
        found = list(own(pairs))
    else:
        scores = scorer([Sample(pair.problem, text) for pair in pairs for text in (pair.first, pair.second)])
        found = [from_scores(first, second) for first, second in zip(scores[::2], scores[1::2], strict=True)]
    if len(found) != len(pairs):
        raise InputError(f"the scorer gave {len(found)} comparisons for {len(pairs)} pairs; it must give one for each, in order")
    return found


def from_scores(first: Score, second: Score) -> Comparison:
    """The comparison that two scores make. The log-odds are the difference of the values, or of their logits where both are
    probabilities (in [0, 1], from a scorer with steps or votes)."""
    values = (first.value, second.value)
    if first.value is None or second.value is None:
        return Comparison("unparsed", values=values, error=first.error or second.error or "the scorer gave no value")
    said: Said = "tie" if first.value == second.value else "first" if first.value > second.value else "second"
    share = all(0 <= score.value <= 1 and (score.steps or "share" in score.details) for score in (first, second))
    one, other = (_logit(value) for value in values) if share else values
    return Comparison(said, one - other, values)


def from_votes(votes: Sequence[Vote], texts: Sequence[str] = ()) -> Comparison:
    """The comparison that a judge's votes make. The log-odds come from the shares of votes, half a vote added to either side; ties and
    unparsed votes count for neither."""
    first, second = (sum(vote.said == side for vote in votes) for side in ("first", "second"))
    logit = math.log((first + 0.5) / (second + 0.5)) if first + second else None
    said = majority([vote.said for vote in votes])
    error = "no judgement could be read" if said == "unparsed" else None
    return Comparison(said, logit, votes=tuple(votes), texts=tuple(texts), error=error)


def _logit(value: float) -> float:
    value = min(1 - EDGE, max(EDGE, value))
    return math.log(value / (1 - value))
