"""The exact teacher: turns a world's truth about a step into the analysis that a critic is to write.

It stands where the paper has GPT-4o (GM-PRM, arXiv 2508.04088, section on data): step intent, image alignment, reasoning
logic, and the corrected step. An analysis puts what the step says beside what is true and marks
where they agree.
"""

from __future__ import annotations

from ..types import Kind
from .worlds.base import StepTruth


def analysis(truth: StepTruth, kind: Kind) -> str:
    """`claims | own reading | ok or no for each`, or `none` where a step claims nothing of that kind.

    The claims stand together, so that a small model can copy them in one go before it looks for itself.
    """
    if kind == "reasoning" and not truth.readable:
        return "unreadable"
    claims = [claim for claim in truth.claims if claim.kind == kind]
    if not claims:
        return truth.working if kind == "reasoning" and truth.working else "none"
    columns = [[c.stated for c in claims], [c.true for c in claims], ["ok" if c.right else "no" for c in claims]]
    text = " | ".join(" ".join(column) for column in columns)
    return f"{truth.working}; {text}" if kind == "reasoning" and truth.working else text


def comparison(truths: list[StepTruth]) -> str:
    """Every step's claims compared with the picture and the steps before, without any verdict."""
    return "\n".join(
        f"Step {i}\nImage: {analysis(truth, 'perception')}\nLogic: {analysis(truth, 'reasoning')}" for i, truth in enumerate(truths, 1)
    )
