"""From what rollouts and a judge say of a solution's steps to its training labels. Pure functions; S steps.

    hard        1 where some continuation of the prefix reaches the gold answer, else 0 (Math-Shepherd, arXiv 2312.08935)
    soft        the share of continuations that do
    advantage   how much the share rose or fell at the step, mapped into [0, 1]
    judge       what the judge says
    hybrid      judge "wrong": 1 before its first error, 0 at it, whatever the rollouts say. Judge "right" and every share above the
                threshold: all 1. Judge "right" but some share at or below it: dropped (VL-PRM, arXiv 2509.23250)
    consensus   the judge's verdicts where they agree with the hard labels, else dropped (GM-PRM, arXiv 2508.04088): `exact` in every
                step that both label, `first_error` in the first wrong step, `outcome` in whether there is one

Labels end at the first error. What an `advantage` is mapped to and what stands after the first error are not settled by the papers:
settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ...prm.critique import StepCritique
from ...prm.records import CONSISTENCY
from ...types import InputError, Kind

Rule = Literal["hard", "soft", "advantage", "judge", "hybrid", "consensus"]
Consistency = Literal["exact", "first_error", "outcome"]
AfterError = Literal["null", "wrong", "keep"]
Advantage = Literal["linear", "sign"]
JudgesAgree = Literal["first_error", "outcome", "read"]
DISAGREE = "judges disagree"
Counts = tuple[int, int]
Flags = Sequence[bool | None]
Labels = tuple[float | None, ...]


@dataclass(frozen=True)
class Estimate:
    """What rollouts say. `counts` (S,): [right, all] continuations of the prefix that ends with the step, None where none count.
    `hard` (S,): right or wrong by them, or by what a search concludes from them; None where that is not known."""

    counts: tuple[Counts | None, ...]
    hard: tuple[bool | None, ...]
    tokens: int = 0


@dataclass(frozen=True)
class Judgement:
    """What a judge says. `verdicts` (S,): None after the first error, where it stopped. `unread`: why its text could not be read; then
    nothing is known. `critiques` and `correction` where it wrote a whole critique."""

    verdicts: tuple[bool | None, ...]
    unread: str | None = None
    critiques: tuple[StepCritique, ...] | None = None
    correction: str | None = None
    text: str = ""
    tokens: int = 0


@dataclass(frozen=True)
class Ruled:
    """The labels of a solution, or why it has none."""

    labels: Labels | None
    dropped: str | None = None


def hard_flags(counts: Sequence[Counts | None], threshold: float = 0.0) -> tuple[bool | None, ...]:
    """(S,) whether each share of right continuations lies above the threshold; None where there are none."""
    return tuple(None if pair is None or not pair[1] else pair[0] / pair[1] > threshold for pair in counts)


def shares(counts: Sequence[Counts | None]) -> tuple[float | None, ...]:
    """(S,) share of right continuations."""
    return tuple(None if pair is None or not pair[1] else pair[0] / pair[1] for pair in counts)


def first_wrong(flags: Flags) -> int | None:
    """0-based index of the first False, or None."""
    return next((i for i, flag in enumerate(flags) if flag is False), None)


def located(flags: Flags) -> bool:
    """Whether the flags tell the first error or its absence: nothing is unknown before it."""
    return None not in up_to_error(flags)


def up_to_error(flags: Flags) -> list[bool | None]:
    """The flags up to and including the first False."""
    first = first_wrong(flags)
    return list(flags if first is None else flags[: first + 1])


def after_first_error(labels: Labels, first_error: int | None, mode: AfterError = "null") -> Labels:
    """What stands after the first error: null (the truncation of VL-PRM's code), wrong (0), or keep (what was estimated)."""
    if mode not in ("null", "wrong", "keep"):
        raise InputError(f"after_error must be null, wrong or keep, got {mode!r}")
    if first_error is None or mode == "keep":
        return labels
    return labels[: first_error + 1] + (None if mode == "null" else 0.0,) * (len(labels) - first_error - 1)


def advantage_labels(counts: Sequence[Counts | None], root: Counts | None, mapping: Advantage = "linear") -> Labels:
    """(S,) labels of a_k = MC_k - MC_{k-1} with MC_{-1} the share of right solutions sampled from the question: `linear` is (1 + a) / 2;
    `sign` is 1 better, 0.5 neutral, 0 worse, as VisualPRM has it (arXiv 2503.10291). None where either share is unknown."""
    if mapping not in ("linear", "sign"):
        raise InputError(f"advantage must be linear or sign, got {mapping!r}")
    after = shares(counts)
    before = (*shares([root]), *after[:-1])
    labels: list[float | None] = []
    for old, new in zip(before, after, strict=True):
        if old is None or new is None:
            labels.append(None)
        else:
            gain = new - old
            labels.append((1 + gain) / 2 if mapping == "linear" else (1 + (gain > 0) - (gain < 0)) / 2)
    return tuple(labels)


def hybrid(hard: Flags, verdicts: Flags) -> Ruled:
    """VL-PRM's table. Steps are told apart by their place in the whole solution, never by their text or their section's name."""
    error = first_wrong(verdicts)
    if error is not None:
        return Ruled((1.0,) * error + (0.0,) + (None,) * (len(verdicts) - error - 1))
    if False in hard:
        return Ruled(None, "judge finds no error, rollouts do")
    if None in hard:
        return Ruled(None, "rollouts do not tell")
    return Ruled((1.0,) * len(hard))


def consensus(hard: Flags, verdicts: Flags, consistency: Consistency = "first_error") -> Ruled:
    """The verdicts, if they agree with the hard labels. `exact` also wants the same first error: each may stop there."""
    if consistency not in CONSISTENCY:
        raise InputError(f"unknown consistency {consistency!r}; choose one of {', '.join(CONSISTENCY)}")
    if not located(hard):
        return Ruled(None, "rollouts do not tell")
    said, found = up_to_error(verdicts), up_to_error(hard)
    agree = CONSISTENCY["first_error" if consistency == "exact" else consistency](said, found)
    if consistency == "exact":
        both = [(v, h) for v, h in zip(verdicts, hard, strict=True) if v is not None and h is not None]
        agree = agree and CONSISTENCY["exact"]([v for v, _ in both], [h for _, h in both])
    return Ruled(_numbers(verdicts)) if agree else Ruled(None, "judge and rollouts disagree")


def agreement(strong: Estimate, weak: Estimate) -> Estimate:
    """The strong completer's estimate where the weak one's hard labels agree, else nothing (Athena-PRM, arXiv 2506.09532)."""
    same = [a is not None and a == b for a, b in zip(strong.hard, weak.hard, strict=True)]
    return replace(
        strong,
        counts=tuple(pair if ok else None for pair, ok in zip(strong.counts, same, strict=True)),
        hard=tuple(flag if ok else None for flag, ok in zip(strong.hard, same, strict=True)),
        tokens=strong.tokens + weak.tokens,
    )


def judges_agree(first: Judgement, other: Judgement, agree: JudgesAgree = "first_error") -> bool:
    """Whether two judges say the same: the same first wrong step or none, the same `outcome`, or only anything that could be read."""
    if first.unread or other.unread:
        return False
    said, too = first_wrong(first.verdicts), first_wrong(other.verdicts)
    return agree == "read" or (said == too if agree == "first_error" else (said is None) == (too is None))


def apply_rule(
    rule: Rule,
    estimate: Estimate | None,
    judgement: Judgement | None,
    *,
    root: Counts | None = None,
    consistency: Consistency = "first_error",
    after_error: AfterError = "null",
    advantage: Advantage = "linear",
) -> Ruled:
    """The labels (S,) of one solution by a rule, or why it gets none. `estimate` may be None where the rule does not look at it."""
    if rule in ("judge", "hybrid", "consensus") and (judgement is None or judgement.unread):
        return Ruled(None, "not judged" if judgement is None else DISAGREE if judgement.unread == DISAGREE else "judge unread")
    if rule == "judge":
        ruled, error = Ruled(_numbers(judgement.verdicts)), first_wrong(judgement.verdicts)
    elif rule == "hybrid":
        hard = estimate.hard if estimate else (None,) * len(judgement.verdicts)
        ruled, error = hybrid(hard, judgement.verdicts), first_wrong(judgement.verdicts)
    elif rule == "consensus":
        ruled, error = consensus(estimate.hard, judgement.verdicts, consistency), first_wrong(judgement.verdicts)
    elif rule in ("hard", "soft", "advantage"):
        by_rule = {
            "hard": lambda: _numbers(estimate.hard),
            "soft": lambda: shares(estimate.counts),
            "advantage": lambda: advantage_labels(estimate.counts, root, advantage),
        }
        ruled, error = Ruled(by_rule[rule]()), first_wrong(estimate.hard)
    else:
        raise InputError(f"unknown rule {rule!r}; choose hard, soft, advantage, judge, hybrid or consensus")
    if ruled.labels is None:
        return ruled
    labels = after_first_error(ruled.labels, error, after_error)
    return Ruled(None, "no step is labelled") if all(label is None for label in labels) else Ruled(labels)


def section_index(kinds: Sequence[Kind | None], section: Kind, number: int) -> int | None:
    """The place in the whole solution of step `number` (from 1) of a section; None where there is no such step."""
    places = [i for i, kind in enumerate(kinds) if kind == section]
    return places[number - 1] if 1 <= number <= len(places) else None


def _numbers(flags: Flags) -> Labels:
    return tuple(None if flag is None else float(flag) for flag in flags)
