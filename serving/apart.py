"""A batch in which some samples make the scorer fail: those stand alone, the others get their scores."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import EngineError, InputError, Sample, Score, Scorer


def score_apart(
    scorer: Scorer, samples: Sequence[Sample], catch: type[Exception] | tuple[type[Exception], ...] = InputError
) -> list[Score | Exception]:
    """For each sample its score, or the exception of the kinds `catch` that it causes: a refused batch is halved until they stand alone.

    Raises what is not in `catch`, and EngineError always: an engine that fails is no sample's fault. So is a scorer that gives another
    number of scores than there are samples.
    """
    try:
        scores = list(scorer(samples))
    except EngineError:
        raise
    except catch as error:
        if len(samples) == 1:
            return [error]
        half = len(samples) // 2
        return score_apart(scorer, samples[:half], catch) + score_apart(scorer, samples[half:], catch)
    if len(scores) != len(samples):
        raise EngineError(f"the scorer gave {len(scores)} scores for {len(samples)} samples; it must give one for each, in order")
    return list(scores)
