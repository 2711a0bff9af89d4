"""Sampling, scoring and choosing: the three moves that every search method is made of.

Each move is made once for all problems together, so that an engine sees one large batch. A candidate's seed depends only
on (seed, problem id, slot, round): the same slot gives the same sample whatever else is in the batch and whichever
method asks.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..prm.steps import split_steps
from ..rm.answers import extract_answer, same_answer
from ..rm.problems import policy_messages
from ..serving.engine import Engine, Request
from ..types import InputError, Problem, Sample, Scorer, Usage
from .result import Candidate, Cost, Origin, SearchResult

Pool = list[Candidate]


@dataclass(frozen=True)
class Sampling:
    """How the policy samples. `instruction` is put after every question (the shipped tiny policy needs none); `max_steps` is
    where a solution's paragraphs are merged, and must be the scorer's own."""

    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024
    stop: tuple[str, ...] = ()
    instruction: str = ""
    max_steps: int = 12

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise InputError(f"max_steps must be at least 1, got {self.max_steps}")
        Request([], max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p)  # has the checks of the others


@dataclass(frozen=True)
class Draw:
    """One solution to ask the policy for: a slot of a problem's pool, opened by `prefix`."""

    problem: Problem
    slot: int
    prefix: str = ""
    round: int = 0
    origin: Origin = "sampled"
    parent: int | None = None
    step: int | None = None
    correction: str | None = None


