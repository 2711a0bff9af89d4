"""A GRPO run as one page: `vlrm report RUN`. Drawn from metrics.jsonl alone, so also while the run goes on."""

from __future__ import annotations

import base64
import html
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..rm.page import table, write_page
from ..types import InputError
from .grpo_train import CARD

Row = Mapping[str, Any]
# title: (names, or beginnings of names that end with /; whether held-out values are drawn too)
PLOTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "reward": (("reward",), True),
    "gold accuracy": (("gold",), True),
    "mean of each reward": (("rewards/*/mean",), False),
    "spread of each reward": (("rewards/*/std",), False),
    "share without a score": (("none/",), False),
    "groups that teach nothing": (("zero_variance/", "frac_reward_zero_std"), False),
    "reward against length (rank correlation inside groups)": (("length_correlation/",), False),
    "completion length, tokens": (("completions/mean_length",), True),
    "cut off, empty, repeated 6-grams": (("completions/clipped_ratio", "empty", "repeated_ngrams"), False),
    "without the picture: reward, and what the picture adds": (("blind/", "blind_gap/"), False),
    "entropy and KL": (("entropy", "kl"), False),
    "gradient norm": (("grad_norm",), False),
    "shapers": (("shaper/", "vppo/", "pearl/"), False),
}


def write_report(run: str | os.PathLike[str], output: str | os.PathLike[str] | None = None) -> Path:
    """Writes the page and returns its path. Raises InputError for a folder without a GRPO run."""
    folder = Path(run)
    rows = read_metrics(folder / "metrics.jsonl")
    card = folder / CARD
    summary = json.loads(card.read_text(encoding="utf-8"))["training"] if card.is_file() else {}
    alarms = [row["alarm"] for row in rows if "alarm" in row]
    parts = [f"<h1>GRPO run {html.escape(folder.name)}</h1>"]
    parts += [f"<p class='wrong'>Alarm, {html.escape(alarm)}.</p>" for alarm in alarms] or ["<p class='right'>No alarm.</p>"]
    parts += [table(("", "first", "best", "last"), figures(rows))]
    if summary:
        kept = {"steps": summary["steps"], "policy kept": f"step {summary['kept_step']}", "unscored": summary["unscored"]}
        parts += [table(("", ""), [(name, json.dumps(value)) for name, value in {**kept, **summary["counts"]}.items()])]
    else:
        parts += ["<p class='note'>The run is not finished.</p>"]
    for title, (names, held_out) in PLOTS.items():
        if series := find(rows, names, held_out):
            parts += [f"<h2>{html.escape(title)}</h2>", draw(series)]
    if summary:
        recipe = [(name, json.dumps(value, ensure_ascii=False)) for name, value in summary["run"].items()]
        parts += ["<h2>recipe</h2>", table(("", ""), recipe)]
    path = Path(output) if output is not None else folder / "report.html"
    write_page(path, f"GRPO run {folder.name}", parts)
    return path


def read_metrics(path: Path) -> list[Row]:
    """The lines of a metrics.jsonl; a last one that is just being written is left out."""
    if not path.is_file():
        raise InputError(f"{path.parent}: has no metrics.jsonl; give the output folder of a `vlrm train --method grpo`")
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    if not any("reward" in row or "eval_reward" in row for row in rows):
        raise InputError(f"{path}: holds no log of a GRPO run yet")
    return rows


def figures(rows: Sequence[Row]) -> list[tuple[str, str, str, str]]:
    """First, best and last value of what a reader looks for first; held out where it was measured."""
    lines = []
    for name, title in (
        ("eval_gold", "gold accuracy, held out"),
        ("eval_reward", "reward, held out"),
        ("gold", "gold accuracy"),
        ("reward", "reward"),
    ):
        values = [row[name] for row in rows if number(row.get(name))]
        if values:
            lines.append((title, *(f"{value:.3f}" for value in (values[0], max(values), values[-1]))))
    return lines


def find(rows: Sequence[Row], names: Sequence[str], held_out: bool) -> dict[str, list[tuple[int, float]]]:
    """Curves by name: (step, value) pairs."""
    series: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for key, value in row.items():
            bare = key.removeprefix("eval_")
            if number(value) and (bare == key or held_out) and any(matches(bare, name) for name in names):
                series.setdefault(f"{bare}, held out" if bare != key else key, []).append((row["step"], value))
    return series


def matches(key: str, name: str) -> bool:
    if "*" in name:
        before, after = name.split("*")
        return key.startswith(before) and key.endswith(after)
    return key.startswith(name) if name.endswith("/") else key == name


def number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def draw(series: Mapping[str, Sequence[tuple[int, float]]]) -> str:
    """The curves as a picture inside the page; training values thin, with their running mean."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 2.6))
    for name, points in series.items():
        steps, values = zip(*points, strict=True)
        if name.endswith("held out"):
            axis.plot(steps, values, marker="o", markersize=4, label=name)
            continue
        (line,) = axis.plot(steps, running_mean(values), linewidth=1.5, label=name)
        axis.plot(steps, values, linewidth=0.6, alpha=0.4, color=line.get_color())
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return f"<img alt='' src='data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}'>"


def running_mean(values: Sequence[float], share: float = 0.05) -> list[float]:
    """The mean of the last values, a share of them all but at least one."""
    width = max(1, round(share * len(values)))
    return [sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
