"""Step records: solutions split into steps with what is known of each step; which of them are fit for training. `record_files` reads and
writes them.

Columns (only `question`, `steps` and one source of labels are required):

    id           str          generated from the file's name and line when absent
    source       str          where the record comes from
    images       list         paths (relative to the file), or {"bytes": ..., "path": ...} in parquet; `image` holds a single one
    question     str          `<image>` marks are removed: pictures come first in the prompt
    answer       str or null  the gold answer; for curation only, a critic never sees it
    steps        list         strings; or {"step": text, "score": s}, as VisualPRM400K has it (also under `steps_with_score`)
    mc_scores    list[float]  share of continuations of the prefix that reach the gold answer (arXiv 2503.10291)
    judge        list[bool]   labels by a judge or a human
    critiques    list[dict]   per step: intent, image_analysis, image_ok, logic_analysis, logic_ok, ok
    first_error  int or null  0-based; derived from the critiques when absent
    correction   str or null  the text that should stand in place of the first wrong step
    kinds        list         per step "perception", "reasoning" or null: the section it stands in, or what it claims (meta.kinds_by)
    mc_counts    list         per step [continuations that reached the gold answer, continuations], or null where none were made
    labels       list         per step the training target of a labelling rule: 1, 0, or between them; null is not trained on
    meta         dict         how the labels came about (engine, seeds, rule, tokens spent); travels along, in parquet as JSON text

Critiques may also be nested as `step_intent`, `image_alignment` / `reasoning_logic` = {"analysis", "judgment"}, `judgment`, and
`step_refinement`. Other columns are ignored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..types import InputError, Kind, Problem
from .critique import Critique, StepCritique
from .steps import MARKER


@dataclass(frozen=True)
class StepRecord:
    """One judged solution; the module's docstring describes the columns. Raises `InputError` for what cannot be trained on."""

    id: str
    question: str
    steps: tuple[str, ...]
    images: tuple[Any, ...] = ()
    answer: str | None = None
    source: str = ""
    mc_scores: tuple[float, ...] | None = None
    judge: tuple[bool, ...] | None = None
    critiques: tuple[StepCritique, ...] | None = None
    first_error: int | None = None
    correction: str | None = None
    kinds: tuple[Kind | None, ...] | None = None
    mc_counts: tuple[tuple[int, int] | None, ...] | None = None
    labels: tuple[float | None, ...] | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sections(self) -> tuple[Kind | None, ...]:
        """(S,) the section that each step stands in. All None where the kinds come from elsewhere (`meta["kinds_by"]` says from where):
        then the solution was written without sections, and is shown without."""
        return (None,) * len(self.steps) if self.kinds is None or self.meta.get("kinds_by") else self.kinds

    def __post_init__(self) -> None:
        Problem(self.id, self.question, self.images, self.answer)  # the same rules, the same messages
        name = f"record {self.id}"
        if not self.steps:
            raise InputError(f"{name}: column steps is empty; give the solution as a list of step texts")
        for index, step in enumerate(self.steps):
            if not isinstance(step, str):
                raise InputError(f"{name}: column steps: step {index + 1} must be a string, got {step!r:.80}")
        if not any(step.strip() for step in self.steps):
            raise InputError(f"{name}: column steps holds no text")
        for column in ("mc_scores", "judge", "critiques", "kinds", "mc_counts", "labels"):
            values = getattr(self, column)
            if values is not None and len(values) != len(self.steps):
                raise InputError(f"{name}: column {column} has {len(values)} entries for {len(self.steps)} steps; give one for each step")
        for column, scores in (("mc_scores", self.mc_scores), ("labels", [label for label in self.labels or () if label is not None])):
            for score in scores or ():
                if isinstance(score, bool) or not isinstance(score, (int, float)) or not 0 <= score <= 1:
                    raise InputError(f"{name}: column {column} must hold numbers between 0 and 1, got {score!r}")
        for kind in self.kinds or ():
            if kind not in ("perception", "reasoning", None):
                raise InputError(f'{name}: column kinds must hold "perception", "reasoning" or null, got {kind!r}')
        for counts in self.mc_counts or ():
            if counts is not None and not (len(counts) == 2 and 0 <= counts[0] <= counts[1]):
                raise InputError(f"{name}: column mc_counts must hold [right, all] or null for each step, got {counts!r}")
        if self.correction is not None and not isinstance(self.correction, str):
            raise InputError(f"{name}: column correction must be a string or null, got {type(self.correction).__name__}")
        first, judged = self.first_error, self.critiques and first_false([c.ok for c in self.critiques])
        if first is not None and not (isinstance(first, int) and 0 <= first < len(self.steps)):
            raise InputError(f"{name}: column first_error must be a step index from 0 to {len(self.steps) - 1} or null, got {first!r}")
        if first is not None and self.critiques and first != judged:
            raise InputError(f"{name}: column first_error is {first} but the first step judged wrong in column critiques is {judged}")


