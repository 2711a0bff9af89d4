"""What the commands share: fields with help texts, bars, messages, stamps of model folders."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import field
from typing import Any

from ..types import InputError


def key(help: str, default: Any = ..., **options: Any) -> Any:
    """A dataclass field with its help text; without a default it is required."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(metadata={"help": help}, **({} if default is ... else {"default": default}), **options)


@contextmanager
def fitting(key: str, spec: str) -> Iterator[None]:
    """An engine option that does not exist is the user's mistake, not ours."""
    try:
        yield
    except TypeError as error:
        raise InputError(f"{key} do not fit {spec}: {error}") from error


def print_tables(tables: Iterable[tuple[Sequence[str], Sequence[Sequence[str]]]]) -> None:
    """Tables of (head, rows), figures set right."""
    from rich.console import Console
    from rich.table import Table

    for head, rows in tables:
        table = Table()
        for index, column in enumerate(head):
            table.add_column(column, justify="right" if index else "left", no_wrap=not index)
        for row in rows:
            table.add_row(*row)
        Console().print(table)


def scorer_identity(settings: Any, *more: str) -> dict[str, Any]:
    """What an interrupted evaluation is recognised by when it goes on: the scorer, its settings, its files."""
    names = ("scorer", "scorer_engine", *more, "scorer_settings", "scorer_options")
    return {name: getattr(settings, name) for name in names} | {"scorer_files": folder_stamp(settings.scorer)}


def folder_stamp(spec: str | None) -> str | None:
    """Names, sizes and times of a local model's files in short, so that results of an older training do not pass for a newer one's."""
    import hashlib
    from pathlib import Path

    folder = Path((spec or "").split(":", 1)[-1]).expanduser()
    if not spec or not folder.is_dir():
        return None
    paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != "README.md"]  # evaluations write there
    files = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
    return hashlib.blake2b(repr(files).encode(), digest_size=6).hexdigest()


@contextmanager
def progress(name: str, total: int | None) -> Iterator[Any]:
    """A bar on stderr; yields a function that is told how many are done, and of how many once that is known."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done, total=total: bar.update(task, completed=done, **({} if total is None else {"total": total}))


def say(text: str) -> None:
    print(text, flush=True)
