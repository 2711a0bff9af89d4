"""EditReward-Bench (arXiv 2509.23909) by its published convention: of two edits of one picture, is the better one scored higher?

For each dimension (prompt following, consistency, overall) the share of pairs by task type, then the plain mean over task types; `strict`
counts a pair whose scores are equal as wrong, `at_least` as right. Pure Python.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

# The dimension of a row: the task that asks for it (see `paco_prompt`); overall is sqrt(SC * PF).
DIMENSIONS = {"prompt_following": "edit_following", "consistency": "edit_consistency", "overall": "edit"}


def edit_figures(
    about: Sequence[Mapping[str, Any]], values: Sequence[Sequence[float]], orders: Sequence[Sequence[int]]
) -> dict[str, dict[str, Any]]:
    """{dimension: {strict, at_least, pairs, task_types: {type: {strict, at_least, pairs}}}} of pairs whose `about` has `dimension` and
    `task_type`; `orders[i]` names the better one of `values[i]` first."""
    cells: dict[str, dict[str, list[tuple[bool, bool]]]] = {}
    for row, scores, (better, worse) in zip(about, values, orders, strict=True):
        won = (scores[better] > scores[worse], scores[better] >= scores[worse])
        cells.setdefault(row["dimension"], {}).setdefault(row["task_type"], []).append(won)
    found: dict[str, dict[str, Any]] = {}
    for dimension in [name for name in DIMENSIONS if name in cells]:
        types = {
            name: {"strict": _share(own, 0), "at_least": _share(own, 1), "pairs": len(own)}
            for name, own in sorted(cells[dimension].items())
        }
        means = {which: statistics.fmean(row[which] for row in types.values()) for which in ("strict", "at_least")}
        found[dimension] = {**means, "pairs": sum(row["pairs"] for row in types.values()), "task_types": types}
    return found


def _share(pairs: Sequence[tuple[bool, bool]], which: int) -> float:
    return sum(pair[which] for pair in pairs) / len(pairs)
