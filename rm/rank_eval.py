"""How well a scorer ranks candidates by their consistency with a reference: `vlrm eval ranks` without the command line.

Every metric of `rank_metrics` with its interval (bootstrap over groups: instances of one prompt share pictures), beside what chance and
the pixels alone get, what the two orders of a pair agree on, and the cost.
"""

from __future__ import annotations

import json
import math
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..types import InputError, Scorer
from .edit_metrics import edit_figures
from .rank_metrics import METRICS, chance, predicted_order, rank_figures
from .rank_report import write_rank_report
from .ranks import RankItem, read_ranks
from .scoring import score_samples
from .similarity import PixelSimilarity
from .stats import cluster_bootstrap


def instance_figures(item: RankItem, scores: Sequence[float], ties: str = "random", seed: int = 0) -> dict[str, float]:
    """The metrics of one instance. `ties`: "random" orders equal scores by lot (inferred: a constant scorer is then at chance), "file"
    leaves them as the file has them, as the released code does."""
    return rank_figures(predicted_order(scores, f"{seed} {item.id}" if ties == "random" else None), item.order)


def summarize(
    rows: Sequence[Mapping[str, float]], groups: Sequence[Any], *, resamples: int = 10_000, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """{metric: {value, ci95}} of the instances' figures."""
    figures = {}
    for name in rows[0]:
        value, low, high, _ = cluster_bootstrap([row[name] for row in rows], groups, resamples=resamples, seed=seed)
        figures[name] = {"value": value, "ci95": [low, high]}
    return figures


def compare(
    first: Sequence[Mapping[str, float]],
    second: Sequence[Mapping[str, float]],
    groups: Sequence[Any],
    *,
    resamples: int = 10_000,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """{metric: {difference, ci95, p}} of two scorers on the same instances, by paired bootstrap over groups."""
    figures = {}
    for name in first[0]:
        gaps = [a[name] - b[name] for a, b in zip(first, second, strict=True)]
        value, low, high, p = cluster_bootstrap(gaps, groups, resamples=resamples, seed=seed)
        figures[name] = {"difference": value, "ci95": [low, high], "p": p}
    return figures


def evaluate_ranks(
    data: str | os.PathLike[str],
    output: str | os.PathLike[str],
    scorer: Callable[[], Scorer] | None = None,
    *,
    instruction: str = "own",
    ties: str = "random",
    image_root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    split: str | None = None,
    chunk: int = 64,
    resamples: int = 10_000,
    seed: int = 0,
    worst: int = 30,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] = lambda done: None,
    loaded: Callable[[int], None] = lambda total: None,
) -> dict[str, Any]:
    """Ranks every instance of `data` and returns what `output/results.json` holds; `scores.jsonl` beside it is what an interrupted run goes
    on from, report.html shows the figures and the `worst` rankings with their pictures; pictures/ holds those that were inside the data.

    `scorer` makes the scorer (None: the baselines alone). `instruction`: see `RankItem.samples`; `ties`: see `instance_figures`. An
    instance without a true order, or with a candidate that could not be scored, is left out and counted; the baselines stand on the same
    instances as the scorer.
    """
    output, started, counts = Path(output), time.perf_counter(), Counter[str]()
    if output.exists() and not output.is_dir():
        raise InputError(f"{output} is a file; give a folder to write to")
    if instruction not in ("own", "ask", "theme", "criteria"):
        raise InputError(f"instruction must be own, ask, theme or criteria, got {instruction!r}")
    if ties not in ("random", "file"):
        raise InputError(f"ties must be random or file, got {ties!r}")
    found = read_ranks(data, image_root, limit, split, output / "pictures")
    items = [item for item in found if item.order is not None]
    counts["dropped: instance without an order"] = len(found) - len(items)
    if not items:
        raise InputError(f"{data}: no instance has an order to compare with; give the column order")
    samples = [item.samples(instruction) for item in items]
    flat = [sample for group in samples for sample in group]
    loaded(len(flat))
    output.mkdir(parents=True, exist_ok=True)
    rows: list[Any] = []
    if scorer is not None:
        remembered = {**(settings or {}), "instruction": instruction}
        rows = score_samples(flat, scorer, output / "scores.jsonl", settings=remembered, chunk=chunk, progress=progress)
    values = _by_item([row["value"] for row in rows], items) if rows else []
    pixels = _by_item([score.value for score in _pixels(flat)], items)
    kept = [k for k in range(len(items)) if pixels[k] is not None and (not rows or values[k] is not None)]
    counts["instances with a candidate that was not scored"] = len(items) - len(kept)
    groups = [items[k].group or items[k].id for k in kept]
    results: dict[str, Any] = {
        "data": str(data),
        "scorer": dict(settings or {}),
        "instruction": instruction,
        "ties": ties,
        "instances": len(kept),
        "groups": len(set(groups)),
        "counts": {name: count for name, count in counts.items() if count},
        "seed": seed,
        "metrics": {},
    }
    if kept:
        options = {"resamples": resamples, "seed": seed}
        lines = {"pixels": [instance_figures(items[k], pixels[k], ties, seed) for k in kept]}
        if rows:
            lines = {"scorer": [instance_figures(items[k], values[k], ties, seed) for k in kept], **lines}
            results["tied_instances"] = sum(len(set(values[k])) < len(values[k]) for k in kept)
            results["scorer - pixels"] = compare(lines["scorer"], lines["pixels"], groups, **options)
        results["metrics"] = {name: summarize(line, groups, **options) for name, line in lines.items()}
        sizes = Counter(len(items[k].candidates) for k in kept)
        results["metrics"]["chance"] = {
            name: {"value": math.fsum(count * chance(n)[name] for n, count in sizes.items()) / len(kept)} for name in METRICS
        }
    cases: list[tuple[RankItem, Sequence[float], float]] = []
    if rows:
        results |= cost(rows)
        results["edits"] = edit_results([(items[k], values[k]) for k in kept])
        taus = {k: line["kendall"] for k, line in zip(kept, lines["scorer"], strict=True)} if kept else {}
        cases = [(items[k], values[k], tau) for k, tau in sorted(taus.items(), key=lambda pair: pair[1])[:worst] if tau < 1]
    results["seconds"] = round(time.perf_counter() - started, 1)
    part = output / ".results.json.tmp"
    part.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, output / "results.json")
    write_rank_report(output / "report.html", results, cases)
    return results


