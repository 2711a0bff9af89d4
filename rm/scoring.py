"""Scores of samples that a scorer may refuse."""

from __future__ import annotations

from collections.abc import Sequence

from ..types import InputError, Sample, Score, Scorer


def score_or_reason(scorer: Scorer, samples: Sequence[Sample]) -> list[Score]:
    """One score for each sample. Samples that the scorer refuses with InputError (too long for the model, a damaged picture) get a score
    without a value that says why: a refused batch is halved until they stand alone. Other errors end the run."""
    try:
        scores = list(scorer(samples))
    except InputError as error:
        if len(samples) == 1:
            return [Score(None, error=" ".join(str(error).split()))]
        half = len(samples) // 2
        return score_or_reason(scorer, samples[:half]) + score_or_reason(scorer, samples[half:])
    if len(scores) != len(samples):
        raise InputError(f"the scorer gave {len(scores)} scores for {len(samples)} samples; it must give one for each, in order")
    return scores
