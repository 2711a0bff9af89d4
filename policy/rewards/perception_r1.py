"""Perception-R1's reward (arXiv 2506.07218, constants as in its code): a solution is also paid for saying what is to be seen.

r = 0.9 accuracy + 0.1 format + 0.7 mean_j v_j + penalty, with v_j in [0, 1] the judge's word on visual fact j, and
penalty = -2 (1 - distinct / all) over word 20-grams, 0 for shorter texts. The paper's judge is a text-only model asked whether the solution
states each fact (presence, not truth). Here a judge is one of these, and says a number for each fact:

world     the exact judge of vlrm's worlds: the right perception claims of the solution, over those that a right solution makes. A
          contradicted fact counts 0, so listing everything does not pay (inferred: the paper's own judge can be hacked by it).
stated    a fact of the column `facts` counts where its text stands in the solution, case and spaces aside.
ENGINE    an engine (`http://...`, `transformers:PATH`): asked about numbered facts of that column, answers in <info1>..</info1> tags.

Not copied: a judge that answers for fewer facts than it was given leaves the sample unscored and counted, where the paper's code divides by
what is there. Problems without facts get 0 for them, as in the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ...data_synth.problems import truth_of
from ...data_synth.worlds.base import right_solution
from ...prm.steps import split_steps
from ...rm.checkers import load_checker
from ...serving.engine import Engine, Request
from ...types import InputError, Problem, Sample, Score, Usage
from ..ngrams import repeated_ngrams
from .basic import FormatReward

Judge = Callable[[Sequence[Sample]], list[list[float] | None]]
ASK = """Below are a solution and numbered facts about its picture. For each fact decide whether the solution clearly states it.
Write 1 or 0 between tags with the fact's number, such as <info1>1</info1>, one line for each fact and nothing else.

Solution:
{solution}

Facts:
{facts}"""


def perception_r1(
    accuracy: float, form: float, visual: Sequence[float], penalty: float, weights: tuple[float, float, float] = (0.9, 0.1, 0.7)
) -> float:
    """The reward of one solution. `visual` are the facts' numbers; `penalty` is at most 0."""
    seen = sum(min(1.0, max(0.0, value)) for value in visual) / len(visual) if visual else 0.0
    return weights[0] * accuracy + weights[1] * form + weights[2] * seen + penalty


class PerceptionR1:
    """The reward as a scorer. `judge` is one of the above; `pattern` and `checker` are those of the format and the answer reward."""

    looks = False

    def __init__(
        self,
        *,
        judge: str | Engine = "world",
        facts: str = "visual_key_info",
        visual_weight: float = 0.7,
        ngram: int = 20,
        ngram_penalty: float = 2.0,
        pattern: str | None = None,
        checker: str = "auto",
    ):
        self.facts, self.visual_weight, self.ngram, self.ngram_penalty = facts, visual_weight, ngram, ngram_penalty
        self.form, self.check = FormatReward(pattern=pattern), load_checker(checker)
        self.columns = ("answer",) if judge == "world" else ("answer", facts)
        self.engine: Engine | None = None
        self.judge: Judge = {"world": self._by_world, "stated": self._by_text}.get(judge if isinstance(judge, str) else "", self._by_engine)
        if self.judge == self._by_engine:
            from ...serving import load_engine

            self.engine = load_engine(judge) if isinstance(judge, str) else judge

    @property
    def usage(self) -> Usage:
        return self.engine.usage if self.engine else Usage()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        formed = self.form(samples)
        return [self._score(s, float(f.value or 0), v) for s, f, v in zip(samples, formed, self.judge(samples), strict=True)]

    def _score(self, sample: Sample, form: float, visual: list[float] | None) -> Score:
        right = self.check(sample.solution, sample.problem)
        if right is None or visual is None:
            return Score(None, error="the answer could not be checked" if right is None else "the judge did not answer for every fact")
        repeated = repeated_ngrams(sample.solution, self.ngram)
        value = perception_r1(float(right), form, visual, -self.ngram_penalty * repeated, (0.9, 0.1, self.visual_weight))
        return Score(value, details={"accuracy": float(right), "format": form, "visual": visual, "repeated": repeated})

    def _by_world(self, samples: Sequence[Sample]) -> list[list[float] | None]:
        return [world_facts(sample) for sample in samples]

    def _by_text(self, samples: Sequence[Sample]) -> list[list[float] | None]:
        return [[float(_plain(fact) in _plain(sample.solution)) for fact in self._facts(sample.problem)] for sample in samples]

    def _by_engine(self, samples: Sequence[Sample]) -> list[list[float] | None]:
        asked = [(k, self._facts(sample.problem)) for k, sample in enumerate(samples) if self._facts(sample.problem)]
        requests = []
        for k, facts in asked:
            numbered = "\n".join(f"<info{i}>{fact}</info{i}>" for i, fact in enumerate(facts, 1))
            text = ASK.format(solution=samples[k].solution, facts=numbered)
            requests.append(Request([{"role": "user", "content": [{"type": "text", "text": text}]}], max_tokens=512))
        answers: list[list[float] | None] = [[] for _ in samples]
        for (k, facts), (answer,) in zip(asked, self.engine.generate(requests), strict=True):  # type: ignore[union-attr]
            answers[k] = read_judgement(answer.text, len(facts))
        return answers

    def _facts(self, problem: Problem) -> list[str]:
        facts: Any = problem.meta.get(self.facts, [])
        if not isinstance(facts, (list, tuple)) or not all(isinstance(fact, str) for fact in facts):
            raise InputError(f"problem {problem.id}: the column {self.facts} must be a list of facts as text, got {facts!r}")
        return list(facts)


def world_facts(sample: Sample) -> list[float]:
    """1 for each perception claim of the solution that is right, filled up with 0 to the number that the right solution makes."""
    world, scene = truth_of(sample.problem)

    def claims(steps: Sequence[str]) -> list[bool]:
        return [claim.right for truth in world.check(scene, steps) for claim in truth.claims if claim.kind == "perception"]

    wanted = len(claims(right_solution(world, scene)))
    right = min(wanted, sum(claims([step.text for step in split_steps(sample.solution)])))
    return [1.0] * right + [0.0] * (wanted - right)


def read_judgement(text: str, count: int) -> list[float] | None:
    """The numbers in <info1>..</info1> to <infoN>..</infoN>; None where one is missing or is no number."""
    found = dict(re.findall(r"<info(\d+)>\s*([01](?:\.\d+)?)\s*</info\1>", text))
    values = [found.get(str(i)) for i in range(1, count + 1)]
    return None if None in values else [float(value) for value in values if value is not None]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())
