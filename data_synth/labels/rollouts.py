"""Continuations of many prefixes at once: what every Monte-Carlo labeller asks its engine for.

A labeller is a generator: it yields the prefixes that it wants continued and is sent their continuations. `lockstep` runs the
labellers of many solutions side by side, so that each round of all of them is one batch of the engine. Requests of one problem lie
together, longer prefixes behind the shorter ones that they begin with, which is the order that a prefix cache wants.

A seed depends on (seed, problem id, prefix) alone, and a sample on its seed and its index: the same prefix gives the same continuations
whoever asks for it, in whatever batch, and is sampled once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from ...prm.sections import solution_steps
from ...rm.answers import extract_answer
from ...rm.checkers import Checker, load_checker
from ...rm.problems import policy_messages
from ...serving.engine import Completion, Engine, Request
from ...types import InputError, Problem, Step

T = TypeVar("T")
Unfinished = Literal["drop", "wrong"]


@dataclass(frozen=True)
class Ask:
    """`k` continuations wanted of a prefix; an empty prefix asks for whole solutions."""

    problem: Problem
    prefix: str
    k: int


@dataclass(frozen=True)
class Rollout:
    """A continuation. `right`: whether prefix and text together reach the gold answer; None where that is not known (the checker raised
    or could not tell, or the token limit came first), and then no label may rest on it. `tokens`: what it cost, 0 where it was there."""

    text: str
    right: bool | None
    finished: bool = True
    tokens: int = 0


@dataclass(frozen=True)
class Solution:
    """A sampled solution that came to its end, split into steps."""

    id: str
    problem: Problem
    text: str
    steps: tuple[Step, ...]
    right: bool | None
    tokens: int = 0

    def prefix(self, index: int) -> str:
        """The text up to the end of step `index` (0-based)."""
        return self.text[: self.steps[index].end]


Search = Generator[list[Ask], list[list[Rollout]], T]


class Rollouts:
    """Asks `engine` for continuations and checks their answers. `counts`: rollouts, right, no_answer, unfinished, checker_failed, unclear,
    shared (asked again, not sampled again) and tokens.

    `unfinished` says what a continuation is worth that ran into `max_tokens`: "drop" leaves it out of the count, so that a policy that
    never ends gives no labels; "wrong" counts it as wrong, as VL-PRM does (arXiv 2509.23250). One that ends without an answer is wrong.
    """

    def __init__(
        self,
        engine: Engine,
        check: Checker | None = None,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        max_tokens: int = 512,
        instruction: str = "",
        unfinished: Unfinished = "drop",
    ):
        if unfinished not in ("drop", "wrong"):
            raise InputError(f"unfinished must be drop or wrong, got {unfinished!r}")
        if temperature <= 0:
            raise InputError(f"temperature must be above 0, got {temperature}: continuations that are all the same tell nothing")
        self.engine, self.check, self.seed, self.instruction, self.unfinished = (
            engine, check or load_checker(), seed, instruction, unfinished,
        )  # fmt: skip
        self.sampling = {"temperature": temperature, "top_p": top_p, "top_k": top_k, "max_tokens": max_tokens}
        Request([], **self.sampling)  # has the checks of the others
        self.counts: Counter[str] = Counter()
        self._known: dict[tuple[str, str, int], list[Rollout]] = {}

    def __call__(self, asks: Sequence[Ask]) -> list[list[Rollout]]:
        """`k` continuations for each ask, in order, from a single call of the engine."""
        keys = [_key(ask) for ask in asks]
        fresh = {key: ask for key, ask in zip(keys, asks, strict=True) if key not in self._known}
        order = sorted(fresh)
        answers = self.engine.generate([self._request(fresh[key]) for key in order]) if order else []
        for key, completions in zip(order, answers, strict=True):
            self._known[key] = [self._rollout(fresh[key], completion) for completion in completions]
        results = []
        for key in keys:
            paid = fresh.pop(key, None) is not None
            found = self._known[key]
            self.counts["shared"] += 0 if paid else len(found)
            results.append(found if paid else [replace(rollout, tokens=0) for rollout in found])
        return results

    def _request(self, ask: Ask) -> Request:
        return Request(
            policy_messages(ask.problem, self.instruction),
            images=ask.problem.images,
            prefix=ask.prefix,
            n=ask.k,
            seed=rollout_seed(self.seed, ask.problem.id, ask.prefix),
            **self.sampling,
        )

    def _rollout(self, ask: Ask, completion: Completion) -> Rollout:
        finished, text = completion.finish_reason == "stop", ask.prefix + completion.text
        self.counts.update(rollouts=1, tokens=completion.completion_tokens)
        if not finished:
            self.counts["unfinished"] += 1
            right = False if self.unfinished == "wrong" else None
        else:
            self.counts["no_answer"] += extract_answer(text) is None
            right = self.judge(text, ask.problem)
        self.counts["right"] += right is True
        return Rollout(completion.text, right, finished, completion.completion_tokens)

    def judge(self, text: str, problem: Problem) -> bool | None:
        """Whether a whole solution is right; a checker that raises, or cannot tell, is counted and gives None."""
        try:
            right = self.check(text, problem)
        except Exception:  # a user's function may raise anything, and one bad answer must not end a run of days
            self.counts["checker_failed"] += 1
            return None
        self.counts["unclear"] += right is None
        return None if right is None else bool(right)


def _key(ask: Ask) -> tuple[str, str, int]:
    return ask.problem.id, ask.prefix, ask.k


def rollout_seed(seed: int, problem_id: str, prefix: str) -> int:
    """A 31-bit seed that is the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{problem_id}\0{prefix}".encode("utf-8", "surrogatepass"), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def lockstep(searches: Sequence[Search[T]], rollouts: Rollouts) -> list[T]:
    """Runs all searches side by side, in order; what they ask for in a round is one batch."""
    results: dict[int, T] = {}
    answers: dict[int, Any] = dict.fromkeys(range(len(searches)))
    while answers:
        asked: dict[int, list[Ask]] = {}
        for index, answer in answers.items():
            try:
                asked[index] = searches[index].send(answer)
            except StopIteration as end:
                results[index] = end.value
        found = iter(rollouts([ask for asks in asked.values() for ask in asks]))
        answers = {index: [next(found) for _ in asks] for index, asks in asked.items()}
    return [results[index] for index in range(len(searches))]


def sample_solutions(
    problems: Sequence[Problem], rollouts: Rollouts, n: int, max_steps: int = 12
) -> tuple[list[list[Solution]], Counter[str]]:
    """`n` solutions of each problem, and what became of them: those that hit the token limit or hold no step are counted and left out."""
    counts: Counter[str] = Counter()
    pools = []
    for problem, found in zip(problems, rollouts([Ask(problem, "", n) for problem in problems]), strict=True):
        pool = []
        for index, rollout in enumerate(found):
            steps = tuple(solution_steps(rollout.text, max_steps))
            counts["solutions"] += 1
            if not rollout.finished or not steps:
                counts["solutions_unfinished" if not rollout.finished else "solutions_empty"] += 1
                continue
            counts["solutions_right"] += rollout.right is True
            pool.append(Solution(f"{problem.id}-s{index}", problem, rollout.text, steps, rollout.right, rollout.tokens))
        pools.append(pool)
    return pools, counts
