"""Scores of a file of solutions, made in chunks and kept: a run that was killed goes on where it stopped.

The solutions are shown to the scorer as numbered steps, exactly those of the data: what a scorer splits again must come out the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..rm.rows import write_jsonl
from ..rm.scoring import score_or_reason
from ..types import InputError, Problem, Sample, Score, Scorer
from .records import StepRecord
from .steps import MARKER, render_steps

_INNER = re.compile(r"\s*\n(?=[ \t>#*_]*step[ \t]*\d)", re.IGNORECASE)


def as_sample(record: StepRecord, scorer: Scorer | None = None) -> Sample:
    """The record as a scorer gets it: the gold answer left out, the steps numbered, or as `scorer.render_solution(steps, kinds)` writes
    them if the scorer has its own form. Lines of a step that look like the start of another step join the line before."""
    steps = [_INNER.sub(" ", MARKER.sub("", step.strip(), count=1)).strip() or "(empty)" for step in record.steps]
    steps = [step.replace("<image>", "image") for step in steps]  # a processor would look for a picture there
    render = getattr(scorer, "render_solution", None)
    solution = render(steps, record.kinds or (None,) * len(steps)) if render else render_steps(steps)
    return Sample(Problem(record.id, record.question, record.images), solution)


def score_file(
    records: Sequence[StepRecord],
    scorer: Callable[[], Scorer],
    output: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any],
    chunk: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """What `scorer()` says of each record, in order: {id, value, steps, verdicts, first_error, correction, analyses, error}.

    Also kept as JSON lines in `output`, where a later call with the same settings finds them; the scorer is made only if something is
    missing. `verdicts` are true, false, or null where the critique could not be read; `error` is set, and `steps` empty, where there is no
    score. `settings` must hold everything that changes the scores; scores of other settings are refused with InputError.
    """
    output = Path(output)
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    settings = json.loads(json.dumps(settings))
    keys = {record.id: _key(record, settings) for record in records}
    done = _read(output, settings, keys)
    judge: Scorer | None = None
    for start in range(0, len(records), chunk):
        batch = records[start : start + chunk]
        missing = [record for record in batch if record.id not in done]
        if missing:
            judge = judge or _roomy(scorer(), max(len(record.steps) for record in records))
            scores = score_or_reason(judge, [as_sample(record, judge) for record in missing])
            rows = [
                {**_row(record, score), "settings": settings, "key": keys[record.id]} for record, score in zip(missing, scores, strict=True)
            ]
            _append(output, rows)
            done |= {row["id"]: row for row in rows}
        progress(start + len(batch))
    rows = [done[record.id] for record in records]
    if judge is not None:
        write_jsonl(output, rows + [row for name, row in done.items() if name not in keys])
    return rows


def _roomy(scorer: Scorer, longest: int) -> Scorer:
    """A scorer that merges steps beyond `max_steps` must see each step of the data apart."""
    if getattr(scorer, "max_steps", longest) < longest:
        scorer.max_steps = longest  # type: ignore[attr-defined]
    return scorer


def _row(record: StepRecord, score: Score) -> dict[str, Any]:
    steps = [float(step) for step in score.steps]
    row: dict[str, Any] = {"id": record.id, "value": score.value, "steps": steps, "verdicts": []}
    row |= {"first_error": score.first_error, "correction": score.correction, "analyses": [v.analysis for v in score.verdicts]}
    if (reason := _why_not(record, score)) is not None:
        return row | {"value": None, "steps": [], "error": reason}
    said: list[bool | None] = [step >= 0.5 for step in steps]
    if len(score.verdicts) == len(steps):
        said = [None if verdict.correct is None else bool(verdict.correct) for verdict in score.verdicts]
    if score.first_error is not None:
        # A critic that stops at the first error counts what follows as 0: that is a verdict, not an unread one.
        after = range(score.first_error + 1, len(steps))
        said = [False if flag is None and i in after and steps[i] == 0 else flag for i, flag in enumerate(said)]
    return row | {"verdicts": said, "error": None}


def _why_not(record: StepRecord, score: Score) -> str | None:
    if score.value is None:
        return score.error or "the scorer gave no value"
    if len(score.steps) != len(record.steps):
        return f"the scorer judged {len(score.steps)} steps of {len(record.steps)}"
    if not all(0 <= step <= 1 for step in score.steps):  # nan is not either
        return "a step score is not between 0 and 1"
    return None


def _key(record: StepRecord, settings: Mapping[str, Any]) -> str:
    images = [str(image) if isinstance(image, (str, os.PathLike)) else None for image in record.images]
    content = json.dumps([settings, record.id, record.question, record.steps, images], sort_keys=True)
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def _append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path, settings: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Kept scores by id; a last line that a kill cut off is removed."""
    if not path.exists():
        return {}
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        content = content[: content.rfind(b"\n") + 1]
        with path.open("r+b") as file:
            file.truncate(len(content))
    done = {}
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            row = json.loads(line)
            name, was, key = row["id"], row["settings"], row["key"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}: is not a score; choose another output folder or delete it") from None
        if was != settings:
            changed = [f"{k} was {was.get(k)!r}, is {settings.get(k)!r}" for k in {**was, **settings} if was.get(k) != settings.get(k)]
            raise InputError(f"{path} holds scores of other settings ({'; '.join(changed)}); choose another output folder or delete it")
        if key != keys.get(name, key):
            raise InputError(f"{path} holds scores of an earlier version of {name}; choose another output folder or delete it")
        done[name] = row
    return done
