"""What to watch while a policy learns from rewards: pure measures of one batch. numpy only.

Legend: N completions, those of one problem side by side; G to a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..serving.images import open_image
from ..types import Sample, Score, Scorer
from .ngrams import repeated_ngrams


def batch_measures(name: str, scores: Sequence[Score], lengths: Sequence[int], group_size: int) -> dict[str, float]:
    """Of one reward: the share of None; where there are groups the share of those whose scores are all the same, and Spearman's correlation
    of score and length inside them (left out where it is not defined). The mean and the spread TRL logs itself."""
    value_N = np.array([np.nan if score.value is None else score.value for score in scores], dtype=float)
    measures = {f"none/{name}": float(np.isnan(value_N).mean())}
    if group_size < 2:
        return measures
    measures[f"zero_variance/{name}"] = zero_variance(value_N, group_size)
    correlation = within_groups(value_N, np.asarray(lengths, dtype=float), group_size)
    return measures if correlation is None else {**measures, f"length_correlation/{name}": correlation}


def zero_variance(value_N: np.ndarray, group_size: int) -> float:
    """The share of groups that teach nothing: fewer than two scores, or all of them equal."""
    groups = [group[~np.isnan(group)] for group in value_N.reshape(-1, group_size)]
    return float(np.mean([len(group) < 2 or float(np.ptp(group)) < 1e-6 for group in groups]))


def within_groups(value_N: np.ndarray, other_N: np.ndarray, group_size: int) -> float | None:
    """Spearman's correlation of two measures, each ranked inside its group, so that hard problems do not make one. None without spread."""
    from scipy.stats import rankdata

    ranks: list[tuple[float, float]] = []
    for start in range(0, len(value_N), group_size):
        pair = np.stack([value_N[start : start + group_size], other_N[start : start + group_size]])
        pair = pair[:, ~np.isnan(pair).any(axis=0)]
        if pair.shape[1] > 1:
            centred = np.apply_along_axis(rankdata, 1, pair) - (pair.shape[1] + 1) / 2
            ranks += list(zip(*centred, strict=True))
    table = np.array(ranks, dtype=float).reshape(-1, 2)
    spread = np.sqrt((table**2).sum(axis=0))
    return None if not len(table) or (spread < 1e-9).any() else float((table[:, 0] * table[:, 1]).sum() / spread.prod())


def text_measures(texts: Sequence[str], n: int = 6) -> dict[str, float]:
    """The mean share of repeated word n-grams, and the share of empty texts."""
    return {
        "repeated_ngrams": float(np.mean([repeated_ngrams(text, n) for text in texts])),
        "empty": float(np.mean([not text.strip() for text in texts])),
    }


def blind_measures(name: str, scorer: Scorer, samples: Sequence[Sample], scores: Sequence[Score], count: int) -> dict[str, float]:
    """The mean reward of `count` samples, evenly spread over the batch, seen and with grey pictures in place of theirs: a reward that
    stays where it was does not come from the picture."""
    chosen = [k for k, (sample, score) in enumerate(zip(samples, scores, strict=True)) if sample.problem.images and score.value is not None]
    chosen = [chosen[round(i)] for i in np.linspace(0, len(chosen) - 1, min(count, len(chosen)))] if chosen else []
    blind = [score.value for score in scorer([without_sight(samples[k]) for k in chosen])] if chosen else []
    pairs = [(scores[k].value, value) for k, value in zip(chosen, blind, strict=True) if value is not None]
    if not pairs:
        return {}
    seen, unseen = (float(np.mean(column)) for column in zip(*pairs, strict=True))
    return {f"blind/{name}": unseen, f"blind_gap/{name}": seen - unseen}


def without_sight(sample: Sample) -> Sample:
    """The same sample with a grey picture of the same size in place of each of its own."""
    from PIL import Image

    def grey(image: Any) -> Any:
        return Image.new("RGB", open_image(image).size, (128, 128, 128))

    return replace(sample, problem=replace(sample.problem, images=[grey(image) for image in sample.problem.images]))