def edit_results(scored: Sequence[tuple[RankItem, Any]]) -> dict[str, Any]:
    """`edit_figures` of the instances that EditReward-Bench's columns made; {} where there are none."""
    edits = [
        (item.meta, value, item.order) for item, value in scored if item.task != "ask" and {"dimension", "task_type"} <= item.meta.keys()
    ]
    return edit_figures(*map(list, zip(*edits, strict=True))) if edits else {}


def cost(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the scores took, how far a pair's two orders lie apart on average (None where each was asked once), why some are missing."""
    spent = [row["usage"] for row in rows if "usage" in row]
    gaps = [row["details"]["order_gap"] for row in rows if "order_gap" in (row["details"] or {})]
    reasons = Counter(re.sub(r"(?<![\w/.])\d[\d,.]*(?![\w/])", "#", row["error"]) for row in rows if row["error"])
    return {
        "unscored": dict(reasons.most_common()),
        "order_gap": statistics.fmean(gaps) if gaps else None,
        "prompt_tokens": sum(usage[0] for usage in spent),
        "calls": sum(usage[2] for usage in spent),
        "scoring_seconds": round(sum(usage[3] for usage in spent), 2),
    }


def _by_item(values: Sequence[float | None], items: Sequence[RankItem]) -> list[list[float] | None]:
    """The values cut into one list for each item; None where one is missing or no number."""
    cut, start = [], 0
    for item in items:
        own = list(values[start : start + len(item.candidates)])
        start += len(own)
        cut.append(None if any(value is None or not math.isfinite(value) for value in own) else own)
    return cut


def _pixels(samples: Sequence[Any]) -> list[Any]:
    from .scoring import score_or_reason

    scorer, size = PixelSimilarity(), 256  # in parts: pictures are kept open for one call
    return [score for start in range(0, len(samples), size) for score in score_or_reason(scorer, samples[start : start + size])]
