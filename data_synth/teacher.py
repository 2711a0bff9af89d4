"""The exact teacher: turns a world's truth about a step into the analysis that a critic is to write.

It stands where the paper has GPT-4o (GM-PRM, arXiv 2508.04088, section on data): step intent, image alignment, reasoning
logic, and the corrected step. An analysis goes claim by claim: what the step says, what is true, whether they agree.
"""

from __future__ import annotations

from ..types import Kind
from .worlds.base import StepTruth


def analysis(truth: StepTruth, kind: Kind) -> str:
    """`claim | own reading ok; claim | own reading no`, or `none` where a step claims nothing of that kind."""
    if kind == "reasoning" and not truth.readable:
        return "unreadable"
    claims = [claim for claim in truth.claims if claim.kind == kind]
    parts = [f"{claim.stated} | {claim.true} {'ok' if claim.right else 'no'}" for claim in claims]
    if kind == "reasoning" and truth.working:
        parts.insert(0, truth.working)
    return "; ".join(parts) or "none"


def comparison(truths: list[StepTruth]) -> str:
    """Every step's claims compared with the picture and the steps before, without any verdict."""
    return "\n".join(
        f"Step {i}\nImage: {analysis(truth, 'perception')}\nLogic: {analysis(truth, 'reasoning')}" for i, truth in enumerate(truths, 1)
    )
