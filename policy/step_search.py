"""What the step searches share: solutions that grow by one step a round, in lockstep over all problems.

A round is one call of the policy and one of the scorer, whatever the number of problems. A step ends at a stop string; the string
is put back before the next step, so that the policy's text is just what it would have written in one go. (A server that does not say
which string it stopped at is taken to have stopped before a "Step" line where the solution has such lines.)
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..prm.aggregate import AGGREGATIONS, aggregate
from ..prm.steps import MARKER, split_steps
from ..rm.answers import extract_answer
from ..serving.engine import Completion, Engine, Request
from ..types import InputError, Problem, Scorer, Usage
from .result import Candidate, Cost, SearchResult
from .sampling import Sampling, best_index, count_unscored, policy_messages, request_seed, score_pools

MARKED, PARAGRAPH = "\nStep", "\n\n"


@dataclass(frozen=True)
class Growth:
    """How solutions grow.

    - `max_rounds`: steps at most; the last round has no step stops, so that every solution can end.
    - `rank`: what partial solutions are compared by: the last step's score, another aggregation (mean, min, product, geometric_mean) of the
      step scores, or "score", the scorer's own value.
    - `step_stop`: strings that end a step; if none are given, the next "Step" line for solutions that have such lines, a blank line
      for others, either of them at the very beginning.
    - `dedupe`: equal partial solutions of a round are scored and kept once, the first of them.
    - `max_policy_tokens`: for one problem; a round that could go beyond it is cut short, and the search of that problem ends there.
    """

    max_rounds: int = 40
    rank: str = "last"
    step_stop: tuple[str, ...] = ()
    dedupe: bool = True
    max_policy_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise InputError(f"max_rounds must be at least 1, got {self.max_rounds}")
        if self.rank != "score" and self.rank not in AGGREGATIONS:
            raise InputError(f"rank must be score or one of {', '.join(AGGREGATIONS)}, got {self.rank!r}")
        if self.max_policy_tokens is not None and self.max_policy_tokens < 1:
            raise InputError(f"max_policy_tokens must be at least 1, got {self.max_policy_tokens}")


@dataclass(frozen=True)
class Partial:
    """A solution on its way. `opening` comes before its next step. The candidate's usages are those of its own path alone."""

    candidate: Candidate = field(default_factory=lambda: Candidate("", None))
    opening: str = ""
    ended: bool = False


@dataclass
class Ledger:
    """What one problem's search has come to: its cost, discarded steps included, and what is told of it."""

    cost: Cost = field(default_factory=Cost)
    rounds: int = 0
    duplicates: int = 0
    stopped: str = "ended"


@dataclass(frozen=True)
class Growing:
    """A partial solution to be continued `count` times. `slot` sets its samples apart from those of others of the same round."""

    place: int  # which problem
    partial: Partial
    slot: int
    count: int


def split_settings(settings: dict[str, Any], scorer: Any, **defaults: Any) -> tuple[Growth, Sampling]:
    """The keyword arguments of a step search, as its two groups of settings."""
    settings.setdefault("max_steps", getattr(scorer, "max_steps", Sampling.max_steps))
    mine = {name: settings.pop(name) for name in Growth.__dataclass_fields__ if name in settings}
    if "step_stop" in mine:
        mine["step_stop"] = tuple(mine["step_stop"])
    return Growth(**{**defaults, **mine}), Sampling(**settings)


def check_width(n: int, beam_width: int) -> None:
    if isinstance(beam_width, bool) or not isinstance(beam_width, int) or beam_width < 1 or n % beam_width:
        raise InputError(f"n must be a multiple of beam_width, got n={n} and beam_width={beam_width}")


def grow(
    problems: Sequence[Problem],
    wanted: Sequence[Growing],
    ledgers: Sequence[Ledger],
    policy: Engine,
    scorer: Scorer,
    growth: Growth,
    sampling: Sampling,
    seed: int,
    round: int,
) -> list[list[Partial]]:
    """The scored continuations of each partial solution, in order; an empty list where the problem's budget does not allow any."""
    counts = [sum(item.count for item in wanted if item.place == p) for p in range(len(problems))]
    room = [_room(ledger, count, growth, sampling) for ledger, count in zip(ledgers, counts, strict=True)]
    asked = [item for item in wanted if room[item.place] > 0]
    requests = [_request(problems[item.place], item, room[item.place], growth, sampling, seed, round) for item in asked]
    started = time.perf_counter()
    completions = policy.generate(requests) if requests else []
    seconds = (time.perf_counter() - started) / max(1, sum(map(len, completions)))
    pools: list[list[Partial]] = []
    for item, request, group in zip(asked, requests, completions, strict=True):
        partials = [_continued(item.partial, request, done, k, seconds, sampling) for k, done in enumerate(group)]
        ledger = ledgers[item.place]
        for partial in partials:
            ledger.cost += Cost(policy=partial.candidate.policy_usage - item.partial.candidate.policy_usage)
        kept = {(partial.candidate.text, partial.opening): partial for partial in reversed(partials)} if growth.dedupe else None
        if kept is not None:
            ledger.duplicates += len(partials) - len(kept)
            partials = [partial for partial in partials if kept[partial.candidate.text, partial.opening] is partial]
        pools.append(partials)
    scored = score_pools([problems[item.place] for item in asked], [[p.candidate for p in pool] for pool in pools], scorer)
    results = {}
    for item, pool, candidates in zip(asked, pools, scored, strict=True):
        for partial, candidate in zip(pool, candidates, strict=True):
            ledgers[item.place].cost += Cost(scorer=candidate.scorer_usage - partial.candidate.scorer_usage)
        results[id(item)] = [replace(partial, candidate=candidate) for partial, candidate in zip(pool, candidates, strict=True)]
    cut = {item.place for item, group in zip(asked, completions, strict=True) if any(done.finish_reason == "length" for done in group)}
    for p in {item.place for item in wanted}:
        ledgers[p].rounds += room[p] > 0
        if room[p] <= 0 or (p in cut and room[p] < sampling.max_tokens):
            ledgers[p].stopped = "budget"
    return [results.get(id(item), []) for item in wanted]


