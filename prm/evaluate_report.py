"""What `vlrm eval steps` leaves for the eye: the reliability plot, and a page with every figure and the worst cases."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..rm.page import percent, picture, table, write_page
from ..types import InputError

COLUMNS = {"scorer": "scorer", "random": "random", "always_right": "always right", "length": "length"}
LABELS = {
    "macro_f1": "macro-F1 of steps",
    "f1_right": "F1 of right steps",
    "f1_wrong": "F1 of wrong steps",
    "process_f1": "ProcessBench F1",
    "accuracy_on_faulty": "first error named, faulty solutions",
    "accuracy_on_sound": "cleared, sound solutions",
    "first_error_accuracy": "first-error accuracy",
    "perception_recall": "recall of perception errors",
    "reasoning_recall": "recall of reasoning errors",
    "auc": "AUC of step scores",
    "ece": "calibration error (ECE)",
    "temperature": "temperature (above 1: too sure)",
    "ece_after_temperature": "ECE after temperature, cross-fitted",
    "parse_failure_rate": "steps not readable",
}
PAGE_STYLE = """
.case { border-top: 2px solid #bbb; padding: 1em 0; overflow: auto; } .case > img { max-width: 240px; float: left; margin: 0 1em 1em 0; }
.step { display: grid; grid-template-columns: 5.5em 5.5em 3.5em 1fr; gap: .6em; font-size: 13px; }
.step > span:first-child, .step > span:nth-child(2) { border-radius: 3px; padding: 0 .3em; text-align: center; align-self: start; }
"""


def metric_rows(metrics: Mapping[str, Any], intervals: bool = False) -> list[list[str]]:
    """A row for each metric: its name, the scorer's figure and interval, the baselines' figures (with `intervals` theirs too); "-" where
    there is none."""

    def shown(name: str, figure: Mapping[str, Any] | None, *keys: str) -> str:
        if figure is None:
            return "-"
        digits = (lambda value: f"{value:.2f}") if name == "temperature" else percent
        value, interval = digits(figure["value"]), " to ".join(map(digits, figure["ci95"]))
        return {("value",): value, ("ci95",): interval}.get(keys, f"{value} ({interval})")

    rows = []
    for name, label in LABELS.items():
        found = {column: metrics.get(column, {}).get(name) for column in COLUMNS}
        if not any(found.values()):
            continue
        own = [shown(name, found["scorer"], "value"), shown(name, found["scorer"], "ci95")] if "scorer" in metrics else []
        keys = ("value", "ci95") if intervals else ("value",)
        rows.append([label, *own, *[shown(name, found[column], *keys) for column in list(COLUMNS)[1:]]])
    return rows


def metric_head(metrics: Mapping[str, Any]) -> list[str]:
    return ["%", *(["scorer", "95 % interval"] if "scorer" in metrics else []), *list(COLUMNS.values())[1:]]


def summary(results: Mapping[str, Any]) -> list[str]:
    """What was measured, in a few lines."""
    metrics = results["metrics"]
    dropped = ", ".join(f"{count} {reason.removeprefix('dropped: ')}" for reason, count in results["counts"].items() if reason != "read")
    lines = [
        f"{results['solutions']} solutions with step labels of {results['counts']['read']} rows"
        + (f" (left out: {dropped})" if dropped else ""),
        f"measured on {metrics['solutions']}: {metrics['faulty']} with an error; {metrics['steps']} labelled steps, "
        f"{metrics['wrong_steps']} wrong, {metrics['neutral_steps']} more without a label",
    ]
    lines += [f"not scored: {count}, {reason}" for reason, count in results["unscored"].items()]
    if results["scorer"] and not results["scored"]:
        lines.append("nothing was scored, so there are only baselines")
    return lines


def draw_reliability(metrics: Mapping[str, Any], path: Path) -> bool:
    """The reliability diagram: share of right steps against the mean score of each bin, and how many steps a bin holds. Without scores
    nothing is drawn, an earlier plot is removed, and the answer is False."""
    if not metrics.get("reliability"):
        path.unlink(missing_ok=True)
        return False
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    bins = [row for row in metrics["reliability"] if row["count"]]
    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(5.2, 6), sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="#999", linestyle="--", linewidth=1)
    upper.plot([row["score"] for row in bins], [row["right"] for row in bins], color="#1a56c4", marker="o")
    upper.set_ylabel("share of steps that are right")
    upper.set_title(
        f"ECE {percent(metrics['scorer']['ece']['value'])} %, temperature {metrics['scorer']['temperature']['value']:.2f}", fontsize=10
    )
    every = metrics["reliability"]
    lower.bar([row["low"] for row in every], [row["count"] for row in every], width=1 / len(every), align="edge", color="#b9cdf0")
    lower.set_ylabel("steps")
    lower.set_xlabel("P(right) that the scorer gave")
    for axes in (upper, lower):
        axes.set_xlim(-0.02, 1.02)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    part = path.with_name(f".{path.name}.tmp")
    figure.savefig(part, dpi=150, format="png")
    pyplot.close(figure)
    os.replace(part, path)
    return True


def write_report(folder: Path, results: Mapping[str, Any], cases: Sequence[tuple[float, Any]]) -> None:
    metrics = results["metrics"]
    parts = ["<h1>Steps judged, against the truth</h1>", f"<p>{html.escape(results['data'])}</p>"]
    parts.append("<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in summary(results)) + "</ul>")
    if results["scorer"]:
        named = ", ".join(f"{name}: {value}" for name, value in results["scorer"].items() if value not in (None, {}, ""))
        parts.append(f"<p class='note'>{html.escape(named)}</p>")
    parts += [
        table(metric_head(metrics), metric_rows(metrics, True)),
        "<p class='note'>Intervals: bootstrap over solutions. Random calls "
        "a step right at the base rate; length calls long steps wrong.</p>",
    ]
    if "all" in results:
        parts += [
            "<h2>Where what was not scored counts as unreadable</h2>",
            table(metric_head(results["all"]), metric_rows(results["all"], True)),
        ]
    if (folder / "reliability.png").exists():
        plot = base64.b64encode((folder / "reliability.png").read_bytes()).decode()
        parts += [
            "<h2>Calibration</h2>",
            f"<img alt='reliability diagram' width='420' src='data:image/png;base64,{plot}'>",
            bins_table(metrics),
        ]
    if results["by_source"]:
        parts += ["<h2>By source</h2>", source_table(results["by_source"])]
    if cases:
        parts += [
            f"<h2>The {len(cases)} worst cases</h2>",
            "<p>By mean distance of score and truth. Each step: what the scorer says, what is true, its score. ",
            "<span class='good'>right</span>, <span class='bad'>wrong</span>, <span class='unread'>no label, or not readable</span>.</p>",
            *[case_block(miss, case) for miss, case in cases],
        ]
    write_page(folder / "report.html", "vlrm eval steps", parts, PAGE_STYLE)


def bins_table(metrics: Mapping[str, Any]) -> str:
    rows = [
        [f"{row['low']:.1f} to {row['high']:.1f}", row["count"], percent(row["score"]), percent(row["right"])]
        for row in metrics["reliability"]
    ]
    return table(["score", "steps", "mean score %", "right %"], rows)


def source_table(sources: Mapping[str, Any]) -> str:
    keys = ("macro_f1", "process_f1", "first_error_accuracy")
    rows = [
        [name or "(none)", row["solutions"], row["wrong_steps"], *[percent(row[key] and row[key]["value"]) for key in keys]]
        for name, row in sources.items()
    ]
    return table(["source", "solutions", "wrong steps", *[LABELS[key] for key in keys]], rows)


def case_block(miss: float, case: Any) -> str:
    record, row = case.record, case.row
    lines = []
    for i, (text, said, true, score) in enumerate(zip(record.steps, row["verdicts"], case.truth, row["steps"], strict=True)):
        title = html.escape(row["analyses"][i]) if i < len(row["analyses"]) else ""
        cells = f"{_flag(said)}{_flag(true, 'no label')}<span>{score:.2f}</span><span>{i + 1}. {html.escape(text)}</span>"
        lines.append(f"<div class='step' title='{title}'>{cells}</div>")
    if row["correction"] and row["first_error"] is not None:
        lines.append(f"<p class='fix'>step {row['first_error'] + 1} should be: {html.escape(row['correction'])}</p>")
    head = f"<p><b>{html.escape(record.id)}</b> <span class='note'>{html.escape(record.source)}, mean distance {miss:.2f}</span></p>"
    return f"<div class='case'>{_pictures(record.images)}{head}<p>{html.escape(record.question)}</p>{''.join(lines)}</div>"


def _flag(flag: bool | None, unknown: str = "unread") -> str:
    colour, word = ("unread", unknown) if flag is None else ("good", "right") if flag else ("bad", "wrong")
    return f"<span class='{colour}'>{word}</span>"


def _pictures(images: Sequence[Any]) -> str:
    try:
        return "".join(picture(image) for image in images)
    except InputError as error:
        return f"<p class='wrong'>{html.escape(str(error))}</p>"
