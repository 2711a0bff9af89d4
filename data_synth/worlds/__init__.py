"""The worlds: procedural families of problems whose pictures, solutions and errors are exactly known."""

from __future__ import annotations

from types import ModuleType

from ...types import InputError
from . import bars, grid, ladder
from .base import sample_scene, split_of

WORLDS: dict[str, ModuleType] = {"grid": grid, "bars": bars, "ladder": ladder}


def get_world(name: str) -> ModuleType:
    if name not in WORLDS:
        raise InputError(f"unknown world {name!r}; there are {', '.join(WORLDS)}")
    return WORLDS[name]


__all__ = ["WORLDS", "get_world", "sample_scene", "split_of"]