def rank_of(partial: Partial, rank: str) -> float:
    """What a partial solution is compared by; unscored ones are below all others."""
    score = partial.candidate.score
    value = score and (score.value if rank == "score" or not score.steps else aggregate(score.steps, rank))
    return -math.inf if value is None or math.isnan(value) else value


def best_partials(partials: Sequence[Partial], count: int, rank: str) -> list[Partial]:
    """The best `count`, best first; among equals the earlier one."""
    return sorted(partials, key=lambda partial: -rank_of(partial, rank))[:count]


def climb(
    problems: Sequence[Problem],
    policy: Engine,
    scorer: Scorer,
    trees: int,
    width: int,
    growth: Growth,
    sampling: Sampling,
    seed: int,
    method: str,
) -> list[SearchResult]:
    """`trees` independent climbs for each problem: of `width` next steps the best is taken, until it ends the solution."""
    ledgers = [Ledger() for _ in problems]
    tips = [[Partial() for _ in range(trees)] for _ in problems]
    for round in range(growth.max_rounds):
        wanted = [
            Growing(p, tip, tree, width)
            for p, row in enumerate(tips)
            for tree, tip in enumerate(row)
            if not tip.ended and ledgers[p].stopped == "ended"
        ]
        if not wanted:
            break
        for item, grown in zip(wanted, grow(problems, wanted, ledgers, policy, scorer, growth, sampling, seed, round), strict=True):
            if grown:
                tips[item.place][item.slot] = best_partials(grown, 1, growth.rank)[0]
    return [conclude(*row, growth, method) for row in zip(problems, tips, ledgers, strict=True)]


def conclude(problem: Problem, partials: Sequence[Partial], ledger: Ledger, growth: Growth, method: str) -> SearchResult:
    """The best-scored of the partial solutions that are left, ended ones before others; the cost is all that was spent."""
    ended = [partial.candidate for partial in partials if partial.ended]
    pool = ended or [partial.candidate for partial in partials]
    if not ended and ledger.stopped == "ended":
        ledger.stopped = "rounds"
    chosen = best_index(pool)
    details = {"rounds": ledger.rounds, "duplicates": ledger.duplicates, "stopped": ledger.stopped, "unscored": count_unscored(pool)}
    return SearchResult(problem.id, pool[chosen].answer, chosen, tuple(pool), ledger.cost, {"method": method, **details})


def _room(ledger: Ledger, count: int, growth: Growth, sampling: Sampling) -> int:
    """Tokens that each of a problem's continuations may have in this round."""
    if growth.max_policy_tokens is None or not count:
        return sampling.max_tokens
    return min(sampling.max_tokens, (growth.max_policy_tokens - ledger.cost.policy.completion_tokens) // count)


def _request(problem: Problem, item: Growing, max_tokens: int, growth: Growth, sampling: Sampling, seed: int, round: int) -> Request:
    prefix = item.partial.candidate.text + item.partial.opening
    stops = growth.step_stop or ((MARKED,) if MARKER.search(prefix) else (PARAGRAPH,) if prefix else (MARKED, PARAGRAPH))
    return Request(
        policy_messages(problem, sampling.instruction),
        images=problem.images,
        prefix=prefix,
        n=item.count,
        max_tokens=max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        stop=tuple(sampling.stop) if round == growth.max_rounds - 1 else (*stops, *sampling.stop),
        seed=request_seed(seed, problem.id, item.slot, round),
    )


def _continued(parent: Partial, request: Request, done: Completion, number: int, seconds: float, sampling: Sampling) -> Partial:
    text = request.prefix + done.text
    answer = extract_answer(text)
    opening = done.stopped_at
    if opening is None:  # the engine cannot tell: a text without an answer was cut at the end of a step
        stops = [stop for stop in request.stop if stop not in sampling.stop] if done.text.strip() else []
        opening = MARKED if MARKED in stops and MARKER.search(text) else next(reversed(stops), "")
    ended = answer is not None or not opening or opening in sampling.stop or done.finish_reason == "length"
    spent = Usage(done.prompt_tokens if number == 0 else 0, done.completion_tokens, 1, seconds)  # a prompt is read once for all samples
    candidate = Candidate(
        text,
        answer,
        tuple(split_steps(text, sampling.max_steps)),
        finish_reason=done.finish_reason,
        policy_usage=parent.candidate.policy_usage + spent,
        scorer_usage=parent.candidate.scorer_usage,
    )
    return Partial(candidate, "" if ended else opening, ended)
