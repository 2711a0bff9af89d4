"""How well a scorer judges steps, on a file of solutions with known step labels: `vlrm eval steps` without the command line.

    vlrm eval steps --data test.parquet --scorer runs/gm_prm --output runs/eval

Writes into the output folder: scores.jsonl (what an interrupted run goes on from), results.json, reliability.png and report.html.
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

from ..rm.step_eval import ScoredSolution, evaluate
from ..rm.step_metrics import Flags, Judged
from ..types import InputError, Scorer
from .convert import import_records
from .records import StepRecord
from .score_file import score_file
from .truth import Truth, error_kinds, step_truth


@dataclass(frozen=True)
class Case:
    """A solution of the data, what is true of its steps, and what the scorer said (None where nothing was scored)."""

    record: StepRecord
    truth: Truth
    row: Mapping[str, Any] | None = None

    @property
    def scored(self) -> bool:
        return self.row is not None and self.row["error"] is None


def labelled_cases(records: Sequence[StepRecord], counts: Counter[str], truth_threshold: float = 0.0) -> list[Case]:
    """The solutions with a label on some step; the others are counted."""
    cases = []
    for record in records:
        truth = step_truth(record, truth_threshold)
        if truth is None or not any(label is not None for label in truth):
            counts["dropped: no step has a label"] += 1
            continue
        cases.append(Case(record, truth))
    return cases


def scored_solution(case: Case, threshold: float | None = None) -> ScoredSolution:
    """The case as figures. A step that was read is right from `threshold` on; None: as the scorer's verdict says. Without a score no step
    was read."""
    kinds = [kind if label is False else None for kind, label in zip(error_kinds(case.record), case.truth, strict=True)]
    lengths = [len(step.split()) for step in case.record.steps]
    said: Flags = [None] * len(case.truth)
    scores = None
    if case.scored and case.row is not None:
        scores = case.row["steps"]
        said = case.row["verdicts"]
        if threshold is not None:
            said = [None if flag is None else score >= threshold for flag, score in zip(said, scores, strict=True)]
    return ScoredSolution(Judged(said, case.truth, kinds), lengths, scores)


def evaluate_steps(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    scorer: Callable[[], Scorer] | None = None,
    *,
    format: str = "auto",
    neutral: str = "null",
    image_root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    threshold: float | None = None,
    truth_threshold: float = 0.0,
    resamples: int = 1000,
    seed: int = 0,
    chunk: int = 32,
    worst: int = 30,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
    loaded: Callable[[int], None] = lambda total: None,
) -> dict[str, Any]:
    """Scores every solution of `data` and returns what results.json holds.

    `scorer` makes the scorer (None: only the baselines are measured). `format`, `neutral` and `image_root` are those of `import_records`.
    `threshold`: see `scored_solution`; `truth_threshold`: see `step_truth`. `settings` names the scorer: what its scores depend on.
    The results:

    metrics   figures of the scorer and the baselines on the solutions that were scored (all of them, if nothing was)
    all       the same where a solution that was not scored counts as one without a readable verdict; only if there are such
    unscored  how many solutions were not scored, by reason (numbers shown as #)
    counts    rows read, and dropped for which reason
    """
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder to write to")
    if threshold is not None and not 0 <= threshold <= 1:
        raise InputError(f"threshold must lie between 0 and 1, got {threshold}")
    if resamples < 1:
        raise InputError(f"resamples must be at least 1, got {resamples}")
    started, counts = time.perf_counter(), Counter[str]()
    records = list(import_records(data, format, neutral=neutral, image_root=image_root, limit=limit, counts=counts))
    cases = labelled_cases(records, counts, truth_threshold)
    if not cases:
        raise InputError(f"{data}: no solution has a step label; give data with labels, judge, critiques or mc_scores")
    loaded(len(cases))
    output.mkdir(parents=True, exist_ok=True)
    if scorer is not None:
        rows = score_file(
            [case.record for case in cases], scorer, output / "scores.jsonl", settings=settings or {}, chunk=chunk, progress=progress
        )
        cases = [Case(case.record, case.truth, row) for case, row in zip(cases, rows, strict=True)]
    progress(len(cases))
    options: dict[str, Any] = {"resamples": resamples, "seed": seed}
    scored = [case for case in cases if case.scored]
    solutions = [scored_solution(case, threshold) for case in (scored or cases)]
    errors = [case.row["error"] for case in cases if case.row is not None and not case.scored]
    reasons = Counter(re.sub(r"(?<![\w/.])\d[\d,.]*(?![\w/])", "#", error) for error in errors)
    results = {
        "data": str(data),
        "scorer": dict(settings or {}),
        "solutions": len(cases),
        "scored": len(scored),
        "unscored": dict(reasons.most_common()),
        "counts": dict(counts),
        "threshold": threshold,
        "truth_threshold": truth_threshold,
        "neutral": neutral,
        "seed": seed,
        "metrics": evaluate(solutions, baselines_only=not scored, **options),
        "by_source": by_source(scored or cases, threshold, bool(scored), seed),
    }
    if scorer is not None and reasons:
        results["all"] = evaluate([scored_solution(case, threshold) for case in cases], **options)
    results["seconds"] = round(time.perf_counter() - started, 1)
    from .evaluate_report import draw_reliability, write_report

    part = output / ".results.json.tmp"
    part.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, output / "results.json")
    draw_reliability(results["metrics"], output / "reliability.png")
    write_report(output, results, worst_cases(scored, worst))
    return results


def by_source(cases: Sequence[Case], threshold: float | None, scored: bool, seed: int) -> dict[str, Any]:
    """For each source of the data its number of solutions and, of the scorer or else of always saying right, three figures."""
    sources = sorted({case.record.source for case in cases})
    table = {}
    for source in sources if len(sources) > 1 else ():
        mine = [scored_solution(case, threshold) for case in cases if case.record.source == source]
        found = evaluate(mine, baselines_only=not scored, resamples=200, seed=seed)
        figures = found["scorer" if scored else "always_right"]
        keep = ("macro_f1", "process_f1", "first_error_accuracy")
        table[source] = {"solutions": len(mine), "wrong_steps": found["wrong_steps"], **{name: figures[name] for name in keep}}
    return table


def worst_cases(cases: Sequence[Case], count: int) -> list[tuple[float, Case]]:
    """The scored solutions with the largest mean |score - truth| over labelled steps, worst first."""

    def miss(case: Case) -> float:
        scores = case.row["steps"] if case.row else ()
        gaps = [abs(score - label) for score, label in zip(scores, case.truth, strict=True) if label is not None]
        return sum(gaps) / len(gaps)

    return sorted(((miss(case), case) for case in cases), key=lambda pair: -pair[0])[: max(0, count)]
