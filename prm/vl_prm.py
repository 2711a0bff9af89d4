"""VL-PRM (arXiv 2509.23250) as a scorer: a verifier that answers every step with + or -, all steps read in one forward pass.

p(+) = exp(l+) / (exp(l+) + exp(l-)), read where the answer to a step would begin; earlier steps stand there as answered +, as in the
paper. A solution's score is the mean over its steps, or the paper's own reward. Trained by `train_vl_prm`, loaded with
`vlrm.load_scorer(FOLDER)`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, get_args

from ..serving.engine import Engine, Request, Turn
from ..serving.images import image_key
from ..serving.turns import system_role, turn_logprobs
from ..types import InputError, Kind, Sample, Score, Step, Usage, Verdict
from .aggregate import AGGREGATIONS, aggregate
from .sections import render_sections, solution_steps
from .steps import render_steps
from .verdicts import SYSTEM, WORDS, VerdictStyle

Form = Literal["probability", "reward"]
Fill = Literal["positive", "argmax"]
WEIGHTS = {2: (1.0, 0.0), 3: (1.0, 0.5, 0.0)}


def reward(probability: float, length: int, alpha: float = 0.3, beta: float = 0.6) -> float:
    """The paper's reward of a step: -1 where - is likelier than +, else p(+)^alpha / L^beta, with L the prompt's length in tokens,
    pictures and earlier steps included. `beta` 0 leaves the length out."""
    return -1.0 if probability < 0.5 else probability**alpha / length**beta


class VLPRM:
    """A scorer whose scores carry a probability and a verdict for every step.

    - `words`, `system`, `headers`: as trained (see `VerdictStyle`). `system_role`: whether the system text has a turn of its own; None
      asks the chat template of an engine that has one here and believes in it for a server.
    - `score`: "probability" aggregates p(+) by `aggregation` (mean, min, product, last, geometric_mean); "reward" is the last step's
      reward with the exponents `alpha` and `beta`, made for comparing texts that share a prefix. Where - is likelier the value is -p(-)
      rather than -1: below every other reward, and with the paper's choice among them, the smallest p(-). `details["rewards"]` has
      the rewards as they are.
    - `fill`: "positive" shows every earlier step as answered +; "argmax" as the verifier itself answered it, which costs one more pass
      for each - found.
    - `max_steps`: where paragraphs are merged; 1 judges the whole text as one step (the PRM as an outcome model).
    - `weights`: what each word is worth; for three words 1, 0.5, 0 (VisualPRM's 1, 0, -1 brought to [0, 1]: inferred).

    Plain solutions have no kinds, so no headers are shown; `solution_steps` says what a sectioned one is.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        words: Sequence[str] = WORDS[2],
        system: str = SYSTEM,
        system_role: bool | None = None,
        headers: bool = True,
        score: Form = "probability",
        aggregation: str = "mean",
        alpha: float = 0.3,
        beta: float = 0.6,
        fill: Fill = "positive",
        max_steps: int = 12,
        weights: Sequence[float] | None = None,
    ):
        self.style = VerdictStyle(tuple(words), system, _has_system_role(engine) if system_role is None else system_role, headers)
        for name, value, choices in (
            ("score", score, get_args(Form)),
            ("fill", fill, get_args(Fill)),
            ("aggregation", aggregation, AGGREGATIONS),
        ):
            if value not in choices:
                raise InputError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
        if max_steps < 1:
            raise InputError(f"max_steps must be at least 1, got {max_steps}")
        self.weights = tuple(WEIGHTS[len(self.style.words)] if weights is None else weights)
        if len(self.weights) != len(self.style.words) or not all(0 <= weight <= 1 for weight in self.weights):
            raise InputError(f"weights must hold a number in [0, 1] for each of the {len(self.style.words)} words, got {weights!r}")
        self.engine, self.score, self.aggregation, self.fill, self.max_steps = engine, score, aggregation, fill, max_steps
        self.alpha, self.beta = alpha, beta
        self.usage = Usage()
        self.counts: Counter[str] = Counter()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        """One score for each sample, in order. Equal samples are judged once; all others in one batch of the engine."""
        keys = [_key(sample) for sample in samples]
        steps = {key: solution_steps(sample.solution, self.max_steps) for key, sample in zip(keys, samples, strict=True)}
        unique = {key: sample for key, sample in zip(keys, samples, strict=True) if steps[key]}
        before = self.engine.usage
        turns = self._read([(sample, steps[key]) for key, sample in unique.items()])
        spent = self.engine.usage - before
        self.usage += spent
        scores = {key: self._score(read, steps[key]) for key, read in zip(unique, turns, strict=True)}
        results, first = [], set()
        for key in keys:
            if key not in scores:
                results.append(Score(value=None, error="the solution has no text", details={"usage": Usage()}))
                continue
            results.append(scores[key] if key not in first else _again(scores[key]))
            first.add(key)
        return results

    def render_solution(self, steps: Sequence[str], kinds: Sequence[Kind | None]) -> str:
        """The solution that these steps make, in the form that this scorer reads back into them: sections where all kinds are known."""
        return render_steps(steps) if None in kinds else render_sections(steps, kinds)

    def request(self, sample: Sample, steps: Sequence[Step], fill: Sequence[str] = ()) -> Request:
        """The chat that asks for the verdict of the last step and, at its earlier answers, of those before."""
        problem = sample.problem
        return self.style.request(problem.question, problem.images, [s.text for s in steps], [s.kind for s in steps], fill)

    def _read(self, items: Sequence[tuple[Sample, list[Step]]]) -> list[list[Turn]]:
        if not items:
            return []
        words, positive = self.style.words, self.style.words[0]
        fills = [[positive] * (len(steps) - 1) for _, steps in items]
        turns: list[list[Turn]] = [[] for _ in items]
        waiting = list(range(len(items)))
        while waiting:
            read = turn_logprobs(self.engine, [self.request(*items[i], fills[i]) for i in waiting], words)
            again = []
            for i, row in zip(waiting, read, strict=True):
                turns[i] = row
                if self.fill == "argmax":
                    said = [max(words, key=turn.logprobs.__getitem__) for turn in row[:-1]]
                    # What stands before the first difference was read rightly; it is put right, and what follows is read again.
                    if (
                        wrong := next((k for k, pair in enumerate(zip(said, fills[i], strict=True)) if pair[0] != pair[1]), None)
                    ) is not None:
                        fills[i][wrong] = said[wrong]
                        fills[i][wrong + 1 :] = [positive] * (len(said) - wrong - 1)
                        again.append(i)
            waiting = again
        return turns

    def _score(self, turns: Sequence[Turn], steps: Sequence[Step]) -> Score:
        words, verdicts, rewards, values = self.style.words, [], [], []
        for k, turn in enumerate(turns):
            top = max(turn.logprobs[word] for word in words)
            raw = [math.exp(turn.logprobs[word] - top) for word in words]
            probabilities = [value / math.fsum(raw) for value in raw]
            values.append(min(1.0, math.fsum(w * p for w, p in zip(self.weights, probabilities, strict=True))))
            correct = probabilities[-1] < max(probabilities[:-1]) or probabilities[0] == max(probabilities)
            verdicts.append(Verdict(k, correct, values[-1]))
            if turn.tokens is not None:
                rewards.append(reward(values[-1], turn.tokens, self.alpha, self.beta))
        self.counts.update(samples=1, steps=len(turns))
        if self.score == "reward":
            if turns[-1].tokens is None:
                raise InputError("this engine does not tell the lengths of prompts; score='reward' needs them, or take score='probability'")
            value = rewards[-1] if rewards[-1] >= 0 else values[-1] - 1.0
        else:
            value = aggregate(values, self.aggregation)
        details: dict[str, Any] = {"rewards": rewards, "lengths": [turn.tokens for turn in turns], "kinds": [step.kind for step in steps]}
        if turns[-1].tokens is not None:
            details["usage"] = Usage(turns[-1].tokens, 0, 1)
        first_error = next((verdict.step for verdict in verdicts if not verdict.correct), None)
        return Score(value, tuple(values), tuple(verdicts), first_error, details=details)


def _again(score: Score) -> Score:
    """The same score for a sample that was read already, and cost nothing more."""
    return Score(score.value, score.steps, score.verdicts, score.first_error, details={**score.details, "usage": Usage()})


def _has_system_role(engine: Engine) -> bool:
    prompter = getattr(engine, "prompter", None)
    return prompter is None or system_role(prompter)


def _key(sample: Sample) -> tuple[Any, ...]:
    return sample.problem.question, tuple(image_key(image) for image in sample.problem.images), sample.solution
