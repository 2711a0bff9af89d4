"""A generative judge: any image-text model that is asked in words which of two answers is better, or how good one is.

Trained by `train_dpo_judge`, or used as it comes: `vlrm.load_scorer("vllm:PATH", method="judge")`. What cannot be read is counted, never
guessed.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal

from ..serving.engine import Engine, Request
from ..serving.images import image_key
from ..types import InputError, Pair, Problem, Sample, Score, Usage
from .compare import Comparison, Vote, from_votes
from .judgement import PAIRWISE, POINTWISE, TIES, Said, published_choice, read_choice, read_rating, turned

Mode = Literal["pairwise", "pointwise"]
Orders = Literal["both", "random", "given"]


class Judge:
    """A scorer that asks in words.

    - `mode`: "pairwise" compares answers: `compare(pairs)`, and as a scorer of samples each answer's share of wins against `rivals` others
      of the same problem (all if not given), a tie counting half; an answer without rivals has no score. "pointwise" asks for a number
      from `low` to `high` and gives the mean over votes, brought to [0, 1].
    - `votes`: judgements of each pair in each order, or of each answer; more than one needs `temperature` above 0. VL-RewardBench takes 10
      at temperature 0.2, top_p 0.2.
    - `orders`: "both" asks in either order, which doubles the judgements; "random" draws an order for every vote; "given" keeps it.
    - `ties`: the judge may say that neither is better. `published`: only VL-RewardBench's closing sentence is read.
    - `instructions` replace ours; `pointwise` ones may hold {low} and {high}.

    Prompts end with the answers, the second one last, so that a server's prefix cache serves all that is compared with one answer.
    `counts` has judgements and how many were unparsed; `parse_failure_rate` their share.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        mode: Mode = "pairwise",
        votes: int = 1,
        orders: Orders = "both",
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int = 1024,
        ties: bool = False,
        published: bool = False,
        instructions: str = "",
        low: int = 1,
        high: int = 10,
        rivals: int | None = None,
        seed: int = 0,
    ):
        if mode not in ("pairwise", "pointwise") or orders not in ("both", "random", "given"):
            raise InputError(f"mode must be pairwise or pointwise, and orders both, random or given; got {mode!r} and {orders!r}")
        if votes < 1 or (votes > 1 and temperature <= 0):
            raise InputError(f"votes must be at least 1, and more than one vote needs temperature > 0 (got {votes} at {temperature})")
        if low >= high or (rivals is not None and rivals < 1):
            raise InputError(f"low must be below high, and rivals at least 1; got {low}, {high} and {rivals}")
        self.engine, self.mode, self.votes, self.orders = engine, mode, votes, orders
        self.temperature, self.top_p, self.max_tokens, self.seed = temperature, top_p, max_tokens, seed
        self.ties, self.published, self.low, self.high, self.rivals = ties, published, low, high, rivals
        wanted = PAIRWISE + (TIES if ties else "") if mode == "pairwise" else POINTWISE
        self.instructions = (instructions or wanted).replace("{low}", str(low)).replace("{high}", str(high))
        self.usage = Usage()
        self.counts: Counter[str] = Counter()

    @property
    def parse_failure_rate(self) -> float:
        """Share of judgements that could not be read, over all calls."""
        return self.counts["unparsed"] / max(1, self.counts["judgements"])

    def compare(self, pairs: Sequence[Pair]) -> list[Comparison]:
        """One comparison for each pair, in order; all judgements in one batch of the engine. Votes stand in the order of the draws, so that
        the first K of them are what K votes would have been."""
        plans = [self._plan(pair) for pair in pairs]
        asked = [(i, swapped, plan.count(swapped)) for i, plan in enumerate(plans) for swapped in (False, True) if swapped in plan]
        requests = [self.request(pairs[i].swap() if swapped else pairs[i], n) for i, swapped, n in asked]
        texts = {(i, swapped): list(found) for (i, swapped, _), found in zip(asked, self._generate(requests), strict=True)}
        results = []
        for i, plan in enumerate(plans):
            drawn = [(swapped, texts[i, swapped].pop(0)) for swapped in plan]
            said = [self._read(text) for _, text in drawn]
            votes = [Vote(swapped, turned(word) if swapped else word) for (swapped, _), word in zip(drawn, said, strict=True)]
            results.append(from_votes(votes, [text for _, text in drawn]))
        return results

    def _plan(self, pair: Pair) -> list[bool]:
        """For each vote whether the answers are swapped."""
        if self.orders == "random":
            rng = random.Random(f"{self.seed} {pair.problem.id} {pair.first} {pair.second}")
            return [rng.random() < 0.5 for _ in range(self.votes)]
        return ([False, True] if self.orders == "both" else [False]) * self.votes

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        """One score for each sample, in order."""
        return self._rate(samples) if self.mode == "pointwise" else self._tournament(samples)

    def request(self, pair: Pair, votes: int = 1) -> Request:
        """What is asked of a pair, in the order in which it stands."""
        return self._request(pair.problem, two_answers(pair), votes, (pair.first, pair.second))

    def _rate(self, samples: Sequence[Sample]) -> list[Score]:
        requests = [self._request(s.problem, f"Answer:\n{s.solution}", self.votes, (s.solution,)) for s in samples]
        scores = []
        for texts in self._generate(requests):
            numbers = [read_rating(text, self.low, self.high) for text in texts]
            read = [number for number in numbers if number is not None]
            self.counts.update(judgements=len(texts), unparsed=len(texts) - len(read))
            details = {"ratings": numbers, "texts": texts, "share": True}
            value = (math.fsum(read) / len(read) - self.low) / (self.high - self.low) if read else None
            scores.append(Score(value, details=details, error=None if read else "no judgement could be read"))
        return scores

    def _tournament(self, samples: Sequence[Sample]) -> list[Score]:
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, sample in enumerate(samples):
            groups[sample.problem.id, sample.problem.question, tuple(map(image_key, sample.problem.images))].append(i)
        games: dict[tuple[int, int], Comparison | None] = {}
        for members in groups.values():
            for at, i in enumerate(members):
                rivals = [members[(at + k) % len(members)] for k in range(1, len(members))][: self.rivals]
                games |= {(min(i, j), max(i, j)): None for j in rivals if samples[i].solution != samples[j].solution}
        pairs = [Pair(samples[i].problem, samples[i].solution, samples[j].solution, 0) for i, j in games]
        won, played = defaultdict(float), Counter[int]()
        for (i, j), game in zip(games, self.compare(pairs), strict=True):
            if game.said == "unparsed":
                continue
            points = {"first": 1.0, "tie": 0.5, "second": 0.0}[game.said]
            won[i], won[j] = won[i] + points, won[j] + 1 - points
            played.update((i, j))
        for members in groups.values():  # equal answers tie with one another
            for i in members:
                twins = sum(samples[i].solution == samples[j].solution for j in members) - 1
                won[i] += 0.5 * twins
                played[i] += twins
        nothing = "a pairwise judge scores an answer against others of the same problem, and no comparison could be read"
        shares = [won[i] / played[i] if played[i] else None for i in range(len(samples))]
        return [
            Score(share, details={"games": played[i], "share": True}, error=nothing if share is None else None)
            for i, share in enumerate(shares)
        ]

    def _request(self, problem: Problem, shown: str, votes: int, key: tuple[str, ...]) -> Request:
        return Request(
            judge_messages(problem, shown, self.instructions),
            problem.images,
            n=votes,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=random.Random(f"{self.seed} {problem.id} {key}").randrange(2**31) if self.temperature > 0 else None,
        )

    def _generate(self, requests: Sequence[Request]) -> list[list[str]]:
        before = self.engine.usage
        answers = self.engine.generate(requests) if requests else []
        self.usage += self.engine.usage - before
        return [[completion.text for completion in completions] for completions in answers]

    def _read(self, text: str) -> Said:
        said = published_choice(text) if self.published else read_choice(text)
        self.counts.update(judgements=1, unparsed=said == "unparsed", ties=said == "tie")
        return said


def two_answers(pair: Pair) -> str:
    """How two answers are shown."""
    return f"Answer 1:\n{pair.first}\n\nAnswer 2:\n{pair.second}"


def judge_messages(problem: Problem, shown: str, instructions: str) -> list[dict[str, Any]]:
    """The judge's prompt, in training and in use: one user turn, the pictures first, then what is asked, the question, the answers."""
    text = f"{instructions}\n\n" + f"Question:\n{problem.question}\n\n{shown}".replace("<image>", "image")
    return [{"role": "user", "content": [{"type": "image"} for _ in problem.images] + [{"type": "text", "text": text}]}]
