"""Problems from a file: what `vlrm search` reads. JSONL, JSON or parquet; `datasets` writes and reads the same files.

Columns:

    id         str           its own for every problem
    question   str           `<image>` marks are removed: pictures come first in the prompt
    images     list          paths (relative to the file), or {"bytes": ..., "path": ...} in parquet; `image` holds a single one
    answer     str or null   the gold answer; only for measuring, no model sees it

All other columns travel along in `Problem.meta`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..serving.images import open_image
from ..types import InputError, Problem
from .rows import read_rows

_COLUMNS = ("id", "question", "images", "image", "answer")


def read_problems(
    path: str | os.PathLike[str], *, image_root: str | os.PathLike[str] | None = None, limit: int | None = None, check_images: bool = True
) -> list[Problem]:
    """The problems of a file, the first `limit` of them if it is given.

    Relative image paths are looked up under `image_root`, else beside the file. With `check_images` every picture is
    opened once, so that a damaged one is found before any work is done. Raises InputError that names file, line and column.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    root = Path(image_root) if image_root is not None else Path(path).parent
    problems: list[Problem] = []
    lines: dict[str, int] = {}
    for line, row in read_rows(path, "problems"):
        if limit is not None and len(problems) == limit:
            break
        try:
            problem = problem_from_row(row, root)
            if problem.id in lines:
                raise InputError(f"column id: {problem.id!r} is also the id in line {lines[problem.id]}; give every problem its own id")
            if check_images:
                for image in problem.images:
                    open_image(image)
        except InputError as error:
            raise InputError(f"{path}, line {line}: {error}") from None
        lines[problem.id] = line
        problems.append(problem)
    if not problems:
        raise InputError(f"{path}: holds no problems")
    return problems


def problem_from_row(row: Mapping[str, Any], image_root: Path) -> Problem:
    """A problem from one row of a file."""
    for column in ("id", "question"):
        if column not in row:
            raise InputError(f"column {column} is missing; the columns are id, question, images (or image) and answer")
        if not isinstance(row[column], str):
            raise InputError(f"column {column} must be a string, got {type(row[column]).__name__} {row[column]!r}; write it as text")
    images = row.get("images", row.get("image"))
    if images is None and "images" not in row and "image" not in row:
        raise InputError("column images is missing; give a list of paths, or [] for a problem without pictures")
    if not isinstance(images, (list, tuple)):
        images = [] if images is None else [images]
    return Problem(
        row["id"],
        re.sub(r"<image>\s*", "", row["question"]).strip(),
        [_image(image, image_root) for image in images],
        row.get("answer"),
        {key: value for key, value in row.items() if key not in _COLUMNS},
    )


def policy_messages(problem: Problem, instruction: str = "") -> list[dict[str, Any]]:
    """How a problem is put to a policy: one user turn, the pictures in order, then the question and, if there is one, the instruction."""
    text = f"{problem.question}\n\n{instruction}" if instruction else problem.question
    return [{"role": "user", "content": [{"type": "image"} for _ in problem.images] + [{"type": "text", "text": text}]}]


def _image(image: Any, root: Path) -> Any:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        return image
    if not isinstance(image, str):
        raise InputError(f"column images must hold paths, got {type(image).__name__}")
    return str(root / image)
