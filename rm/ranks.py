"""Ranking instances: a reference picture and candidates, ranked by how consistent they are with it. Read from three forms of data.

Our own, as JSONL, JSON or parquet, with the columns id, reference, candidates (list), order (indices of the candidates, the most
consistent first; null where nobody has ranked them), and if need be question, task (see `paco_prompt`), criteria, group, prompt.

ConsistencyRank's (arXiv 2512.04784): `consistency_full_rank.jsonl` of {folder, ref_image, comp_images, rank_images}, the last in order of
rank, pictures in `images/FOLDER/`, and beside it `prompt_data.jsonl` of {idx, prompt, criteria}. How a folder names its idx is not
documented: we take a column `idx`, else the folder's name, else the number that it begins with (inferred).

EditReward-Bench's (arXiv 2509.23909): key (of both edits), instruction, input_image, output_images (two, the better one first), task_type,
dimension. Its own script makes an edit as large as its original before it is scored; here the model's processor sees it as it is.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..types import InputError, Problem, Sample
from .datasets import FILES, open_dataset
from .edit_metrics import DIMENSIONS
from .paco_prompt import PAIR, TASKS
from .rows import read_rows, write_jsonl

_COLUMNS = ("id", "reference", "candidates", "order", "question", "task", "group")
_RELEASED = ("folder", "ref_image", "comp_images", "rank_images")
_EDITS = ("key", "instruction", "input_image", "output_images", "task_type", "dimension")


@dataclass(frozen=True)
class RankItem:
    """A reference, its candidates, and the true order: candidate indices, the most consistent first (None where it is not known)."""

    id: str
    reference: Any
    candidates: Sequence[Any]
    order: tuple[int, ...] | None = None
    question: str = PAIR
    task: str = "ask"
    group: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.candidates, (str, bytes)) or not isinstance(self.candidates, Sequence) or len(self.candidates) < 2:
            raise InputError(f"instance {self.id}: candidates must be a list of at least two pictures")
        if self.order is not None and sorted(self.order) != list(range(len(self.candidates))):
            raise InputError(
                f"instance {self.id}: order must name each of the {len(self.candidates)} candidates once, from 0, got {list(self.order)}"
            )
        if self.task not in TASKS:
            raise InputError(f"instance {self.id}: unknown task {self.task!r}; there are {', '.join(TASKS)}")

    def samples(self, instruction: str = "own") -> list[Sample]:
        """A sample for each candidate, the reference first. `instruction`: "own" asks the item's question as its task says; "ask", "theme"
        and "criteria" ask PaCo's plain question, that of the item's prompt, or its criteria. Raises InputError for what it has not."""
        question, meta = self.question, {"task": self.task}
        if instruction == "ask":
            question, meta = PAIR, {}
        elif instruction == "theme":
            question, meta = self._own("prompt"), {"task": "theme"}
        elif instruction == "criteria":
            meta = {"criteria": self._own("criteria")}
        return [
            Sample(Problem(f"{self.id}/{k}", question, [self.reference, picture], meta=meta), "")
            for k, picture in enumerate(self.candidates)
        ]

    def _own(self, name: str) -> Any:
        if not self.meta.get(name):
            raise InputError(f"instance {self.id} has no {name}; choose another instruction")
        return self.meta[name]


def read_ranks(
    source: str | os.PathLike[str],
    image_root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    split: str | None = None,
    keep: str | os.PathLike[str] | None = None,
) -> list[RankItem]:
    """The instances of a file, folder or hub id of any form (see `vlrm.rm.datasets.open_dataset`), the first `limit` if it is given.
    Pictures inside the data are written to the folder `keep`, each once, so that none of them stays in memory; without it they do. Raises
    InputError that names place and column."""
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    path, items, lines = Path(source), [], {}
    if path.is_file() or path.suffix in FILES:  # row by row, so that the pictures of one batch at a time are in memory
        rows, folder = read_rows(path, "rankings"), path.parent
    else:
        found, _, folder = open_dataset(source, split, "rankings")
        rows = enumerate(found, start=1)
    images = Images(Path(image_root) if image_root is not None else None, folder, None if keep is None else Path(keep))
    prompts: dict[str, Mapping[str, Any]] | None = None
    for line, row in rows:
        if limit is not None and len(items) == limit:
            break
        try:
            if "ref_image" in row:
                prompts = _prompts(folder / "prompt_data.jsonl") if prompts is None else prompts
                item = _released(row, line, images.root or folder / "images", prompts)
            else:
                item = _edit(row, images) if "output_images" in row else rank_from_row(row, images)
            if item.id in lines:
                raise InputError(f"{item.id!r} is also the id in line {lines[item.id]}; give every instance its own id")
        except InputError as error:
            raise InputError(f"{source}, line {line}: {error}") from None
        lines[item.id] = line
        items.append(item)
    if not items:
        raise InputError(f"{source}: holds no rankings")
    return items


@dataclass(frozen=True)
class Images:
    """Where a row's pictures are: paths are relative to `root`, else to the data's folder; encoded ones go to `keep`."""

    root: Path | None
    folder: Path
    keep: Path | None = None

    def __call__(self, image: Any) -> Any:
        if isinstance(image, Mapping):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes):
            return image if self.keep is None else str(self._kept(image, self.keep))
        if not isinstance(image, str) or not image:
            raise InputError(f"pictures must be paths or encoded images, got {image!r:.100}")
        return str((self.root or self.folder) / image)

    def _kept(self, data: bytes, folder: Path) -> Path:
        path = folder / hashlib.sha1(data).hexdigest()
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            part.write_bytes(data)
            os.replace(part, path)
        return path


def rank_from_row(row: Mapping[str, Any], image: Callable[[Any], Any]) -> RankItem:
    for column in ("id", "reference", "candidates"):
        if row.get(column) is None:
            raise InputError(f"column {column} is missing; a ranking has the columns id, reference, candidates and order")
    order = row.get("order")
    if order is not None and not all(isinstance(place, int) for place in order):
        raise InputError(f"column order must hold the candidates' indices, the most consistent first, got {order!r}")
    return RankItem(
        str(row["id"]),
        image(row["reference"]),
        [image(candidate) for candidate in row["candidates"]],
        None if order is None else tuple(order),
        row.get("question") or PAIR,
        row.get("task") or "ask",
        str(row.get("group") or ""),
        {key: value for key, value in row.items() if key not in _COLUMNS},
    )


def write_ranks(path: str | os.PathLike[str], items: Iterable[RankItem]) -> int:
    """Writes instances whose pictures are files, paths relative to the written file. Returns how many."""
    root = Path(path).parent
    return write_jsonl(
        path,
        [
            {
                "id": item.id,
                "reference": os.path.relpath(item.reference, root),
                "candidates": [os.path.relpath(image, root) for image in item.candidates],
                "order": None if item.order is None else list(item.order),
                "question": item.question,
                "task": item.task,
                "group": item.group,
                **item.meta,
            }
            for item in items
        ],
    )


def _released(row: Mapping[str, Any], line: int, images: Path, prompts: Mapping[str, Mapping[str, Any]]) -> RankItem:
    for column in _RELEASED:
        if row.get(column) is None:
            raise InputError(f"column {column} is missing; ConsistencyRank has the columns {', '.join(_RELEASED)}")
    folder, names, ranked = str(row["folder"]), list(row["comp_images"]), list(row["rank_images"])
    if sorted(map(str, ranked)) != sorted(map(str, names)) or len(set(names)) < len(names):
        raise InputError("column rank_images must hold the pictures of comp_images, each once, in order of rank")
    number = re.match(r"\d+", folder)
    keys = [row.get("idx"), folder, number and str(int(number[0]))]
    about = next((prompts[str(key)] for key in keys if key is not None and str(key) in prompts), {})
    meta = {key: about[key] for key in ("prompt", "criteria") if about.get(key)}
    return RankItem(
        f"{folder}/{line}",
        str(images / folder / str(row["ref_image"])),
        [str(images / folder / str(name)) for name in names],
        tuple(names.index(name) for name in ranked),
        group=folder,
        meta=meta,
    )


def _edit(row: Mapping[str, Any], image: Callable[[Any], Any]) -> RankItem:
    for column in _EDITS:
        if row.get(column) is None:
            raise InputError(f"column {column} is missing; EditReward-Bench has the columns {', '.join(_EDITS)}")
    keys, edits, dimension = row["key"], row["output_images"], row["dimension"]
    for column in ("key", "output_images"):
        if not isinstance(row[column], Sequence) or isinstance(row[column], (str, bytes)) or len(row[column]) != 2:
            raise InputError(f"column {column} must hold two, the better edit first")
    if dimension not in DIMENSIONS:
        raise InputError(f"column dimension must be one of {', '.join(DIMENSIONS)}, got {dimension!r}")
    meta = {"dimension": dimension, "task_type": str(row["task_type"])}
    id, task = f"{dimension}/{keys[0]}/{keys[1]}", DIMENSIONS[dimension]
    return RankItem(
        id, image(row["input_image"]), [image(edit) for edit in edits], (0, 1), str(row["instruction"]), task, str(row["instruction"]), meta
    )


def _prompts(path: Path) -> dict[str, Mapping[str, Any]]:
    return {str(row["idx"]): row for _, row in read_rows(path, "prompts") if "idx" in row} if path.is_file() else {}