def request_seed(seed: int, problem_id: str, slot: int, round: int = 0) -> int:
    """A 31-bit seed that is the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}/{slot}/{round}/{problem_id}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def check(problems: Sequence[Problem], n: int) -> None:
    """Raises InputError for a budget below 1 and for problems that share an id (they would share their samples)."""
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise InputError(f"n must be a whole number of at least 1, got {n!r}")
    seen: set[str] = set()
    for problem in problems:
        if not isinstance(problem, Problem):
            raise InputError(f"problems must be vlrm.Problem objects, got {type(problem).__name__}")
        if problem.id in seen:
            raise InputError(f"two problems have the id {problem.id!r}; give every problem its own id")
        seen.add(problem.id)


def draw(draws: Sequence[Draw], policy: Engine, sampling: Sampling, seed: int) -> list[Candidate]:
    """One candidate for each draw, in order, from a single call of the policy."""
    if not draws:
        return []
    requests = [
        Request(
            policy_messages(item.problem, sampling.instruction),
            images=item.problem.images,
            prefix=item.prefix,
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            stop=tuple(sampling.stop),
            seed=request_seed(seed, item.problem.id, item.slot, item.round),
        )
        for item in draws
    ]
    started = time.perf_counter()
    completions = [group[0] for group in policy.generate(requests)]
    seconds = (time.perf_counter() - started) / len(draws)
    candidates = []
    for item, done in zip(draws, completions, strict=True):
        text = item.prefix + done.text
        candidates.append(
            Candidate(
                text,
                extract_answer(text),
                tuple(split_steps(text, sampling.max_steps)),
                origin=item.origin,
                parent=item.parent,
                step=item.step,
                correction=item.correction,
                finish_reason=done.finish_reason,
                policy_usage=Usage(done.prompt_tokens, done.completion_tokens, 1, seconds),
            )
        )
    return candidates


def sample_pool(
    problems: Sequence[Problem], policy: Engine, *, n: int = 8, seed: int = 0, pool: Sequence[Pool] | None = None, **sampling: Any
) -> list[Pool]:
    """`n` sampled solutions for each problem, in order.

    `pool` holds candidates that were sampled before with the same policy, seed and settings: slot i of it stands for slot
    i here, is not sampled again, and is charged what it cost then. Only missing slots are sampled. `sampling`: temperature,
    top_p, top_k, max_tokens, stop, instruction, max_steps (see `Sampling`).
    """
    check(problems, n)
    settings = Sampling(**sampling)
    pool = [[] for _ in problems] if pool is None else pool
    if len(pool) != len(problems):
        raise InputError(f"pool has {len(pool)} lists of candidates for {len(problems)} problems; give one list for each problem")
    draws = [Draw(problem, slot) for problem, have in zip(problems, pool, strict=True) for slot in range(len(have), n)]
    fresh = iter(draw(draws, policy, settings, seed))
    return [[*have[:n], *(next(fresh) for _ in range(len(have), n))] for have in pool]


def unscored(pools: Sequence[Pool]) -> list[Pool]:
    """The same candidates without their scores: for handing one pool to several scorers."""
    return [[replace(candidate, score=None, scorer_usage=Usage()) for candidate in pool] for pool in pools]


def score_pools(problems: Sequence[Problem], pools: Sequence[Pool], scorer: Scorer, *, again: bool = False) -> list[Pool]:
    """Every candidate with its score, from a single call of the scorer. Candidates that carry a score keep it unless `again`."""
    places = [(p, c) for p, pool in enumerate(pools) for c, candidate in enumerate(pool) if again or candidate.score is None]
    if not places:
        return [list(pool) for pool in pools]
    before, started = _usage_of(scorer), time.perf_counter()
    scores = scorer([Sample(problems[p], pools[p][c].text) for p, c in places])
    if len(scores) != len(places):
        raise InputError(f"the scorer gave {len(scores)} scores for {len(places)} samples; it must give one for each, in order")
    spent = replace(_usage_of(scorer) - before, seconds=time.perf_counter() - started)
    own = [score.details.get("usage") for score in scores]
    shares = share(spent, len(places))
    if all(isinstance(usage, Usage) for usage in own) and replace(sum(own, Usage()), seconds=spent.seconds) == spent:
        shares = [replace(usage, seconds=even.seconds) for usage, even in zip(own, shares, strict=True)]
    scored = [list(pool) for pool in pools]
    for (p, c), score, usage in zip(places, scores, shares, strict=True):
        candidate = scored[p][c]
        scored[p][c] = replace(candidate, score=score, scorer_usage=candidate.scorer_usage + usage)
    return scored


def _usage_of(scorer: Scorer) -> Usage:
    return getattr(scorer, "usage", Usage())  # a plain function is welcome as a scorer; its cost is then unknown


def share(total: Usage, count: int) -> list[Usage]:
    """`total` in `count` parts as even as whole tokens allow; they add up to it exactly."""

    def parts(whole: int) -> list[int]:
        base, rest = divmod(whole, count)
        return [base + (i < rest) for i in range(count)]

    columns = zip(parts(total.prompt_tokens), parts(total.completion_tokens), parts(total.calls), strict=True)
    return [Usage(prompt, completion, calls, total.seconds / count) for prompt, completion, calls in columns]


def answer_groups(candidates: Sequence[Candidate]) -> list[list[int]]:
    """Indices of candidates that give the same answer, groups in order of first appearance. No answer, no group."""
    groups: list[list[int]] = []
    for i, candidate in enumerate(candidates):
        if candidate.answer is None:
            continue
        for group in groups:
            if same_answer(candidates[group[0]].answer, candidate.answer):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def known(value: float | None) -> bool:
    """Whether a score's value is a number at all."""
    return value is not None and not math.isnan(value)


def best_index(candidates: Sequence[Candidate]) -> int:
    """The highest score; None ranks below every number. Ties: fewer Incorrect verdicts, then the answer that more
    candidates give, then the lowest index."""
    votes = [0] * len(candidates)
    for group in answer_groups(candidates):
        for i in group:
            votes[i] = len(group)

    def rank(i: int) -> tuple[float, int, int, int]:
        candidate = candidates[i]
        value = candidate.value if known(candidate.value) else -math.inf
        wrong = sum(verdict.correct is False for verdict in candidate.score.verdicts) if candidate.score else 0
        return value, -wrong, votes[i], -i

    return max(range(len(candidates)), key=rank)


def finish(problem: Problem, pool: Pool, chosen: int, **details: Any) -> SearchResult:
    """The result that chooses candidate `chosen`, with the cost of the whole pool."""
    cost = sum((Cost(candidate.policy_usage, candidate.scorer_usage) for candidate in pool), Cost())
    return SearchResult(problem.id, pool[chosen].answer, chosen, tuple(pool), cost, details)


def count_unscored(pool: Pool) -> int:
    """How many candidates have no usable score: they are counted and ranked last, never given a 0."""
    return sum(not known(candidate.value) for candidate in pool)
