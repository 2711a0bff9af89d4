"""The chat of a step verifier, and what it is to answer: one step in each of the user's turns, one verdict word in each answer.

The form is VL-PRM's (arXiv 2509.23250, and VisualPRM's, arXiv 2503.10291): the first turn holds the pictures, the question and the first
step; a section's header stands before the step that opens it. Nothing here needs a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ..serving.engine import Request
from ..types import InputError, Kind
from .records import StepRecord
from .sections import HEADERS

SYSTEM = (
    "You check solutions to questions about pictures. First you get the picture and the question, then the solution, one step in each "
    "turn. Say after every step whether the solution is right so far, looking at visual accuracy (is what it says of the picture true?) "
    "and at logical validity (does it follow from what came before?). Answer with + or - and nothing else. One error makes everything "
    "after it wrong."
)
Target = Literal["hard", "soft", "value", "advantage"]
Source = Literal["auto", "labels", "judge", "critiques", "mc_scores"]
AfterError = Literal["truncate", "negative", "keep"]
WORDS = {2: ("+", "-"), 3: ("+", "=", "-")}


@dataclass(frozen=True)
class VerdictStyle:
    """How a solution becomes a chat; training and use must agree on it.

    `words`: two verdict words, the positive one first, or three (better, neutral, worse: VisualPRM's advantage form). `system`: the system
    text, "" for none. `system_role=False` puts it at the beginning of the first user's turn, for models whose chat template has no place
    for it. `headers=False` leaves the sections' headers out.
    """

    words: tuple[str, ...] = WORDS[2]
    system: str = SYSTEM
    system_role: bool = True
    headers: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.words, str) or len(self.words) not in WORDS or not all(self.words) or len(set(self.words)) < len(self.words):
            raise InputError(f"words must be two different verdict words, the positive one first, or three, got {self.words!r}")

    def request(
        self, question: str, images: Sequence[Any], steps: Sequence[str], kinds: Sequence[Kind | None] = (), fill: Sequence[str] = ()
    ) -> Request:
        """The chat up to the last step's answer, which is not in it. `fill` answers the earlier steps (the positive word if not given)."""
        fill = fill or [self.words[0]] * (len(steps) - 1)
        messages: list[dict[str, Any]] = []
        section: Kind | None = None
        for k, (step, kind) in enumerate(zip(steps, kinds or [None] * len(steps), strict=True)):
            text = step.strip()
            if self.headers and kind is not None and kind != section:
                text = f"{HEADERS[kind]}\n{text}"
            section = kind
            parts: list[dict[str, Any]] = [{"type": "text", "text": text}]
            if k == 0:
                before = f"{self.system}\n\n" if self.system and not self.system_role else ""
                parts[0]["text"] = f"{before}### Question:\n{question}\n\n### Solution Process:\n{text}"
                parts = [{"type": "image"} for _ in images] + parts
            else:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": fill[k - 1]}]})
            messages.append({"role": "user", "content": parts})
        if self.system and self.system_role:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": self.system}]})
        return Request(messages, images, max_tokens=1)


@dataclass(frozen=True)
class TargetRule:
    """How a record's labels become targets.

    - `target`: "hard" is 1 or 0; "value" the same from Monte-Carlo scores alone, as VisualPRM trains; "soft" the share itself (MM-PRM);
      "advantage" compares a step's Monte-Carlo score with the step before: 1 better, 0.5 equal, 0 worse (needs three words). The first
      step has nothing before it and counts as better where its score is above the threshold: inferred, the papers do not say.
    - `source`: the column that labels are taken from; "auto" takes the first that a record has of labels, judge, critiques, mc_scores.
    - `threshold`: a share is negative unless it is above this (VL-PRM and VisualPRM: 0).
    - `after_error`: "truncate" ends the chat with the first negative step, as VL-PRM's code does; "negative" makes all later
      steps negative; "keep" takes their own labels.
    - `kinds`: steps of other kinds are shown but not trained on; a step without a kind always is.
    """

    target: Target = "hard"
    source: Source = "auto"
    threshold: float = 0.0
    after_error: AfterError = "truncate"
    kinds: tuple[str, ...] = ("perception", "reasoning")

    def __post_init__(self) -> None:
        for name, choices in (("target", Target), ("source", Source), ("after_error", AfterError)):
            if getattr(self, name) not in get_args(choices):
                raise InputError(f"{name} must be one of {', '.join(get_args(choices))}, got {getattr(self, name)!r}")
        if not 0 <= self.threshold < 1:
            raise InputError(f"threshold must lie in [0, 1), got {self.threshold}")
        if not self.kinds or set(self.kinds) - {"perception", "reasoning"}:
            raise InputError(f"label_kinds must name perception, reasoning or both, got {list(self.kinds)}")

    def values(self, record: StepRecord) -> list[float | None]:
        """A value in [0, 1] for each step of the record that belongs to the chat, None where it is not trained on. Empty where there is
        nothing to train on. The chat ends with the last step that has a value."""
        found = _labels(record, "mc_scores" if self.target in ("value", "advantage") else self.source)
        if found is None:
            return []
        positive = [None if value is None else value > self.threshold for value in found]
        if self.target == "advantage":
            before = [None, *found[:-1]]
            values = [_change(now, earlier, right) for now, earlier, right in zip(found, before, positive, strict=True)]
        else:
            values = list(found) if self.target == "soft" else [None if right is None else float(right) for right in positive]
        error = next((k for k, right in enumerate(positive) if right is False), None)
        kinds = record.kinds or [None] * len(values)
        trained = [kind is None or kind in self.kinds for kind in kinds]
        if error is not None and self.after_error == "negative":
            values[error + 1 :] = [0.0] * (len(values) - error - 1)
        if error is not None and self.after_error == "truncate":
            # An error that is not trained on shows in the first step after it that is.
            if not trained[error]:
                values[error + 1 :] = [0.0] * (len(values) - error - 1)
                error = next((k for k in range(error + 1, len(values)) if trained[k]), len(values) - 1)
            values = values[: error + 1]
        values = [value if ok else None for value, ok in zip(values, trained, strict=False)]
        while values and values[-1] is None:
            values.pop()
        return values


def _labels(record: StepRecord, source: str) -> list[float | None] | None:
    critiques = None if record.critiques is None else [critique.ok for critique in record.critiques]
    columns = {"labels": record.labels, "judge": record.judge, "critiques": critiques, "mc_scores": record.mc_scores}
    names = columns if source == "auto" else [source]
    found = next((columns[name] for name in names if columns[name] is not None), None)
    return None if found is None else [None if value is None else float(value) for value in found]


def _change(now: float | None, earlier: float | None, right: bool | None) -> float | None:
    if now is None:
        return None
    if earlier is None:
        return float(bool(right))
    return 0.5 + 0.5 * ((now > earlier) - (now < earlier))


def spread_value(value: float, words: int) -> list[float]:
    """The distribution over the verdict words that a value stands for: (p, 1 - p), or one of better, neutral, worse."""
    if words == 2:
        return [value, 1 - value]
    return [float(value == one) for one in (1.0, 0.5, 0.0)]
