"""What `vlrm eval ranks` leaves for the eye: a page with every figure and the worst rankings with their pictures."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .page import percent, pictures, table, write_page
from .ranks import RankItem

LONGEST = 170  # pixels of a picture on the page
_STYLE = """
.case { border-top: 2px solid #bbb; padding: 1em 0; } .row { display: flex; gap: .8em; flex-wrap: wrap; font-size: 13px; }
.row > div { padding: .4em; border-radius: 6px; max-width: 190px; } .row img { max-width: 170px; max-height: 170px; display: block; }
"""


def figure_rows(metrics: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: a metric in each row, a column for the scorer and each baseline."""

    def shown(figure: Mapping[str, Any]) -> str:
        interval = f" ({figure['ci95'][0]:.3f} to {figure['ci95'][1]:.3f})" if "ci95" in figure else ""
        return f"{figure['value']:.3f}{interval}"

    columns = list(metrics)
    return ["metric", *columns], [[name, *(shown(metrics[column][name]) for column in columns)] for name in metrics[columns[0]]]


def edit_rows(edits: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of EditReward-Bench: strict and at-least accuracy, in percent, of each dimension, mean over task types first."""
    types = sorted({name for row in edits.values() for name in row["task_types"]})
    head = ["%", *[f"{name.replace('_', ' ')} {how}" for name in edits for how in (">", ">=")]]
    rows = [["mean over task types", *[percent(row[how]) for row in edits.values() for how in ("strict", "at_least")]]]
    for name in types:
        cells = [row["task_types"].get(name, {}) for row in edits.values()]
        rows.append([name, *[percent(cell.get(how)) for cell in cells for how in ("strict", "at_least")]])
    return head, rows


def write_rank_report(path: Path, results: Mapping[str, Any], cases: Sequence[tuple[RankItem, Sequence[float], float]]) -> None:
    """The page; `cases` are (instance, scores of its candidates, Kendall's tau), the worst first."""
    named = ", ".join(f"{name}: {value}" for name, value in results["scorer"].items() if value not in (None, {}, ""))
    counted = {"instances": results["instances"], "groups": results["groups"], **results["counts"], **results.get("unscored", {})}
    parts = [
        "<h1>Rankings of pictures, against the true order</h1>",
        f"<p>{html.escape(results['data'])}</p><p class='note'>{html.escape(named)}</p>",
        "<ul>" + "".join(f"<li>{html.escape(f'{name}: {count}')}</li>" for name, count in counted.items()) + "</ul>",
    ]
    if results["metrics"]:
        parts.append(table(*figure_rows(results["metrics"])))
        note = "Kendall and Spearman: of the items' ranks; with _list: of the index lists, as published. Footrule: 0 is best."
        parts.append(f"<p class='note'>{note} Intervals: bootstrap over groups.</p>")
    if results.get("edits"):
        parts += ["<h2>By task type</h2>", table(*edit_rows(results["edits"]))]
    if cases:
        parts += [f"<h2>The {len(cases)} worst rankings</h2>", "<p>The reference, then the candidates in their true order.</p>"]
        parts += [_case(*case) for case in cases]
    write_page(path, "vlrm eval ranks", parts, _STYLE)


def _case(item: RankItem, scores: Sequence[float], tau: float) -> str:
    assert item.order is not None
    said = sorted(range(len(scores)), key=lambda k: -scores[k])
    cells = [f"<div>{pictures([item.reference], LONGEST)}reference</div>"]
    for place, k in enumerate(item.order):
        colour = "good" if said[place] == k else "bad"
        cells.append(f"<div class='{colour}'>{pictures([item.candidates[k]], LONGEST)}{scores[k]:.3f}, ranked {said.index(k) + 1}</div>")
    head = f"<p><b>{html.escape(item.id)}</b> <span class='note'>Kendall {tau:.2f}; {html.escape(item.question)}</span></p>"
    return f"<div class='case'>{head}<div class='row'>{''.join(cells)}</div></div>"
