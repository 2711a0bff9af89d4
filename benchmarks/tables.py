"""Makes the tables of the docs from `benchmarks/results/NAME.json`: `python benchmarks/tables.py` (`--check`: only tells what is stale).

A table stands between `<!-- table:NAME -->` and `<!-- /table:NAME -->`; `claims:NAME` instead of `table:NAME` gives the claims.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"(<!-- (table|claims):([\w.-]+) -->\n).*?(<!-- /\2:\3 -->)", re.DOTALL)


def main(arguments: Sequence[str]) -> int:
    stale = []
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = path.read_text()
        filled = fill(text, ROOT / "benchmarks" / "results")
        if filled != text:
            stale.append(path)
            if "--check" not in arguments:
                path.write_text(filled)
    for path in stale:
        print(f"{path.relative_to(ROOT)}: tables {'are stale' if '--check' in arguments else 'written'}")
    return 1 if stale and "--check" in arguments else 0


def fill(text: str, results: Path) -> str:
    """The text with every table made anew; a table without a result says so."""

    def block(match: re.Match[str]) -> str:
        opening, kind, name, closing = match.groups()
        path = results / f"{name}.json"
        if not path.exists():
            return f"{opening}Not measured yet: there is no `benchmarks/results/{name}.json`.\n{closing}"
        result = json.loads(path.read_text())
        parts = alike(result["rows"])
        body = "\n".join(map(markdown, parts)) + "\n" + origin(result) if kind == "table" else claims(result["claims"])
        return f"{opening}{body}{closing}"

    return BLOCK.sub(block, text)


def alike(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The rows of each table: one that shares at most its first column with those before begins a table of its own."""
    parts: list[list[Mapping[str, Any]]] = []
    for row in rows:
        if parts and set(list(row)[1:]) & {column for known in parts[-1] for column in known}:
            parts[-1].append(row)
        else:
            parts.append([row])
    return parts


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table with the columns of all rows, in order of first appearance; numbers are set right."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    right = [all(isinstance(row.get(c), (int, float, type(None))) for row in rows) for c in columns]
    lines = [columns, ["--:" if number else "---" for number in right]]
    lines += [[shown(row.get(column)) for column in columns] for row in rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def claims(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every claim with its goal, what was measured, and yes or no."""
    return markdown([{"claim": row["name"], "goal": row["goal"], "measured": row["measured"], "holds": row["holds"]} for row in rows])


def origin(result: Mapping[str, Any]) -> str:
    """Where a table comes from, in one line."""
    machine = result["machine"]
    if isinstance(machine, Mapping):
        machine = f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['gpus']) or 'no GPU'}"
    seeds = ", ".join(map(str, result["seeds"]))
    return f"`{result['command']}`; n = {result['n']}, seeds {seeds}; commit {result['commit'] or 'unknown'}; {machine}.\n"


def shown(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, (list, tuple)):
        return (" to " if len(value) == 2 else ", ").join(map(shown, value))  # an interval, or a list
    return str(value).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
