"""The model card of a trained folder: what was measured of it is put into its README.md, and replaced when it is measured again."""

from __future__ import annotations

import os
from pathlib import Path

from .output import CARD


def add_measurement(folder: str | os.PathLike[str], title: str, table: str) -> bool:
    """Puts a section with the table (Markdown) into the folder's README.md, in the place of an earlier one of the same title. False where
    the folder is no trained scorer's."""
    path = Path(folder) / "README.md"
    if not (Path(folder) / CARD).is_file() or not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- measured: {title} -->", "<!-- /measured -->"
    section = f"{begin}\n## {title}\n{table}\n{end}\n"
    before, found, rest = text.partition(begin)
    text = before + section + rest.partition(f"{end}\n")[2] if found else f"{text.rstrip()}\n\n{section}"
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
    return True
