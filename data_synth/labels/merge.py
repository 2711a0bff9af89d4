"""Shards of labels become one file: `vlrm synth merge`. Gaps, duplicates, damage and shards of other settings are refused.

The merged file and its report are byte for byte those that a single run would have written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...rm.rows import write_jsonl
from ...types import InputError
from .file import changed, report_path, write_report


def find_shards(output: str | os.PathLike[str]) -> list[Path]:
    """The finished shards of `output` that lie beside it, in order."""
    output = Path(output)
    pattern = re.compile(re.escape(output.stem) + r"-(\d+)-of-(\d+)\.jsonl")
    found = [(path, match) for path in output.parent.glob("*.jsonl") if (match := pattern.fullmatch(path.name))]
    return [path for path, match in sorted(found, key=lambda pair: (int(pair[1][2]), int(pair[1][1])))]


def merge_labels(inputs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes the records of the shards `inputs` to `output`, in the order of the problems; returns the merged report.

    Relative image paths are kept true to the place of the output.
    """
    output = Path(output)
    paths = [Path(path) for path in inputs] or find_shards(output)
    if not paths:
        raise InputError(f"there are no shards {output.stem}-1-of-*.jsonl beside {output}; name them with --inputs")
    if output.suffix != ".jsonl":
        raise InputError(f"the output must be a .jsonl file, got {output}")
    reports = {path: _report(path) for path in paths}
    if len(reports) < len(paths):
        raise InputError("a shard is named twice; name each once")
    first, head = paths[0], reports[paths[0]]
    chunks: dict[int, tuple[Path, list[dict[str, Any]], Mapping[str, int]]] = {}
    seen: dict[str, Path] = {}
    for path, report in reports.items():
        if difference := changed(report, head):
            raise InputError(f"{path} does not belong to {first}: {difference}; merge shards of equal settings only")
        rows = iter(_rows(path))
        for index, number, counts in report["chunks"]:
            if index in chunks:
                where = _problems(index, head)
                raise InputError(f"{where} are in both {chunks[index][0]} and {path}; leave out one of them")
            chunks[index] = path, [_moved(next(rows), path, output) for _ in range(number)], counts
            for row in chunks[index][1]:
                if row["id"] in seen:
                    raise InputError(f"record {row['id']} is in both {seen[row['id']]} and {path}; leave out one of them")
                seen[row["id"]] = path
    missing = [index for index in range(-(-head["problems"] // head["chunk"])) if index not in chunks]
    if missing:
        more = f" and {len(missing) - 1} more pieces" if len(missing) > 1 else ""
        total = max(report["shard"][1] for report in reports.values())
        lost = sorted({index % total + 1 for index in missing})
        raise InputError(
            f"{_problems(missing[0], head)}{more} are in no shard; run `vlrm synth labels` with --shard "
            + ", ".join(f"{index}/{total}" for index in lost)
        )
    write_jsonl(output, [row for index in sorted(chunks) for row in chunks[index][1]])
    units = {index: (len(chunks[index][1]), chunks[index][2]) for index in sorted(chunks)}
    return write_report(output, {name: head[name] for name in ("settings", "problems", "digest", "chunk")}, (1, 1), units)


def _report(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; give shards that `vlrm synth labels` wrote")
    if not report_path(path).is_file():
        raise InputError(f"{path} has no {report_path(path).name} beside it: it is not finished, or not a shard; run its command again")
    report = json.loads(report_path(path).read_text(encoding="utf-8"))
    if hashlib.sha256(path.read_bytes()).hexdigest() != report["sha256"]:
        raise InputError(f"{path} is not as `vlrm synth labels` left it; delete it with its report and run its command again")
    return report


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _moved(row: dict[str, Any], source: Path, target: Path) -> dict[str, Any]:
    start, here = source.parent.resolve(), target.parent.resolve()
    if start == here:
        return row
    return {**row, "images": [os.path.relpath(start / path, here) if not os.path.isabs(path) else path for path in row["images"]]}


def _problems(index: int, head: Mapping[str, Any]) -> str:
    last = min(head["problems"], (index + 1) * head["chunk"])
    return f"problems {index * head['chunk'] + 1} to {last}"
