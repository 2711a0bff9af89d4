"""Rows from wherever a user keeps them: a file, a folder that `datasets` saved, a folder of files, a name on the hub, a Dataset, a list.

Pictures stay encoded and are opened when they are needed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..types import InputError
from .rows import read_rows

FILES = (".jsonl", ".json", ".parquet")


def open_dataset(source: Any, split: str | None = None, what: str = "rows") -> tuple[Sequence[Mapping[str, Any]], str, Path]:
    """(rows, name, folder that relative image paths start from).

    `source` is a .jsonl, .json or .parquet file, a folder that `Dataset.save_to_disk` wrote, a folder with such files, a hub id (org/name),
    a `datasets.Dataset`, or a list of rows. `split` chooses from several; without it there must be one, or one named train. Raises
    InputError, also where the hub cannot be reached.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _in_memory(source, split, what), what, Path(".")
    name, path = os.fspath(source), Path(source).expanduser()
    if path.is_file() or path.suffix in FILES:
        return [row for _, row in read_rows(path, what)], name, path.parent
    if path.is_dir():
        return _folder(path, split, what), name, path
    if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise InputError(f"{name} does not exist; give a {', '.join(FILES)} file of {what}, a folder that datasets saved, or a hub id")
    return _hub(name, split), name, Path(".")


class Rows(Sequence):
    """The rows of a Dataset, pictures encoded, each made when it is asked for."""

    def __init__(self, dataset: Any):
        from datasets import Image, List

        for column, feature in dataset.features.items():
            if isinstance(feature, Image):
                dataset = dataset.cast_column(column, Image(decode=False))
            elif isinstance(feature, List) and isinstance(feature.feature, Image):
                dataset = dataset.cast_column(column, List(Image(decode=False)))
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.dataset[index]


class Parsed(Sequence):
    """`parse(row, number from 1)` of every row, made when it is asked for; an InputError names the place."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], name: str, parse: Callable[[Mapping[str, Any], int], Any]):
        self.rows, self.name, self.parse = rows, name, parse

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return self.parse(self.rows[index], index + 1)
        except InputError as error:
            raise InputError(f"{self.name}, row {index + 1}: {error}") from None

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def _in_memory(source: Any, split: str | None, what: str) -> Sequence[Mapping[str, Any]]:
    if isinstance(source, Mapping):
        source = _choose(source, split, "the data set")
    if hasattr(source, "column_names"):
        return Rows(source)
    if isinstance(source, Sequence) and all(isinstance(row, Mapping) for row in source):
        return source
    raise InputError(f"{what} must be a path, a hub id, a datasets.Dataset or a list of rows, got {type(source).__name__}")


def _folder(path: Path, split: str | None, what: str) -> Sequence[Mapping[str, Any]]:
    from datasets import load_from_disk

    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        try:
            return _in_memory(load_from_disk(str(path)), split, what)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read as a data set ({str(error).splitlines()[0]}); save it again") from None
    files = sorted(file for file in path.iterdir() if file.suffix in FILES and (split is None or file.stem.split("-")[0] == split))
    if not files:
        raise InputError(f"{path}: holds no data set{f' with a split {split}' if split else ''}; give a folder that datasets saved")
    return [row for file in files for _, row in read_rows(file, what)]


def _hub(name: str, split: str | None) -> Sequence[Mapping[str, Any]]:
    from datasets import load_dataset

    try:
        return _in_memory(load_dataset(name, split=split), None, "rows")
    except InputError:
        raise
    except Exception as error:  # no network, no such name, no such split: each library in between has its own classes
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{name} is no folder here, and the hub does not give it ({reason}); download it, or give a path") from None


def _choose(parts: Mapping[str, Any], split: str | None, name: str) -> Any:
    wanted = split or ("train" if "train" in parts else next(iter(parts)) if len(parts) == 1 else None)
    if wanted not in parts:
        raise InputError(f"{name} has the splits {', '.join(parts)}; say which one (split)")
    return parts[wanted]
