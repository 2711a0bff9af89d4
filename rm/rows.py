"""Rows of JSONL, JSON and parquet files: read with the place of every fault, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ..types import InputError


def read_rows(path: str | os.PathLike[str], what: str = "rows") -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(line or row number from 1, row) of a `.jsonl`, `.json` (a list) or `.parquet` file. `what` names the rows in errors."""
    path = Path(path)
    if path.suffix not in (".jsonl", ".json", ".parquet"):
        raise InputError(f"{path}: {what} are read from .jsonl, .json or .parquet files")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .jsonl or .parquet file of {what}")
    yield from _parquet_rows(path) if path.suffix == ".parquet" else _json_rows(path)


def _parquet_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=64)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), start=1)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]}); write it again") from None


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None
    # Not splitlines(): JSON strings may hold U+2028 and its like unescaped.
    lines = [(1, text)] if path.suffix == ".json" else list(enumerate(text.split("\n"), start=1))
    for line, content in lines:
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except ValueError as error:
            raise InputError(f"{path}, line {line}: not valid JSON ({error}); write one object on each line") from None
        for number, row in enumerate(value, start=1) if isinstance(value, list) else [(line, value)]:
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: expected a JSON object, got {type(row).__name__}")
            yield number, row


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> int:
    """One JSON object on each line; the file appears whole or stays as it was. Returns the number of rows."""
    path, lines = Path(path), [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(lines)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def append_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Puts rows behind those of a file and on the disk, so that a kill after it loses none of them."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())


def drop_torn_line(path: str | os.PathLike[str]) -> None:
    """Removes a last line that a kill cut off from a file that `append_jsonl` wrote."""
    path = Path(path)
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(content.rfind(b"\n") + 1)
