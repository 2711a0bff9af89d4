"""Labelling a file of problems in shards that survive being killed: `vlrm synth labels` without the command line.

Problems are cut by their position into chunks, and a chunk is labelled by itself: shard i of n has the chunks i, i + n, i + 2n, ... So
one run, a killed one and a split one ask the engines for the very same batches, and what `merge.py` makes of shards is byte for byte
what one quiet run writes. Beside `OUTPUT`, while it is made, lie `OUTPUT.part` (finished chunks) and `OUTPUT.calls` (finished batches of
the chunk at hand); at the end `OUTPUT.report.json` says which problems and settings it was made of, and counts what became of
everything.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...prm.record_files import record_row
from ...rm.rows import append_jsonl, drop_torn_line, write_jsonl
from ...serving.engine import Engine
from ...types import InputError, Problem
from .journal import Journal, Journaled
from .label import Labelled

Load = Callable[[], Engine]
Wrap = Callable[[Load, str], Engine]


@dataclass(frozen=True)
class Status:
    """How far a run is. `left` is in seconds, None before the first chunk of this run is done."""

    problems: int
    total: int
    sequences: int
    counts: Mapping[str, int]
    left: float | None


def label_file(
    problems: Sequence[Problem],
    label: Callable[[Sequence[Problem], Wrap], Labelled],
    output: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any],
    shard: tuple[int, int] = (1, 1),
    chunk: int = 32,
    batch: int = 4096,
    progress: Callable[[Status], None] = lambda status: None,
) -> dict[str, Any]:
    """Labels a shard's problems into the JSONL file `shard_path(output, shard)` of step records; returns its report.

    `label(problems, wrap)` labels a chunk; it calls `wrap(load, name)` for each engine that it uses, where `load()` gives the engine.
    Engines see at most `batch` sequences at once. `settings` must hold everything that changes the records: a file made with others is
    refused with InputError. `progress` hears of every finished batch and chunk.
    """
    check_problems(problems, chunk)
    path = shard_path(output, shard)
    head = json.loads(json.dumps({"settings": settings, "problems": len(problems), "digest": problems_digest(problems), "chunk": chunk}))
    if finished := _finished(path, head, shard):
        return finished
    part, calls = path.with_name(path.name + ".part"), path.with_name(path.name + ".calls")
    mine = list(range(shard[0] - 1, -(-len(problems) // chunk), shard[1]))
    done = _read_part(part, head)
    if not part.exists():
        append_jsonl(part, [head])
    total = sum(len(problems[index * chunk : (index + 1) * chunk]) for index in mine)
    state = _Progress(total, progress, [len(problems[index * chunk : (index + 1) * chunk]) for index in mine if index in done], done)
    for index in mine:
        if index in done:
            continue
        members = problems[index * chunk : (index + 1) * chunk]
        journal = Journal(calls, index, state.batch)
        labelled = label(members, lambda load, name, journal=journal: Journaled(load, name, journal, batch))
        rows = [record_row(record, Path(output)) for record in labelled.records]
        row = {"unit": index, "rows": rows, "counts": dict(sorted(labelled.counts.items()))}
        append_jsonl(part, [row])
        done[index] = json.loads(json.dumps(row))
        calls.unlink(missing_ok=True)
        state.chunk(len(members), labelled.counts)
    return _finish(path, part, calls, head, shard, {index: done[index] for index in mine})


def check_problems(problems: Sequence[Problem], chunk: int) -> None:
    """Raises InputError for problems that share an id: they would share their rollouts."""
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    for name, number in Counter(problem.id for problem in problems).items():
        if number > 1:
            raise InputError(f"{number} problems have the id {name!r}; give every problem its own id")


def shard_path(output: str | os.PathLike[str], shard: tuple[int, int]) -> Path:
    """Where a shard's records go: `labels-2-of-3.jsonl` for shard 2 of 3 of `labels.jsonl`, the file itself for 1 of 1."""
    path, (index, count) = Path(output), shard
    if path.suffix != ".jsonl":
        raise InputError(f"the output must be a .jsonl file, got {path}")
    if not 1 <= index <= count:
        raise InputError(f"shard must be i/n with i from 1 to n, got {index}/{count}")
    return path if count == 1 else path.with_name(f"{path.stem}-{index}-of-{count}.jsonl")


