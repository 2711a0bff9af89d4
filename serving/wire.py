"""Scores as JSON and back: what the reward server writes and its client reads. Standard library only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from ..types import Score, Usage, Verdict

FIELDS = ("value", "steps", "verdicts", "first_error", "correction", "details", "error")


def digest(solution: str) -> str:
    """Tells one solution from another, so that a client sees that a score is the one it asked for."""
    return hashlib.blake2b(solution.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def checked(score: Any) -> Score:
    """The score if it can be used; else one without a value that says why (a scorer may give NaN, or something that is no score)."""
    if not isinstance(score, Score):
        return Score(None, error=f"the scorer gave {type(score).__name__} instead of a Score")
    if score.value is None:
        return score if score.error else replace(score, error="the scorer gave no value")
    numbers = [score.value, *score.steps]
    if any(isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number) for number in numbers):
        wrong = next(n for n in numbers if isinstance(n, bool) or not isinstance(n, (int, float)) or not math.isfinite(n))
        return Score(None, error=f"the scorer gave {wrong!r} where a finite number belongs")
    return score


def score_to_wire(score: Score, solution: str, usage: Usage = Usage(), batch: int | None = None) -> dict[str, Any]:  # noqa: B008
    """A score as plain JSON types, with the digest of its solution, what it cost, and the number of the batch that it was made in."""
    details = {name: value for name, value in score.details.items() if name != "usage"}
    return {
        "value": None if score.value is None else float(score.value),
        "steps": [float(step) for step in score.steps],
        "verdicts": [plain(asdict(verdict)) for verdict in score.verdicts],
        "first_error": score.first_error,
        "correction": score.correction,
        "details": plain(details),
        "error": score.error,
        "usage": asdict(usage),
        "digest": digest(solution),
        "batch": batch,
    }


def score_from_wire(record: Mapping[str, Any]) -> Score:
    """The score that `score_to_wire` wrote; `details["usage"]` is what it cost. Raises KeyError, TypeError, ValueError."""
    value = record["value"]
    if value is not None and (isinstance(value, bool) or not math.isfinite(value)):
        raise ValueError(f"{value!r} is not a score")
    return Score(
        value=None if value is None else float(value),
        steps=tuple(float(step) for step in record["steps"]),
        verdicts=tuple(Verdict(**verdict) for verdict in record["verdicts"]),
        first_error=record["first_error"],
        correction=record["correction"],
        details={**record["details"], "usage": Usage(**record["usage"])},
        error=record["error"] if value is not None or record["error"] else "the server gave no value",
    )


def shares(usage: Usage, count: int) -> list[Usage]:
    """What a batch cost, shared out evenly; the tokens add up."""

    def part(total: int, k: int) -> int:
        return total * (k + 1) // count - total * k // count

    return [
        Usage(part(usage.prompt_tokens, k), part(usage.completion_tokens, k), part(usage.calls, k), usage.seconds / count)
        for k in range(count)
    ]


def plain(value: Any) -> Any:
    """The value as JSON types: NaN and infinity become null, what JSON does not know its text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Usage):
        return asdict(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # numpy and torch
        return plain(value.tolist())
    return str(value)
