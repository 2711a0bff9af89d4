"""`vlrm convert`: step data from one file format to another, row by row; whatever is left out is counted.

vlrm convert --input phase2_train.jsonl --to records --output prm800k.jsonl
vlrm convert --input records.jsonl --to llamafactory --output data/steps.json
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ..rm.rows import read_rows
from ..types import InputError
from .exporters import EXPORTS, STYLES, check_style, dataset_info
from .importers import FORMATS, NEUTRAL, detect
from .record_files import image_bytes, image_file, located, record_from_row, write_records
from .records import StepRecord

SUFFIXES = {"trl": (".jsonl", ".parquet"), "ms_swift": (".jsonl",), "llamafactory": (".json", ".jsonl"), "records": (".jsonl", ".parquet")}


def import_records(
    path: str | os.PathLike[str],
    format: str = "auto",
    *,
    neutral: str = "null",
    image_root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    counts: Counter[str] | None = None,
) -> Iterator[StepRecord]:
    """The step records of a .jsonl, .json or .parquet file in any of the formats of prm/importers.py, one by one.

    `auto` takes the format from the first row's columns. `neutral` says what a person's 0 becomes: null, right or wrong. Relative image
    paths are looked up under `image_root`, else beside the file. `limit` ends after that many rows. `counts` gets the number of rows "read"
    and of those "dropped: why". Raises InputError that names file and line for a row that does not fit its format, and for an id that
    occurs twice.
    """
    if format not in ("auto", *FORMATS):
        raise InputError(f"format must be auto or one of {', '.join(FORMATS)}, got {format!r}")
    if neutral not in NEUTRAL:
        raise InputError(f"neutral must be one of {', '.join(NEUTRAL)}, got {neutral!r}")
    if limit is not None and limit < 1:
        raise InputError(f"limit must be at least 1, got {limit}")
    path, counts = Path(path), Counter() if counts is None else counts
    root, seen, known = Path(image_root) if image_root is not None else path.parent, set(), format
    for line, row in read_rows(path, "step data"):
        if limit is not None and counts["read"] == limit:
            break
        with located(path, line):
            known = detect(row) if known == "auto" else known
            converted = _fits(row, known, neutral)
            counts["read"] += 1
            if isinstance(converted, str):
                counts[f"dropped: {converted}"] += 1
                continue
            record = record_from_row(converted, default_id=f"{path.stem}-{line}", image_root=root)
            if record.id in seen:
                raise InputError(f"record {record.id}: the id occurs twice; ids must be unique")
        seen.add(record.id)
        yield record


def _fits(row: Mapping[str, Any], format: str, neutral: str) -> Mapping[str, Any] | str:
    try:
        return FORMATS[format](row, NEUTRAL[neutral])
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        missing = f"no column {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"the row is not of the format {format} ({missing}); its columns are {', '.join(row)}") from None


def convert_file(
    input: str | os.PathLike[str],
    output: str | os.PathLike[str],
    to: str = "trl",
    format: str = "auto",
    *,
    style: str = "verdicts",
    stop_at_first_error: bool | None = None,
    threshold: float = 0.0,
    neutral: str = "null",
    image_root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, int]:
    """Converts a file and returns how many rows were "read", "written" and "dropped: why". `output` appears whole or not at all.

    `to` is trl, llamafactory, ms_swift or records; `style` (verdicts or critique) and `stop_at_first_error` (None: on for verdicts, off for
    critiques) are described in prm/exporters.py; a numeric label counts as right above `threshold`. For llamafactory the
    dataset_info.json beside the output gets an entry named after the file, and keeps those of other files.
    """
    output = Path(output)
    check_style(to, style)
    if output.suffix not in SUFFIXES[to]:
        raise InputError(f"{output}: {to} is written as {' or '.join(SUFFIXES[to])}")
    counts: Counter[str] = Counter(read=0, written=0)
    records = import_records(input, format, neutral=neutral, image_root=image_root, limit=limit, counts=counts)
    records = _told(records, counts, progress)
    output.parent.mkdir(parents=True, exist_ok=True)
    if to == "records":
        counts["written"] = write_records(output, records)
    else:
        make = partial(STYLES[style], threshold=threshold)
        if stop_at_first_error is not None:
            make = partial(make, stop_at_first_error=stop_at_first_error)
        keep = (lambda image: image) if output.suffix == ".parquet" else partial(image_file, path=output)
        rows = _rows(records, make, EXPORTS[to], keep, counts)
        (_write_parquet if output.suffix == ".parquet" else _write_json)(rows, output)
    if to == "llamafactory":
        _add_dataset_info(output)
    return dict(counts)


def _told(records: Iterable[StepRecord], counts: Counter[str], progress: Callable[[int], None]) -> Iterator[StepRecord]:
    for record in records:
        progress(counts["read"])
        yield record


def _rows(
    records: Iterable[StepRecord], make: Any, shape: Any, keep: Callable[[Any], Any], counts: Counter[str]
) -> Iterator[dict[str, Any]]:
    for record in records:
        messages = make(record)
        if isinstance(messages, str):
            counts[f"dropped: {messages}"] += 1
            continue
        counts["written"] += 1
        yield shape(record, messages, [keep(image) for image in record.images])


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write to, which takes the place of `path` at the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """JSON lines, or for `.json` one list with a row on each line."""
    start, between, end = ("[\n", ",\n", "\n]\n") if path.suffix == ".json" else ("", "\n", "\n")
    with _whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(start)
        for number, row in enumerate(rows):
            file.write((between if number else "") + json.dumps(row, ensure_ascii=False))
        file.write(end)


def _write_parquet(rows: Iterable[dict[str, Any]], path: Path, chunk: int = 256) -> None:
    """TRL rows with the pictures inside; the schema tells `datasets` that they are pictures."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Features, Image, List, Value

    features = Features(
        {"id": Value("string"), "messages": List({"role": Value("string"), "content": Value("string")}), "images": List(Image())}
    )
    schema, batch = features.arrow_schema, []
    with _whole(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for row in rows:
            batch.append({**row, "images": [{"bytes": image_bytes(image), "path": None} for image in row["images"]]})
            if len(batch) == chunk:
                writer.write_table(pa.Table.from_pylist(batch, schema=schema))
                batch = []
        writer.write_table(pa.Table.from_pylist(batch, schema=schema))


def _add_dataset_info(output: Path) -> None:
    path = output.with_name("dataset_info.json")
    try:
        entries = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise InputError(f"{path}: is not valid JSON ({error}); put it right or move it away") from None
    with _whole(path) as temporary:
        temporary.write_text(json.dumps({**entries, output.stem: dataset_info(output.name)}, indent=2) + "\n", encoding="utf-8")
