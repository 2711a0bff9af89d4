"""What a step record says of each step: right, wrong, or not judged; and of what kind a wrong step's error is. Pure functions."""

from __future__ import annotations

from ..types import InputError, Kind
from .records import StepRecord

Truth = tuple[bool | None, ...]


def step_truth(record: StepRecord, threshold: float = 0.0) -> Truth | None:
    """One label for each step: True right, False wrong, None not judged; None in all where the record has no labels.

    The first of these that the record has: `labels`, `judge`, `critiques`, `mc_scores`. A number counts as right above `threshold`: at 0
    that is Monte-Carlo hard estimation (arXiv 2312.08935), and plain 0/1 labels mean what they say.
    """
    if record.labels is not None:
        return tuple(None if label is None else label > threshold for label in record.labels)
    if record.judge is not None:
        return record.judge
    if record.critiques is not None:
        return tuple(critique.ok for critique in record.critiques)
    return None if record.mc_scores is None else tuple(score > threshold for score in record.mc_scores)


def error_kinds(record: StepRecord) -> tuple[Kind | None, ...]:
    """For each step the kind that an error in it has, None where that is not known: `meta["error_kinds"]` if the data says it itself, else
    its section's, else what its critique finds fault with (the picture before the logic)."""
    if (known := record.meta.get("error_kinds")) is not None:
        if len(known) != len(record.steps):
            given = f"{len(known)} entries for {len(record.steps)} steps"
            raise InputError(f"record {record.id}: meta error_kinds has {given}; give one for each step")
        return tuple(known)
    if record.kinds is not None:
        return record.kinds
    if record.critiques is None:
        return (None,) * len(record.steps)
    return tuple("perception" if c.image_ok is False else "reasoning" if c.logic_ok is False else None for c in record.critiques)
