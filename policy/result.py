"""What a search hands back: the chosen answer, every candidate with its history, and what each of them cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..types import Score, Step, Usage, Verdict

Origin = Literal["sampled", "refined", "no_fix", "resampled", "random_prefix", "kept"]


@dataclass(frozen=True)
class Candidate:
    """One solution in the pool of a problem.

    `origin` says how it came about: "sampled" from scratch; "refined", continued from its parent's prefix with the wrong
    step corrected; "no_fix", the same prefix without the corrected step; "resampled", a fresh sample where there was
    nothing to correct; "random_prefix", continued from the parent's first `step` steps; "kept", the parent once more.
    `parent` is an index into the result's candidates (None where the version that was continued is gone, as in later rounds), `step` the
    0-based step that was replaced (or cut at), `correction` the text that replaced it. `policy_usage` and `scorer_usage` hold all
    that was spent to have this candidate and its score.
    """

    text: str
    answer: str | None
    steps: tuple[Step, ...] = ()
    score: Score | None = None
    origin: Origin = "sampled"
    parent: int | None = None
    step: int | None = None
    correction: str | None = None
    finish_reason: str = "stop"
    policy_usage: Usage = field(default_factory=Usage)
    scorer_usage: Usage = field(default_factory=Usage)

    @property
    def value(self) -> float | None:
        """The score's value, or None where the candidate was not scored."""
        return None if self.score is None else self.score.value


@dataclass(frozen=True)
class Cost:
    """What one problem's search took from the policy and from the scorer.

    Policy tokens are counted from this problem's own completions. Scorer tokens come from `Score.details["usage"]` where
    the scorer gives a `Usage` there; otherwise its total is shared out evenly over the samples of the call, as wall-clock
    seconds always are. The sum over all results is the total in either case.
    """

    policy: Usage = field(default_factory=Usage)
    scorer: Usage = field(default_factory=Usage)

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.policy + other.policy, self.scorer + other.scorer)


@dataclass(frozen=True)
class SearchResult:
    """One problem's outcome. `chosen` is an index into `candidates`; `answer` is None where no candidate gave one."""

    problem_id: str
    answer: str | None
    chosen: int
    candidates: tuple[Candidate, ...]
    cost: Cost
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The chosen solution."""
        return self.candidates[self.chosen].text


def total_cost(results: Sequence[SearchResult]) -> Cost:
    """The cost of a whole run."""
    return sum((result.cost for result in results), Cost())


def as_record(result: SearchResult) -> dict[str, Any]:
    """A result as plain JSON types: one line of the file that `vlrm search` writes."""
    return asdict(result)


def result_from_record(record: Mapping[str, Any]) -> SearchResult:
    """The result that `as_record` wrote, after a way through JSON. `details` come back as plain JSON types."""
    cost = Cost(Usage(**record["cost"]["policy"]), Usage(**record["cost"]["scorer"]))
    candidates = tuple(_candidate(candidate) for candidate in record["candidates"])
    return SearchResult(record["problem_id"], record["answer"], record["chosen"], candidates, cost, record["details"])


def _candidate(record: Mapping[str, Any]) -> Candidate:
    return Candidate(
        **{
            **record,
            "steps": tuple(Step(**step) for step in record["steps"]),
            "score": None if record["score"] is None else _score(record["score"]),
            "policy_usage": Usage(**record["policy_usage"]),
            "scorer_usage": Usage(**record["scorer_usage"]),
        }
    )


def _score(record: Mapping[str, Any]) -> Score:
    return Score(**{**record, "steps": tuple(record["steps"]), "verdicts": tuple(Verdict(**verdict) for verdict in record["verdicts"])})
