"""What `vlrm.types` holds (import it from there): problems, solutions, scores, costs. Standard library only.

Every other module speaks in these types. They are frozen, carry stable ids, and say at
construction what is wrong with what they were given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

Kind = Literal["perception", "reasoning"]


class InputError(ValueError):
    """What the user gave cannot be used; the message says what to change. The command line exits with 2."""


class EngineError(RuntimeError):
    """A model or a server could not answer; the message says which one, why, and what to try."""


@dataclass(frozen=True)
class Problem:
    """A question about pictures.

    `images` holds paths, PIL images or bytes, in the order in which the question speaks of them. `answer` is the gold
    answer, or None where it is unknown. `meta` travels along untouched (a world keeps its scene there).
    """

    id: str
    question: str
    images: Sequence[Any] = ()
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise InputError(f"Problem.id must be a non-empty string, got {self.id!r}")
        if not isinstance(self.question, str) or not self.question.strip():
            raise InputError(f"problem {self.id}: question must be a non-empty string, got {self.question!r}")
        if self.answer is not None and not isinstance(self.answer, str):
            raise InputError(
                f"problem {self.id}: answer must be a string or None, got {type(self.answer).__name__} {self.answer!r}; write it as text"
            )
        if isinstance(self.images, (str, bytes)) or not isinstance(self.images, Sequence):
            raise InputError(f"problem {self.id}: images must be a list of paths, PIL images or bytes, got {type(self.images).__name__}")


@dataclass(frozen=True)
class Step:
    """One step of a solution. `start` and `end` are character offsets into the solution's text."""

    index: int
    text: str
    start: int = 0
    end: int = 0
    kind: Kind | None = None


@dataclass(frozen=True)
class Sample:
    """A candidate solution to a problem: what a scorer judges."""

    problem: Problem
    solution: str

    def __post_init__(self) -> None:
        if not isinstance(self.problem, Problem):
            raise InputError(f"Sample.problem must be a vlrm.Problem, got {type(self.problem).__name__}")
        if not isinstance(self.solution, str):
            raise InputError(f"problem {self.problem.id}: a solution must be a string, got {type(self.solution).__name__}")


@dataclass(frozen=True)
class Verdict:
    """What a critic says of one step. `probability` is P(correct) in [0, 1], or None where the step could not be read."""

    step: int
    correct: bool | None
    probability: float | None
    image: bool | None = None
    logic: bool | None = None
    analysis: str = ""


@dataclass(frozen=True)
class Score:
    """The judgement of one sample.

    `value` is None when the sample was not scored (`error` says why); None is counted, never turned into 0. `steps` are the
    step scores in [0, 1]. A critic that locates errors also sets `first_error` (0-based step index) and, when it can
    rewrite that step, `correction` (the text of the step that takes its place).
    """

    value: float | None
    steps: tuple[float, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    first_error: int | None = None
    correction: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class Pair:
    """Two solutions of one problem; `preferred` is 0 or 1. `swap()` turns the order and keeps the meaning."""

    problem: Problem
    first: str
    second: str
    preferred: int

    def __post_init__(self) -> None:
        if self.preferred not in (0, 1):
            raise InputError(f"problem {self.problem.id}: preferred must be 0 or 1, got {self.preferred!r}")

    def swap(self) -> Pair:
        return Pair(self.problem, self.second, self.first, 1 - self.preferred)


@dataclass(frozen=True)
class Usage:
    """What was spent: tokens read, tokens written, sequences generated, wall-clock seconds."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    calls: int = 0
    seconds: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.calls + other.calls,
            self.seconds + other.seconds,
        )

    def __sub__(self, other: Usage) -> Usage:
        return Usage(
            self.prompt_tokens - other.prompt_tokens,
            self.completion_tokens - other.completion_tokens,
            self.calls - other.calls,
            self.seconds - other.seconds,
        )


@runtime_checkable
class Scorer(Protocol):
    """Anything that judges samples: one Score for each, in order. `usage` grows with every call."""

    usage: Usage

    def __call__(self, samples: Sequence[Sample]) -> list[Score]: ...
