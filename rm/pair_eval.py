"""How good a scorer's preferences are, on a file of pairs whose better answer is known: `vlrm eval pairs` without the command line.

    vlrm eval pairs --data preferences.jsonl --scorer runs/reward --output runs/eval

Writes into the output folder: comparisons*.jsonl (what an interrupted run goes on from), results.json, pairs.png and report.html.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..types import InputError, Problem, Scorer
from .blind import Blind, blinded
from .compare import Comparison
from .pair_benchmarks import read_pairs
from .pair_file import compare_file, comparison_of
from .pair_metrics import JudgedPair, evaluate_pairs
from .preferences import Preference, preference_fault


@dataclass(frozen=True)
class PairCase:
    """A preference and what the scorer said of it."""

    preference: Preference
    comparison: Comparison

    @property
    def judged(self) -> JudgedPair:
        p = self.preference
        return JudgedPair(p.problem.id, p.group, (len(p.chosen.split()), len(p.rejected.split())), self.comparison)


def evaluate_pair_file(
    data: Any,
    output: str | os.PathLike[str],
    scorer: Callable[[], Scorer],
    *,
    format: str = "auto",
    split: str | None = None,
    image_root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    blind: Sequence[Blind] = ("removed", "other"),
    chunk: int = 32,
    resamples: int = 1000,
    seed: int = 0,
    worst: int = 30,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
    loaded: Callable[[int], None] = lambda total: None,
) -> dict[str, Any]:
    """Compares every pair of `data` (what `read_pairs` takes) and returns what results.json holds.

    `scorer` makes the scorer, once, and only where comparisons are missing; `settings` names it: what its comparisons depend on. `blind`:
    which of the blind controls are run; each costs as much as the evaluation itself. The results:

    metrics  of `evaluate_pairs`
    blind    for each control, accuracies on the pairs that it can be made for, and under "seen" the scorer's own on the same pairs
    errors   how many pairs have no comparison, by reason (numbers shown as #)
    counts   pairs, and those dropped for which reason
    cost     tokens read and written, and seconds, of all comparisons and of one
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder to write to")
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, got {resamples}")
    for how in blind:
        if how not in ("removed", "other"):
            raise InputError(f"unknown blind control {how!r}; there are removed and other")
    started, counts = time.perf_counter(), Counter[str]()
    preferences = usable(read_pairs(data, format, split=split, image_root=image_root, limit=limit), counts)
    if not preferences:
        raise InputError(f"{data}: no pair can be used ({'; '.join(f'{count} {reason}' for reason, count in counts.items())})")
    problems = [preference.problem for preference in preferences]
    arms: dict[str, Sequence[Problem | None]] = {"": problems, **{how: blinded(problems, how, seed) for how in blind}}
    loaded(len(arms) * len(preferences))
    output.mkdir(parents=True, exist_ok=True)
    made: list[Scorer] = []

    def once() -> Scorer:
        made[:] = made or [scorer()]
        return made[0]

    rows = {}
    for at, (name, shown) in enumerate(arms.items()):
        rows[name] = compare_file(
            preferences,
            shown,
            once,
            output / f"comparisons{f'.{name}' if name else ''}.jsonl",
            settings={**(settings or {}), "seed": seed, **({"blind": name} if name else {})},
            chunk=chunk,
            seed=seed,
            progress=lambda done, at=at: progress(at * len(preferences) + done),
        )
    cases = {
        name: [None if row is None else PairCase(p, comparison_of(row)) for p, row in zip(preferences, found, strict=True)]
        for name, found in rows.items()
    }
    options = {"resamples": resamples, "seed": seed}
    seen = [case for case in cases[""] if case is not None]
    errors = Counter(re.sub(r"(?<![\w/.])\d[\d,.]*(?![\w/])", "#", case.comparison.error) for case in seen if case.comparison.error)
    results = {
        "data": str(data) if isinstance(data, (str, os.PathLike)) else "data",
        "scorer": dict(settings or {}),
        "counts": dict(counts),
        "errors": dict(errors.most_common()),
        "seed": seed,
        "metrics": evaluate_pairs([case.judged for case in seen], **options),
        "blind": {name: blind_figures(cases[""], cases[name], options) for name in blind},
        "cost": cost(rows[""]),
        "seconds": round(time.perf_counter() - started, 1),
    }
    from .pair_report import draw, write_report

    part = output / ".results.json.tmp"
    part.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, output / "results.json")
    draw(results, output / "pairs.png")
    write_report(output, results, worst_cases(seen, worst))
    return results


def usable(preferences: Sequence[Preference], counts: Counter[str]) -> list[Preference]:
    """The pairs that can be judged; the others are counted."""
    kept = []
    for preference in preferences:
        if (reason := preference_fault(preference)) is not None:
            counts[f"dropped: {reason}"] += 1
            continue
        kept.append(preference)
    counts["pairs"] = len(kept)
    return kept


def blind_figures(seen: Sequence[PairCase | None], blind: Sequence[PairCase | None], options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The blind accuracies beside the seen ones, on the pairs that have both."""
    both = [(one, other) for one, other in zip(seen, blind, strict=True) if one is not None and other is not None]
    if not both:
        return None
    with_picture, without = (evaluate_pairs([case.judged for case in side], **options) for side in zip(*both, strict=True))
    keep = [name for name in without["figures"] if name.startswith(("accuracy_", "macro_", "excluded", "unparsed"))]
    return {
        "pairs": len(both),
        "figures": {name: without["figures"][name] for name in keep},
        "seen": {name: with_picture["figures"][name] for name in keep},
    }


def cost(rows: Sequence[Mapping[str, Any] | None]) -> dict[str, Any]:
    """Tokens and seconds of all comparisons, and of one."""
    found = [row for row in rows if row is not None]
    total = {name: sum(row[name] for row in found) for name in ("read", "written", "seconds")}
    return {name: round(value, 3) for name, value in total.items()} | {
        f"{name}_per_pair": round(value / max(1, len(found)), 4) for name, value in total.items()
    }


def worst_cases(cases: Sequence[PairCase], count: int) -> list[PairCase]:
    """Pairs that the scorer has wrong, the surest first; then those that it did not decide."""

    def order(case: PairCase) -> tuple[bool, float]:
        return case.judged.right is None, case.comparison.logit or 0.0

    return sorted((case for case in cases if case.judged.right is not True), key=order)[: max(0, count)]
