"""The exact teacher: turns a world's truth about a step into the analysis that a critic is to write.

It stands where the paper has GPT-4o (GM-PRM, arXiv 2508.04088, section on data): step intent, image alignment, reasoning
logic, and the corrected step. An analysis puts what the step says beside what is true and marks
where they agree.
"""

from __future__ import annotations

from ..types import Kind
from .worlds.base import StepTruth


def analysis(truth: StepTruth, kind: Kind, columns: bool = False) -> str:
    """`claims | own reading ok own reading no ...`, or `none` where a step claims nothing of that kind.

    The claims stand together, so that a small model can copy them in one go before it looks for itself; a mark stands right
    after the reading that it is about. With `columns` the marks stand together too, after all readings.
    """
    if kind == "reasoning" and not truth.readable:
        return "unreadable"
    claims = [claim for claim in truth.claims if claim.kind == kind]
    if not claims:
        return truth.working if kind == "reasoning" and truth.working else "none"
    stated, true = " ".join(c.stated for c in claims), " ".join(c.true for c in claims)
    marks = ["ok" if claim.right else "no" for claim in claims]
    read = f"{true} | {' '.join(marks)}" if columns else " ".join(f"{c.true} {m}" for c, m in zip(claims, marks, strict=True))
    text = f"{stated} | {read}"
    return f"{truth.working}; {text}" if kind == "reasoning" and truth.working else text


def comparison(truths: list[StepTruth], columns: bool = False, intents: bool = False) -> str:
    """Every step's claims compared with the picture and the steps before, without any verdict; with `intents`, what the step does too."""

    def block(number: int, truth: StepTruth) -> str:
        intent = f"\nIntent: {truth.intent}" if intents else ""
        return f"Step {number}{intent}\nImage: {analysis(truth, 'perception', columns)}\nLogic: {analysis(truth, 'reasoning', columns)}"

    return "\n".join(block(number, truth) for number, truth in enumerate(truths, 1))
