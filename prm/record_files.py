"""Files of step records, JSONL and parquet, in and out; the columns are described in `records`."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..rm.rows import read_rows
from ..types import InputError
from .critique import StepCritique
from .records import StepRecord, first_false
from .steps import MARKER


def read_records(path: str | os.PathLike[str], image_root: str | os.PathLike[str] | None = None) -> list[StepRecord]:
    """All records of a `.jsonl`, `.json` (a list) or `.parquet` file; errors name the file, the line and the column.

    Relative image paths are looked up under `image_root`, else beside the file. Paths stay paths: no picture is opened.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a .jsonl or .parquet file of step records")
    root = Path(image_root) if image_root is not None else path.parent
    records, seen = [], set()
    for line, row in read_rows(path, "step records"):
        with located(path, line):
            record = record_from_row(row, default_id=f"{path.stem}-{line}", image_root=root)
            if record.id in seen:
                raise InputError(f"record {record.id}: column id occurs twice; ids must be unique")
        seen.add(record.id)
        records.append(record)
    if not records:
        raise InputError(f"{path}: holds no records")
    return records


@contextlib.contextmanager
def located(path: str | os.PathLike[str], line: int) -> Iterator[None]:
    """Puts the place of a record in front of what was wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}, line {line}: {error}") from None


def record_from_row(row: Mapping[str, Any], default_id: str, image_root: str | os.PathLike[str] = ".") -> StepRecord:
    """A record from one row of a file or a dataset, whichever of the accepted spellings its columns have."""
    identity = next((row[c] for c in ("id", "uid") if row.get(c) not in (None, "")), default_id)
    name = f"record {identity}"
    entries = next((row[c] for c in ("steps", "steps_with_score") if row.get(c) is not None), None)
    if isinstance(entries, str):
        entries = _json_list(entries, name)
    if not isinstance(entries, (list, tuple)) or not entries:
        raise InputError(f"{name}: column steps must be a non-empty list of strings, or of {{step, score}} objects, got {entries!r:.80}")
    texts, scores = zip(*(_step_entry(entry, name) for entry in entries), strict=True)
    mc_scores = row.get("mc_scores") if row.get("mc_scores") is not None else (scores if None not in scores else None)
    question = next((row[c] for c in ("question", "prompt", "problem") if row.get(c) is not None), None)
    if not isinstance(question, str):
        raise InputError(f"{name}: column question must be a string, got {type(question).__name__}")
    critiques = row.get("critiques")
    correction = row.get("correction", row.get("corrected_step"))
    if critiques is not None:
        critiques, refinements = _critiques(critiques, name)
        first = first_false([critique.ok for critique in critiques])
        correction = correction or (refinements[first] if first is not None else None)
    return StepRecord(
        id=str(identity),
        question=re.sub(r"<image>\s*", "", question).strip(),
        steps=tuple(MARKER.sub("", text.strip(), count=1).strip() if MARKER.match(text.strip()) else text.strip() for text in texts),
        images=tuple(_image(image, name, Path(image_root)) for image in _images(row)),
        answer=row.get("answer"),
        source=str(row.get("source") or ""),
        mc_scores=None if mc_scores is None else tuple(_list(mc_scores, name, "mc_scores")),
        judge=None if row.get("judge") is None else tuple(_label(v, name) for v in _list(row["judge"], name, "judge")),
        critiques=critiques,
        first_error=row.get("first_error"),
        correction=correction,
        kinds=_optional(row, name, "kinds"),
        mc_counts=_mc_counts(row, name),
        labels=_optional(row, name, "labels"),
        meta=_meta(row.get("meta"), name),
    )


def _list(value: Any, name: str, column: str) -> Sequence[Any]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{name}: column {column} must be a list with one entry for each step, got {type(value).__name__}")
    return value


def _optional(row: Mapping[str, Any], name: str, column: str) -> tuple[Any, ...] | None:
    return None if row.get(column) is None else tuple(_list(row[column], name, column))


def _mc_counts(row: Mapping[str, Any], name: str) -> tuple[tuple[int, int] | None, ...] | None:
    entries = _optional(row, name, "mc_counts")
    for entry in entries or ():
        if entry is not None and not (isinstance(entry, (list, tuple)) and len(entry) == 2 and all(isinstance(n, int) for n in entry)):
            raise InputError(f"{name}: column mc_counts must hold [right, all] or null for each step, got {entry!r}")
    return None if entries is None else tuple(entry and (entry[0], entry[1]) for entry in entries)


def _meta(value: Any, name: str) -> Mapping[str, Any]:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if value is not None and not isinstance(value, Mapping):
        raise InputError(f"{name}: column meta must be an object, got {type(value).__name__}")
    return value or {}


def _json_list(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(f"{name}: column steps must be a list of strings, got one string; split the solution into steps") from None


def _step_entry(entry: Any, name: str) -> tuple[str, float | None]:
    text = entry.get("step", entry.get("text")) if isinstance(entry, Mapping) else entry
    if not isinstance(text, str):
        raise InputError(f"{name}: column steps: every step must be a string or have a string under `step`, got {entry!r:.80}")
    return text, entry.get("score") if isinstance(entry, Mapping) else None


def _label(value: Any, name: str) -> bool:
    if value not in (True, False):
        raise InputError(f"{name}: column judge must hold true or false for each step, got {value!r}")
    return bool(value)


def _images(row: Mapping[str, Any]) -> Sequence[Any]:
    images = next((row[c] for c in ("images", "image", "image_path") if row.get(c) is not None), ())
    return images if isinstance(images, (list, tuple)) else (images,)


def _image(image: Any, name: str, root: Path) -> Any:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if not isinstance(image, str):
        if image is None:
            raise InputError(f"{name}: column images holds an empty entry; give a path or bytes")
        return image
    found = root / image
    if not found.is_file():
        raise InputError(f"{name}: column images: there is no file {found}; give paths relative to the file, or image_root")
    return str(found)


def _critiques(entries: Any, name: str) -> tuple[tuple[StepCritique, ...], list[str | None]]:
    """Critiques from the flat or the nested spelling, and each one's `step_refinement`."""
    critiques, refinements = [], []
    for index, entry in enumerate(_list(entries, name, "critiques"), start=1):
        if not isinstance(entry, Mapping):
            raise InputError(f"{name}: column critiques: entry {index} must be an object, got {type(entry).__name__}")
        parts: dict[str, Any] = {"intent": entry.get("intent", entry.get("step_intent")) or ""}
        for part, nested in (("image", "image_alignment"), ("logic", "reasoning_logic")):
            inner = entry.get(nested) or {}
            parts[f"{part}_analysis"] = entry.get(f"{part}_analysis", inner.get("analysis")) or ""
            parts[f"{part}_ok"] = _verdict(entry.get(f"{part}_ok", inner.get("judgment")), name, index)
        ok = _verdict(entry.get("ok", entry.get("judgment")), name, index)
        both = (parts["image_ok"], parts["logic_ok"])
        if ok is None and None in both:
            raise InputError(f"{name}: column critiques: entry {index} has no overall verdict; give `ok` or `judgment`")
        critiques.append(StepCritique(**parts, ok=all(both) if ok is None else ok))
        refinements.append(entry.get("step_refinement") or None)
    return tuple(critiques), refinements