def problems_digest(problems: Sequence[Problem]) -> str:
    """Names the problems as they are. Pictures count by their file's name, so that a copy on another machine is the same."""
    digest = hashlib.blake2b(digest_size=12)
    for problem in problems:
        images = [os.path.basename(image) if isinstance(image, (str, os.PathLike)) else None for image in problem.images]
        digest.update(json.dumps([problem.id, problem.question, images, problem.answer]).encode())
    return digest.hexdigest()


def model_stamp(spec: str | None, sample: int = 1 << 16) -> str | None:
    """Names a local model by its files' names, sizes and ends, so that a retrained one does not pass for it and a copy on another
    machine does."""
    folder = Path((spec or "").split(":", 1)[-1]).expanduser()
    if not spec or not folder.is_dir():
        return None
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - sample))
            digest.update(file.read())
    return digest.hexdigest()


def report_path(path: Path) -> Path:
    return path.with_name(path.name + ".report.json")


def write_report(
    path: Path, head: Mapping[str, Any], shard: tuple[int, int], units: Mapping[int, tuple[int, Mapping[str, int]]]
) -> dict[str, Any]:
    """Writes the report of the finished file `path`; `units`: for each chunk the number of its records and its counts."""
    counts = sum((Counter(numbers) for _, numbers in units.values()), Counter[str]())
    report = {
        **head,
        "shard": list(shard),
        "counts": dict(sorted(counts.items())),
        "chunks": [[index, number, dict(sorted(numbers.items()))] for index, (number, numbers) in units.items()],
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    target = report_path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, target)
    return report


def changed(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two reports' heads, in words; "" where nothing does."""
    old, new = was.get("settings") or {}, now["settings"]
    names = [f"{n} was {old.get(n)!r}, is {new.get(n)!r}" for n in {**old, **new} if old.get(n) != new.get(n)]
    if was.get("chunk") != now["chunk"]:
        names.append(f"chunk was {was.get('chunk')}, is {now['chunk']}")
    if was.get("digest") != now["digest"]:
        names.append("the problems have changed")
    return "; ".join(names)


class _Progress:
    """Tells how far a run is."""

    def __init__(self, total: int, tell: Callable[[Status], None], sizes: Sequence[int], done: Mapping[int, Mapping[str, Any]]):
        self.total, self.tell, self.problems, self.fresh, self.sequences = total, tell, sum(sizes), 0, 0
        self.counts = sum((Counter(row["counts"]) for row in done.values()), Counter[str]())
        self.started = time.perf_counter()
        self.report()

    def batch(self, sequences: int) -> None:
        self.sequences += sequences
        self.report()

    def chunk(self, problems: int, counts: Mapping[str, int]) -> None:
        self.problems, self.fresh = self.problems + problems, self.fresh + problems
        self.counts.update(counts)
        self.report()

    def report(self) -> None:
        pace = (time.perf_counter() - self.started) / self.fresh if self.fresh else None
        left = None if pace is None else pace * (self.total - self.problems)
        self.tell(Status(self.problems, self.total, self.sequences, self.counts, left))


def _read_part(part: Path, head: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    drop_torn_line(part)
    if not part.exists() or not (lines := [line for line in part.read_text(encoding="utf-8").split("\n") if line]):
        part.unlink(missing_ok=True)
        return {}
    was, *rows = map(json.loads, lines)
    if difference := changed(was, head):
        raise InputError(f"{part} was begun with other settings ({difference}); choose another output or delete it")
    return {row["unit"]: row for row in rows}


def _finished(path: Path, head: Mapping[str, Any], shard: tuple[int, int]) -> dict[str, Any] | None:
    if not path.exists():
        return None
    if not report_path(path).exists():
        if path.with_name(path.name + ".part").exists():
            return None  # a kill between the two files
        raise InputError(f"{path} exists and was not made by this command; choose another output or delete it")
    report = json.loads(report_path(path).read_text(encoding="utf-8"))
    if difference := changed(report, head):
        raise InputError(f"{path} was made with other settings ({difference}); choose another output or delete it and its report")
    return report if report["shard"] == list(shard) else None


def _finish(
    path: Path, part: Path, calls: Path, head: Mapping[str, Any], shard: tuple[int, int], done: Mapping[int, Mapping[str, Any]]
) -> dict[str, Any]:
    write_jsonl(path, [row for unit in done.values() for row in unit["rows"]])
    report = write_report(path, head, shard, {index: (len(unit["rows"]), unit["counts"]) for index, unit in done.items()})
    part.unlink(missing_ok=True)
    calls.unlink(missing_ok=True)
    return report
