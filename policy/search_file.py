"""A search over a file of problems that survives being killed: `vlrm search` without the command line.

Finished chunks are appended to `OUTPUT.part`; at the end the records, in the order of the problems, become `OUTPUT` in one
move. Run again with the same arguments and it goes on where it stopped. Chunks are cut by position, so an interrupted run asks the
models for the very same batches as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..rm.answers import same_answer
from ..rm.rows import append_jsonl, drop_torn_line, write_jsonl
from ..rm.stats import accuracy_ci
from ..types import InputError, Problem
from .result import SearchResult, as_record


def search_file(
    problems: Sequence[Problem],
    search: Callable[[Sequence[Problem]], list[SearchResult]],
    output: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any],
    chunk: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """The records of `search(problems)`, in order; the JSONL file `output` holds them too.

    `search` is called with `chunk` problems at a time. `settings` must hold everything that changes the results: a file made with other
    settings, or from a problem that has changed since, is refused with InputError and left alone. Results that the file holds for further
    problems are kept behind these. `progress` is told how many problems are done. A record is a `SearchResult` as plain JSON, with
    `gold`, `right` (None without a gold answer), `settings`, and a `key` of problem and settings.
    """
    output = Path(output)
    if output.suffix != ".jsonl":
        raise InputError(f"the output must be a .jsonl file, got {output}")
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    settings = json.loads(json.dumps(settings))  # as it will be read back
    keys = {problem.id: _key(problem, settings) for problem in problems}
    part = output.with_name(output.name + ".part")
    done = {**_read_done(output, keys, settings), **_read_done(part, keys, settings)}
    missing = [problem.id for problem in problems if problem.id not in done]
    for start in range(0, len(problems), chunk):
        batch = problems[start : start + chunk]
        if not done.keys() >= {problem.id for problem in batch}:
            records = [_record(problem, result, settings, keys) for problem, result in zip(batch, search(batch), strict=True)]
            append_jsonl(part, records)
            done |= {record["problem_id"]: record for record in records}
        progress(start + len(batch))
    records = [done[problem.id] for problem in problems]
    if missing or part.exists():
        write_jsonl(output, records + [record for name, record in done.items() if name not in keys])
        part.unlink(missing_ok=True)
    return records


def report(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy with its 95 % bootstrap interval and the oracle's, over the records with a gold answer (None where there is
    none), and what the whole run cost."""
    judged = [record for record in records if record["right"] is not None]
    accuracy = accuracy_ci([record["right"] for record in judged]) if judged else None
    oracle = [any(same_answer(candidate["answer"], record["gold"]) for candidate in record["candidates"]) for record in judged]
    policy, scorer = ([record["cost"][side] for record in records] for side in ("policy", "scorer"))
    return {
        "problems": len(records),
        "with_gold": len(judged),
        "accuracy": accuracy and accuracy[0],
        "ci95": accuracy and list(accuracy[1:]),
        "oracle": sum(oracle) / len(oracle) if oracle else None,
        "policy_tokens": sum(usage["completion_tokens"] for usage in policy),
        "scorer_tokens": sum(usage["completion_tokens"] for usage in scorer),
        "calls": sum(usage["calls"] for usage in policy + scorer),
        "seconds": sum(usage["seconds"] for usage in policy + scorer),
        "unscored": sum(record["details"].get("unscored", 0) for record in records),
    }


def _key(problem: Problem, settings: Mapping[str, Any]) -> str:
    """Names a problem as it is under these settings. Pictures in memory count by their number only."""
    images = [str(image) if isinstance(image, (str, os.PathLike)) else None for image in problem.images]
    content = json.dumps([settings, problem.id, problem.question, images, problem.answer], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def _record(problem: Problem, result: SearchResult, settings: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    right = None if problem.answer is None else same_answer(result.answer, problem.answer)
    record = {**as_record(result), "gold": problem.answer, "right": right, "settings": settings, "key": keys[problem.id]}
    return json.loads(json.dumps(record, default=str))  # the same whether it was just made or read back


def _read_done(path: Path, keys: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Records by problem id. In a `.part` file, a last line that a kill cut off is removed."""
    if not path.exists():
        return {}
    if path.suffix == ".part":
        drop_torn_line(path)
    done = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = json.loads(line)
            done[record["problem_id"]] = record
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}: is not a search result; choose another output or delete it") from None
        _check_record(path, record, keys, settings)
    return done


def _check_record(path: Path, record: Mapping[str, Any], keys: Mapping[str, str], settings: Mapping[str, Any]) -> None:
    if record.get("settings") != settings:
        was = record.get("settings") or {}
        changed = [
            f"{name} was {was.get(name)!r}, is {settings.get(name)!r}"
            for name in {**was, **settings}
            if was.get(name) != settings.get(name)
        ]
        raise InputError(f"{path} holds results of other settings ({'; '.join(changed)}); choose another output or delete it")
    if record["key"] != keys.get(record["problem_id"], record["key"]):
        raise InputError(
            f"{path} holds results of an earlier version of problem {record['problem_id']}; choose another output or delete it"
        )
