"""Pairs of pictures with a verdict: what PaCo-Reward is trained on. JSONL, JSON or parquet.

Columns:

    id         str           its own for every pair (`pair-LINE` where there is none)
    images     list of 2     paths (relative to the file), or {"bytes": ..., "path": ...} in parquet
    question   str           what is asked of them, as `task` puts it; PaCo's own question where there is none
    label      bool          consistent or not; also 1/0, "Yes"/"No"
    task       str           ask, theme, criterion, edit_consistency or edit_following (see `paco_prompt`); "ask" where there is none
    reasons    str           what the answer says after the verdict word; may be empty
    group      str           what the pictures were made for: intervals and splits keep a group together

Chats of LLaMA-Factory's form, which PaCo-Dataset has, are read as they are: `messages` (or `conversations`) of a user's text with two
`<image>` marks and an answer that begins with the verdict, and `images`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..serving.engine import Request
from ..types import InputError
from .paco_prompt import PAIR, QUESTIONS, PairStyle
from .rows import read_rows, write_jsonl

_COLUMNS = ("id", "images", "question", "label", "task", "reasons", "group")
_SAID = {"yes": True, "no": False, "true": True, "false": False, "1": True, "0": False}
_VERDICT = re.compile(r"\s*\W*(yes|no)\b[\s.,:;!-]*", re.IGNORECASE)


@dataclass(frozen=True)
class PairRecord:
    """Two pictures (paths, PIL images or bytes), what is asked of them, the answer and its reasons."""

    id: str
    images: Sequence[Any]
    label: bool
    question: str = PAIR
    task: str = "ask"
    reasons: str = ""
    group: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.images, (str, bytes)) or not isinstance(self.images, Sequence) or len(self.images) != 2:
            found = len(self.images) if isinstance(self.images, Sequence) and not isinstance(self.images, (str, bytes)) else "one"
            raise InputError(f"pair {self.id}: images must hold two pictures, got {found}")
        if not isinstance(self.label, bool):
            raise InputError(f"pair {self.id}: label must be true or false, got {self.label!r}")
        if self.task not in QUESTIONS:
            raise InputError(f"pair {self.id}: unknown task {self.task!r}; there are {', '.join(QUESTIONS)}")
        if not isinstance(self.question, str) or not self.question.strip():
            raise InputError(f"pair {self.id}: question must be a non-empty string, got {self.question!r}")

    def prompt(self, style: PairStyle) -> Request:
        return style.request(QUESTIONS[self.task](self.question), *self.images)


def read_pairs(path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None) -> list[PairRecord]:
    """The pairs of a file. Relative image paths are looked up under `image_root`, else beside the file. Raises InputError that names file,
    line and column."""
    root = Path(image_root) if image_root is not None else Path(path).parent
    records: list[PairRecord] = []
    lines: dict[str, int] = {}
    for line, row in read_rows(path, "pairs"):
        try:
            record = pair_from_row(row, f"pair-{line}", root)
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from None
        if record.id in lines:
            raise InputError(f"{path}, line {line}: {record.id!r} is also the id in line {lines[record.id]}; give every pair its own id")
        lines[record.id] = line
        records.append(record)
    if not records:
        raise InputError(f"{path}: holds no pairs")
    return records


def pair_from_row(row: Mapping[str, Any], name: str, root: Path) -> PairRecord:
    """A record from one row of a file."""
    row = _from_chat(row) if "label" not in row and ("messages" in row or "conversations" in row) else row
    for column in ("images", "label"):
        if row.get(column) is None:
            raise InputError(
                f"column {column} is missing; a pair has the columns images, label, and if need be question, task, reasons, group"
            )
    images = row["images"] if isinstance(row["images"], (list, tuple)) else [row["images"]]
    return PairRecord(
        str(row.get("id") or name),
        [_image(image, root) for image in images],
        _label(row["label"]),
        row.get("question") or PAIR,
        row.get("task") or "ask",
        row.get("reasons") or "",
        str(row.get("group") or ""),
        {key: value for key, value in row.items() if key not in _COLUMNS},
    )


def write_pairs(path: str | os.PathLike[str], records: Iterable[PairRecord]) -> int:
    """Writes pairs whose pictures are files, their paths relative to the written file. Returns how many."""
    return write_jsonl(path, [pair_row(record, Path(path).parent) for record in records])


def pair_row(record: PairRecord, root: Path) -> dict[str, Any]:
    if not all(isinstance(image, (str, os.PathLike)) for image in record.images):
        raise InputError(f"pair {record.id}: only pictures that are files can be written; save them first")
    return {
        "id": record.id,
        "images": [os.path.relpath(image, root) for image in record.images],
        "question": record.question,
        "label": record.label,
        "task": record.task,
        "reasons": record.reasons,
        "group": record.group,
        **record.meta,
    }


def _label(value: Any) -> bool:
    said = _SAID.get(str(value).strip().lower().removesuffix(".0")) if isinstance(value, (bool, int, float, str)) else None
    if said is None:
        raise InputError(f"column label must be true or false, 1 or 0, Yes or No, got {value!r}")
    return said


def _image(image: Any, root: Path) -> Any:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str) or not image:
        raise InputError(f"column images must hold paths, got {image!r}")
    return str(root / image)


def _from_chat(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of LLaMA-Factory's form as one of ours."""
    turns = row.get("messages") or row.get("conversations")
    if not isinstance(turns, (list, tuple)) or not all(isinstance(turn, Mapping) for turn in turns):
        raise InputError("column messages must be a list of chat messages")
    said = [(str(turn.get("role", turn.get("from"))), str(turn.get("content", turn.get("value")) or "")) for turn in turns]
    users = [text for role, text in said if role in ("user", "human")]
    answers = [text for role, text in said if role in ("assistant", "gpt")]
    if len(users) != 1 or len(answers) != 1:
        raise InputError(f"a chat about a pair has one question and one answer, got {len(users)} and {len(answers)}")
    if not (verdict := _VERDICT.match(answers[0])):
        raise InputError(f"the answer must begin with Yes or No, got {answers[0]!r:.60}")
    question = re.sub(r"[^\n]*<image>\s*", "", users[0]).strip() or re.sub(r"<image>\s*", "", users[0]).strip()
    return {
        **{key: value for key, value in row.items() if key not in ("messages", "conversations")},
        "question": question,
        "label": verdict[1].lower() == "yes",
        "reasons": answers[0][verdict.end() :].strip(),
    }
