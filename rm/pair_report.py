"""What `vlrm eval pairs` leaves for the eye: plots, and a page with every figure and the worst cases with their pictures."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .page import percent, pictures, table, write_page

LABELS = {
    "accuracy_published": "accuracy, undecided left out (published)",
    "accuracy_strict": "accuracy, undecided wrong (strict)",
    "accuracy_half": "accuracy, undecided half",
    "macro_published": "mean over groups, undecided left out",
    "macro_strict": "mean over groups, undecided wrong",
    "macro_half": "mean over groups, undecided half",
    "excluded": "undecided: left out by the published convention",
    "ties": "of these ties",
    "unparsed": "of these not readable",
    "parse_rate": "judgements that could be read",
    "longer_wins": "accuracy of always taking the longer answer",
    "length_correlation": "correlation with length, truth held fixed",
    "order_agreement": "same verdict in both orders",
    "first_share": "the answer shown first wins",
    "ece": "calibration error (ECE)",
    "ece_after_temperature": "ECE after temperature, cross-fitted",
    "temperature": "temperature (above 1: too sure)",
}
_PLAIN = ("length_correlation", "temperature")
_STYLE = """
.case { border-top: 2px solid #bbb; padding: 1em 0; overflow: auto; } .case > img { max-width: 240px; float: left; margin: 0 1em 1em 0; }
.answers { display: grid; grid-template-columns: 1fr 1fr; gap: 1em; clear: both; } .answers > div { padding: .5em; white-space: pre-wrap; }
"""


def shown(name: str, figure: Mapping[str, Any] | None, part: str = "both") -> str:
    """A figure as text, its interval, or both; "-" where there is none."""
    if figure is None:
        return "-"
    digits = (lambda value: f"{value:.2f}") if name in _PLAIN else percent
    value = digits(figure["value"])
    interval = " to ".join(map(digits, figure["ci95"])) if figure["ci95"] else ""
    return {"value": value, "ci95": interval}.get(part, f"{value} ({interval})" if interval else value)


def metric_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A row for each figure: its name, value and interval, and the blind controls' values."""
    figures, blind = results["metrics"]["figures"], results["blind"]
    rows = []
    for name, label in LABELS.items():
        if figures.get(name) is not None:
            controls = [shown(name, (part or {"figures": {}})["figures"].get(name), "value") for part in blind.values()]
            rows.append([label, shown(name, figures[name], "value"), shown(name, figures[name], "ci95"), *controls])
    return rows


def metric_head(results: Mapping[str, Any]) -> list[str]:
    names = {"removed": "picture removed", "other": "another item's picture"}
    return ["%", "scorer", "95 % interval", *[names[name] for name in results["blind"]]]


def group_rows(results: Mapping[str, Any]) -> list[list[str]]:
    groups = results["metrics"]["groups"]
    columns = ("published", "strict", "half", "longer_wins")
    return [[name or "(none)", str(row["pairs"]), *[shown(column, row[column]) for column in columns]] for name, row in groups.items()]


GROUP_HEAD = ["group", "pairs", "published", "strict", "half", "longer wins"]


def summary(results: Mapping[str, Any]) -> list[str]:
    """What was measured, in a few lines."""
    counts, spent = results["counts"], results["cost"]
    dropped = ", ".join(f"{count} {name.removeprefix('dropped: ')}" for name, count in counts.items() if name != "pairs")
    lines = [f"{counts['pairs']} pairs" + (f" (left out: {dropped})" if dropped else "")]
    lines += [f"not compared: {count}, {reason}" for reason, count in results["errors"].items()]
    lines.append(
        f"{spent['read']:,.0f} tokens read and {spent['written']:,.0f} written in {spent['seconds']:,.1f} s: "
        f"{spent['read_per_pair']:,.1f} and {spent['written_per_pair']:,.1f} in {spent['seconds_per_pair']:.3f} s a pair"
    )
    return lines


def card_table(results: Mapping[str, Any]) -> str:
    """The figures as a table for a model card."""
    head = metric_head(results)
    lines = [head, ["---"] * len(head), *metric_rows(results)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(results: Mapping[str, Any], path: Path) -> None:
    """Accuracies with their intervals by group and control, the reliability diagram, and accuracy over votes where there are any."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics, curve = results["metrics"], results["metrics"]["by_votes"]
    figure, axes = pyplot.subplots(1, 3 if curve else 2, figsize=(13 if curve else 9, 3.8))
    bars = [("all", metrics["figures"]["accuracy_strict"], "#1a56c4")]
    bars += [(name or "(none)", row["strict"], "#6f97dd") for name, row in metrics["groups"].items()]
    bars += [(f"blind: {name}", part and part["figures"]["accuracy_strict"], "#c0392b") for name, part in results["blind"].items()]
    bars.append(("longer wins", metrics["figures"]["longer_wins"], "#888"))
    bars = [bar for bar in bars if bar[1] is not None]
    values = [bar[1]["value"] for bar in bars]
    gaps = [
        [max(0.0, bar[1]["value"] - bar[1]["ci95"][0]) for bar in bars],
        [max(0.0, bar[1]["ci95"][1] - bar[1]["value"]) for bar in bars],
    ]
    axes[0].barh(range(len(bars)), values, xerr=gaps, color=[bar[2] for bar in bars])
    axes[0].set_yticks(range(len(bars)), [bar[0] for bar in bars])
    axes[0].invert_yaxis()
    axes[0].axvline(0.5, color="#999", linestyle="--", linewidth=1)
    axes[0].set_xlim(0, 1)
    axes[0].set_title("accuracy, undecided wrong", fontsize=10)
    bins = [row for row in metrics["reliability"] or () if row["count"]]
    axes[1].plot([0, 1], [0, 1], color="#999", linestyle="--", linewidth=1)
    axes[1].plot([row["score"] for row in bins], [row["right"] for row in bins], color="#1a56c4", marker="o")
    axes[1].set_title("P(better): said, and true", fontsize=10)
    if curve:
        for column, colour in (("published", "#1a56c4"), ("strict", "#c0392b")):
            axes[2].plot([row["votes"] for row in curve], [row[column] for row in curve], color=colour, marker="o", label=column)
        axes[2].set_title("accuracy over votes", fontsize=10)
        axes[2].legend(fontsize=8)
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    part = path.with_name(f".{path.name}.tmp")
    figure.savefig(part, dpi=130, format="png")
    pyplot.close(figure)
    os.replace(part, path)


def write_report(folder: Path, results: Mapping[str, Any], cases: Sequence[Any]) -> None:
    named = ", ".join(f"{name}: {value}" for name, value in results["scorer"].items() if value not in (None, {}, ""))
    plot = base64.b64encode((folder / "pairs.png").read_bytes()).decode()
    parts = [
        "<h1>Pairs of answers, judged against what is known</h1>",
        f"<p>{html.escape(results['data'])}</p><p class='note'>{html.escape(named)}</p>",
        "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in summary(results)) + "</ul>",
        table(metric_head(results), metric_rows(results)),
        "<p class='note'>Intervals: bootstrap over pairs. A blind control says how much can be had without the right picture.</p>",
        f"<img alt='accuracies and calibration' style='max-width: 100%' src='data:image/png;base64,{plot}'>",
    ]
    if results["metrics"]["groups"]:
        parts += ["<h2>By group</h2>", table(GROUP_HEAD, group_rows(results))]
    if cases:
        parts += [f"<h2>The {len(cases)} worst cases</h2>", "<p>The surest mistakes first; the better answer stands on the left.</p>"]
        parts += [_case(case) for case in cases]
    write_page(folder / "report.html", "vlrm eval pairs", parts, _STYLE)


def _case(case: Any) -> str:
    preference, found = case.preference, case.comparison
    said = {"first": "right", "second": "wrong", "tie": "a tie", "unparsed": found.error or "not readable"}[found.said]
    sure = "" if found.logit is None else f", log-odds of the better answer {found.logit:.2f}"
    values = [None, None] if found.values is None else found.values
    heads = ["" if value is None else f"<span class='note'>{value:.3f}</span>\n" for value in values]
    answers = "".join(
        f"<div class='{colour}'>{head}{html.escape(text)}</div>"
        for colour, head, text in zip(("good", "bad"), heads, (preference.chosen, preference.rejected), strict=True)
    )
    words = "".join(f"<details><summary>judgement</summary>{html.escape(text)}</details>" for text in found.texts[:2])
    head = f"<p><b>{html.escape(preference.problem.id)}</b> <span class='note'>{html.escape(preference.group)} {said}{sure}</span></p>"
    question = f"<p>{html.escape(preference.problem.question)}</p>"
    return f"<div class='case'>{pictures(preference.problem.images)}{head}{question}<div class='answers'>{answers}</div>{words}</div>"