def _verdict(value: Any, name: str, index: int) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    word = str(value).strip().casefold()
    if word not in ("correct", "incorrect"):
        raise InputError(f"{name}: column critiques: entry {index}: unknown verdict {value!r}; write true/false or Correct/Incorrect")
    return word == "correct"


def write_records(path: str | os.PathLike[str], records: Iterable[StepRecord]) -> int:
    """Write records as `.jsonl` or `.parquet`, whole or not at all; returns their number.

    Pictures in memory go into a parquet file as bytes, and beside a JSONL file as PNGs in `<name>_images/`; paths stay paths.
    """
    path = Path(path)
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"{path}: step records are written as .jsonl or .parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        rows = [{**_plain(record), "images": [_embed(image) for image in record.images]} for record in records]
    else:
        rows = [record_row(record, path) for record in records]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.suffix == ".parquet":
            _write_parquet(rows, temporary)
        else:
            with temporary.open("w", encoding="utf-8") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(rows)


def record_row(record: StepRecord, path: Path) -> dict[str, Any]:
    """The record as a row of the JSONL file `path`; a picture in memory is put beside that file."""
    return {**_plain(record), "images": [image_file(image, path, relative=True) for image in record.images]}


def _plain(record: StepRecord) -> dict[str, Any]:
    row = {**vars(record), "steps": list(record.steps)}
    for column in ("mc_scores", "judge", "kinds", "labels"):
        row[column] = None if row[column] is None else list(row[column])
    row["mc_counts"] = None if record.mc_counts is None else [counts and list(counts) for counts in record.mc_counts]
    row["meta"] = dict(record.meta)
    row["critiques"] = None if record.critiques is None else [vars(critique) for critique in record.critiques]
    return row


def image_bytes(image: Any) -> bytes:
    """The bytes of a picture file: as they are for a path or bytes, else as PNG."""
    if isinstance(image, (str, os.PathLike)):
        return Path(image).read_bytes()
    if isinstance(image, bytes):
        return image
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _embed(image: Any) -> dict[str, Any]:
    return {"bytes": None, "path": str(image)} if isinstance(image, (str, os.PathLike)) else {"bytes": image_bytes(image), "path": None}


def image_file(image: Any, path: Path, relative: bool = False) -> str:
    """The path of a picture for the rows of the file `path`. A picture in memory is written to `<name>_images/` beside it first, and its
    path is then `relative` to the file if that is asked for; other paths are absolute."""
    if isinstance(image, (str, os.PathLike)):
        return os.path.abspath(image)
    content = image_bytes(image)
    target = path.parent / f"{path.stem}_images" / f"{hashlib.sha1(content).hexdigest()[:20]}.png"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(f".{os.getpid()}.tmp")
        partial.write_bytes(content)
        os.replace(partial, target)
    return os.path.relpath(target, path.parent) if relative else os.path.abspath(target)


def _write_parquet(rows: list[dict[str, Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    critique = pa.struct([(n, pa.bool_() if n.endswith("ok") else pa.string()) for n in StepCritique.__dataclass_fields__])
    schema = pa.schema(
        {
            "id": pa.string(),
            "question": pa.string(),
            "steps": pa.list_(pa.string()),
            "images": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
            "answer": pa.string(),
            "source": pa.string(),
            "mc_scores": pa.list_(pa.float64()),
            "judge": pa.list_(pa.bool_()),
            "critiques": pa.list_(critique),
            "first_error": pa.int64(),
            "correction": pa.string(),
            "kinds": pa.list_(pa.string()),
            "mc_counts": pa.list_(pa.list_(pa.int64())),
            "labels": pa.list_(pa.float64()),
            "meta": pa.string(),
        }
    )
    rows = [{**row, "meta": json.dumps(row["meta"], ensure_ascii=False)} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, compression="zstd")
