"""How well a critic reads steps, against known truth. Standard library only.

Truth is a label for each step: True right, False wrong, None where the step is not judged (VisualProcessBench's neutral steps, or
what follows an error when only the first one is known). A critic's verdict is True, False or None where its critique could
not be read; an unread verdict counts as a wrong one, never as a skipped one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..types import InputError, Kind

Flags = Sequence[bool | None]


@dataclass(frozen=True)
class Judged:
    """One solution: what the critic said beside what is true.

    `predicted`, `truth`: (S,) flags, one for each step. `kinds`: (S,) kind of each wrong step, None elsewhere. `image`, `logic`:
    (predicted, true) flags at the first truly wrong step, True meaning "no fault of this kind". `correction_right`: whether the
    critic's rewrite is right, None where it gave none.
    """

    predicted: Flags
    truth: Flags
    kinds: Sequence[Kind | None] = ()
    image: tuple[bool | None, bool] | None = None
    logic: tuple[bool | None, bool] | None = None
    correction_right: bool | None = None

    def __post_init__(self) -> None:
        if len(self.predicted) != len(self.truth):
            raise InputError(f"{len(self.predicted)} verdicts for {len(self.truth)} steps; give one for each step")
        if self.kinds and len(self.kinds) != len(self.truth):
            raise InputError(f"{len(self.kinds)} error kinds for {len(self.truth)} steps; give one for each step, None where it is right")

    @property
    def named(self) -> int | None:
        """The first step that the critic calls wrong, among the steps that are judged at all."""
        return first_error([said if true is not None else True for said, true in zip(self.predicted, self.truth, strict=True)])

    @property
    def located(self) -> bool:
        """The critic found the first wrong step of a wrong solution."""
        return self.named is not None and self.named == first_error(self.truth)


def first_error(flags: Flags) -> int | None:
    """0-based index of the first False, or None."""
    return next((i for i, flag in enumerate(flags) if flag is False), None)


def f1(predicted: Sequence[bool], truth: Sequence[bool]) -> float:
    """F1 of the True class; 0 where it neither occurs nor is predicted."""
    hits = sum(p and t for p, t in zip(predicted, truth, strict=True))
    named = sum(predicted) + sum(truth)
    return 2 * hits / named if named else 0.0


def macro_f1(predicted: Flags, truth: Flags) -> float:
    """Mean of the F1 of right steps and the F1 of wrong steps, as VisualProcessBench has it (arXiv 2503.10291). Flags of all steps
    of all solutions together."""
    pairs = [(not t if p is None else p, t) for p, t in zip(predicted, truth, strict=True) if t is not None]
    said, true = [p for p, _ in pairs], [t for _, t in pairs]
    return (f1(said, true) + f1([not p for p in said], [not t for t in true])) / 2


def first_error_accuracy(judged: Sequence[Judged]) -> float | None:
    """Share of solutions whose first wrong step is named, or which are rightly said to have none."""
    return _share([first_error_right(item) for item in judged])


def process_f1(judged: Sequence[Judged]) -> float:
    """Harmonic mean of `first_error_accuracy` on wrong and on right solutions, as ProcessBench has it (arXiv 2412.06559)."""
    wrong = _share([first_error_right(item) for item in judged if first_error(item.truth) is not None]) or 0.0
    right = _share([first_error_right(item) for item in judged if first_error(item.truth) is None]) or 0.0
    return 2 * wrong * right / (wrong + right) if wrong + right else 0.0


def kind_recall(judged: Sequence[Judged], kind: Kind) -> float | None:
    """Share of the truly wrong steps of a kind that the critic calls wrong; None where there are none."""
    return _share([said is False for item in judged for said, true, k in _steps(item) if true is False and k == kind])


def verdict_accuracy(judged: Sequence[Judged]) -> float | None:
    """Share of located errors whose image and logic verdicts are both right."""
    return _share([item.image[0] is item.image[1] and item.logic[0] is item.logic[1] for item in judged if _has_verdicts(item)])


def correction_accuracy(judged: Sequence[Judged]) -> float | None:
    """Share of located errors that were rewritten rightly. A missing correction is a wrong one."""
    return _share([item.correction_right is True for item in judged if item.located])


def step_report(judged: Sequence[Judged]) -> dict[str, Any]:
    """All step figures of a set of judged solutions; a figure without a case to measure it on is None."""
    said = [flag for item in judged for flag in item.predicted]
    true = [flag for item in judged for flag in item.truth]
    return {
        "macro_f1": macro_f1(said, true),
        "first_error_accuracy": first_error_accuracy(judged),
        "process_f1": process_f1(judged),
        "perception_recall": kind_recall(judged, "perception"),
        "reasoning_recall": kind_recall(judged, "reasoning"),
        "verdict_accuracy": verdict_accuracy(judged),
        "correction_accuracy": correction_accuracy(judged),
        "located": sum(item.located for item in judged),
        "unread": sum(flag is None for flag in said),
        "steps": sum(flag is not None for flag in true),
        "count": len(judged),
    }


def first_error_right(item: Judged) -> bool:
    """The first wrong step is named, or every step of a sound solution is called right."""
    if first_error(item.truth) is not None:
        return item.located
    # With a step unread, "no error" was never said of this solution.
    return all(said is True for said, true in zip(item.predicted, item.truth, strict=True) if true is not None)


def _has_verdicts(item: Judged) -> bool:
    return item.located and item.image is not None and item.logic is not None


def _steps(item: Judged) -> list[tuple[bool | None, bool | None, Kind | None]]:
    return list(zip(item.predicted, item.truth, item.kinds or [None] * len(item.truth), strict=True))


def _share(outcomes: Sequence[bool]) -> float | None:
    return sum(outcomes) / len(outcomes) if outcomes else None