def first_false(labels: Sequence[bool]) -> int | None:
    return next((i for i, ok in enumerate(labels) if not ok), None)


def hard_labels(record: StepRecord) -> tuple[bool, ...] | None:
    """Monte-Carlo hard labels: a step is right iff some continuation from it reached the gold answer."""
    return None if record.mc_scores is None else tuple(score > 0 for score in record.mc_scores)


def record_critique(record: StepRecord) -> Critique:
    """The training target of a record: its critiques, or verdicts alone (empty analyses) from judge or Monte-Carlo labels."""
    labels = record.judge if record.judge is not None else hard_labels(record)
    if record.critiques is None and labels is None:
        raise InputError(f"record {record.id}: no labels; give one of the columns critiques, judge or mc_scores")
    steps = record.critiques if record.critiques is not None else tuple(StepCritique(ok=ok) for ok in labels or ())
    first_error = first_false([step.ok for step in steps])
    same = first_error is not None and record.first_error in (None, first_error)
    return Critique(steps, first_error, record.correction if same else None)


# Consistency of a critique's verdicts with Monte-Carlo hard labels, both one bool for each step.
CONSISTENCY: dict[str, Callable[[Sequence[bool], Sequence[bool]], bool]] = {
    "exact": lambda verdicts, labels: list(verdicts) == list(labels),
    "first_error": lambda verdicts, labels: first_false(verdicts) == first_false(labels),
    "outcome": lambda verdicts, labels: all(verdicts) == all(labels),
}


def filter_records(records: Iterable[StepRecord], consistency: str = "first_error") -> tuple[list[StepRecord], Counter[str]]:
    """The records fit for training, and how many were kept and dropped for which reason.

    Verdicts of critiques must agree with the Monte-Carlo hard labels where a record has both (`exact`: every step; `first_error`:
    the same first wrong step; `outcome`: all right or not). A critique must have a correction, unequal to the step, exactly when it
    finds an error.
    """
    kept, counts = [], Counter[str]()
    for record in records:
        reason = fault(record, consistency)
        counts[f"dropped: {reason}" if reason else "kept"] += 1
        if reason is None:
            kept.append(record)
    return kept, counts


def fault(record: StepRecord, consistency: str = "first_error") -> str | None:
    """Why a record should not be trained on; None if it may be."""
    if consistency not in CONSISTENCY:
        raise InputError(f"unknown consistency filter {consistency!r}; choose one of {', '.join(CONSISTENCY)}")
    if record.critiques is None:
        return None if record.judge is not None or record.mc_scores is not None else "no labels"
    verdicts, labels = [step.ok for step in record.critiques], hard_labels(record)
    first_error = first_false(verdicts)
    if labels is not None and not CONSISTENCY[consistency](verdicts, labels):
        return "verdicts disagree with Monte-Carlo labels"
    if first_error is None and record.correction is not None:
        return "correction without an error"
    if first_error is not None and not (record.correction or "").strip():
        return "error without a correction"
    if first_error is not None and same_text(record.correction or "", record.steps[first_error]):
        return "correction equals the step"
    return None


def same_text(a: str, b: str) -> bool:
    """Whether two step texts are equal but for white space and a leading marker."""
    return " ".join(MARKER.sub("", a, count=1).split()) == " ".join(MARKER.sub("", b, count=1).split())
