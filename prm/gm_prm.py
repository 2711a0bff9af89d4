"""GM-PRM, the generative multimodal process reward model (arXiv 2508.04088), as a scorer.

The critic writes one critique of each solution: for every step its intent, its agreement with the picture, its logic, a verdict;
and the corrected text of the first wrong step. A step's score is P(Correct) read at its verdict word:
p = exp(lC) / (exp(lC) + exp(lI)), with lC and lI the log-probabilities of the two verdict words at that place. A solution's score is
the mean over its steps. The critic is trained by `train_gm_prm` (same folder) and loaded with `vlrm.load_scorer(FOLDER)`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ..serving.engine import Completion, Engine, Request
from ..serving.images import image_key
from ..types import InputError, Problem, Sample, Score, Usage, Verdict
from .aggregate import AGGREGATIONS, aggregate
from .critique import WORDS, ParsedCritique, ParsedStep, Span, parse_critique
from .records import same_text
from .steps import MARKER, render_steps, split_steps, without_answer

# For a model that was not trained on the format: pass as `instructions`. A trained critic needs none.
INSTRUCTIONS = """You are a careful critic of solutions to questions about pictures. Judge the numbered steps in order. For each step write:
Step k
Intent: what the step tries to do
Image: compare every visual claim of the step (objects, values, labels, relations) with the picture => Correct or Incorrect
Logic: check the derivation or calculation, given the earlier steps => Correct or Incorrect
Verdict: Correct if both are correct, else Incorrect
A step that claims nothing about the picture is Correct there. After the verdict of the first Incorrect step only, add one line
Correction: that one step written correctly, in the same style and length, without going on to later steps
Write nothing else."""


def critique_messages(question: str, steps: Sequence[str], n_images: int, instructions: str = "") -> list[dict[str, Any]]:
    """The critic's prompt, in training and in use: one user turn, the pictures first, then question, numbered solution, request."""
    text = f"{question}\n\nSolution:\n{render_steps(steps)}\nCritique each step."
    if instructions:
        text += f"\n\n{instructions}"
    return [{"role": "user", "content": [{"type": "image"} for _ in range(n_images)] + [{"type": "text", "text": text}]}]


class GMPRM:
    """A scorer whose scores carry verdicts, the first error and a correction.

    `words` are the verdict words; `aggregation` one of mean, min, product, last, geometric_mean. With `stop_at_first_error` the critic
    was trained to stop there, and later steps count 0. `normalize=False` takes the raw P(Correct). `votes` > 1 averages that many
    critiques sampled at `temperature`. Steps whose verdict cannot be read score 0.5 and are counted: in `Score.details["parse_failed"]`,
    in `counts`, and as `parse_failure_rate`.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        words: Sequence[str] = WORDS,
        aggregation: str = "mean",
        stop_at_first_error: bool = False,
        normalize: bool = True,
        instructions: str = "",
        max_tokens: int = 2048,
        max_steps: int = 12,
        votes: int = 1,
        temperature: float = 0.0,
        seed: int = 0,
    ):
        if isinstance(words, str) or len(words) != 2 or not all(w.strip() for w in words) or words[0].casefold() == words[1].casefold():
            raise InputError(f"words must be two different verdict words, the positive one first, got {words!r}")
        if aggregation not in AGGREGATIONS:
            raise InputError(f"unknown aggregation {aggregation!r}; choose one of {', '.join(AGGREGATIONS)}")
        if votes < 1 or (votes > 1 and temperature <= 0):
            raise InputError(f"votes must be at least 1, and more than one vote needs temperature > 0 (got {votes} at {temperature})")
        self.engine, self.words, self.aggregation = engine, tuple(words), aggregation
        self.stop_at_first_error, self.normalize, self.instructions = stop_at_first_error, normalize, instructions
        self.max_tokens, self.max_steps, self.votes, self.temperature, self.seed = max_tokens, max_steps, votes, temperature, seed
        self.track = (f" {self.words[0]}", f" {self.words[1]}")  # as they stand after "Verdict:" and "=>"
        self.usage = Usage()
        self.counts: Counter[str] = Counter()

    @property
    def parse_failure_rate(self) -> float:
        """Share of judged steps whose verdict could not be read, over all calls."""
        return self.counts["parse_failed"] / max(1, self.counts["steps"])

    def messages(self, problem: Problem, solution: str) -> list[dict[str, Any]]:
        """The prompt that asks for a critique of the solution."""
        steps = [step.text for step in split_steps(solution, self.max_steps)]
        return critique_messages(problem.question, steps, len(problem.images), self.instructions)

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        """One score for each sample, in order. Equal samples are judged once; all others in one batch of the engine."""
        keys = [_key(sample) for sample in samples]
        unique = dict(zip(keys, samples, strict=True))
        judged = {key: sample for key, sample in unique.items() if sample.solution.strip()}
        before = self.engine.usage
        answers = self.engine.generate([self._request(sample) for sample in judged.values()]) if judged else []
        self.usage += self.engine.usage - before
        scores = {key: self._score(sample, answer) for (key, sample), answer in zip(judged.items(), answers, strict=True)}
        empty = Score(value=None, error="the solution has no text")
        return [scores.get(key, empty) for key in keys]

    def correct(self, problem: Problem, solution: str) -> str | None:
        """The text that should stand in place of the solution's first wrong step; None where the critic finds no error or no remedy."""
        return self([Sample(problem, solution)])[0].correction

    def _request(self, sample: Sample) -> Request:
        return Request(
            messages=self.messages(sample.problem, sample.solution),
            images=sample.problem.images,
            n=self.votes,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            seed=self.seed if self.temperature > 0 else None,
            track=self.track,
        )

    def _score(self, sample: Sample, completions: Sequence[Completion]) -> Score:
        steps = split_steps(sample.solution, self.max_steps)
        readings = [self._read(completion, [step.text for step in steps]) for completion in completions]
        failed, hard = sum(r.parsed.failed for r in readings), sum(r.hard for r in readings)
        self.counts.update(samples=1, critiques=len(readings), steps=len(readings) * len(steps), parse_failed=failed, hard=hard)
        self.counts["length"] += sum(completion.finish_reason == "length" for completion in completions)
        first = readings[0]
        step_scores, first_error, correction, verdicts = first.scores, first.parsed.first_error, first.correction, first.verdicts
        if len(readings) > 1:
            step_scores = [math.fsum(column) / len(readings) for column in zip(*(r.scores for r in readings), strict=True)]
            first_error = next((k for k, p in enumerate(step_scores) if p < 0.5), None)
            agreeing = [r for r in readings if r.parsed.first_error == first_error]
            verdicts = [_averaged(v, p) for v, p in zip((agreeing or readings)[0].verdicts, step_scores, strict=True)]
            correction = next((r.correction for r in agreeing if r.correction), None)
        return Score(
            value=aggregate(step_scores, self.aggregation),
            steps=tuple(step_scores),
            verdicts=tuple(verdicts),
            first_error=first_error,
            correction=correction,
            details={
                "critique": completions[0].text,
                "parse_failed": failed,
                "hard": hard,
                "problems": [problem for r in readings for problem in r.parsed.problems],
                **({"critiques": [completion.text for completion in completions]} if len(completions) > 1 else {}),
            },
        )

    def _read(self, completion: Completion, steps: Sequence[str]) -> _Reading:
        parsed = parse_critique(completion.text, len(steps), self.words, self.stop_at_first_error)
        scores, verdicts, hard = [], [], 0
        for index, step in enumerate(parsed.steps):
            after_stop = parsed.stopped and parsed.first_error is not None and index > parsed.first_error
            judgement = None if after_stop else step.judgement
            probability = None
            if judgement is not None:
                probability = self._probability(completion, step)
                if probability is None:
                    hard, probability = hard + 1, float(judgement)
            analysis = "\n".join(text for text in (step.intent, step.image_analysis, step.logic_analysis) if text)
            verdicts.append(Verdict(index, judgement, probability, step.image_ok, step.logic_ok, analysis))
            scores.append(0.0 if after_stop else 0.5 if probability is None else probability)
        return _Reading(parsed, scores, verdicts, hard, _usable_correction(parsed, completion, steps))

    def _probability(self, completion: Completion, step: ParsedStep) -> float | None:
        """P(correct) at the overall verdict word, or where that is missing the lower one of the sub-verdicts; None if not readable."""
        spans = [step.span] if step.ok is not None else [step.image_span, step.logic_span]
        found = [self._probability_at(completion, span) for span in spans if span is not None]
        return None if None in found else min(found, default=None)

    def _probability_at(self, completion: Completion, span: Span) -> float | None:
        token = next((t for t in completion.tokens if t.start <= span[0] < t.end), None)
        if token is None:
            return None
        text = completion.text[token.start : token.end]
        # The tracked words begin with a space: at another spelling of the verdict their probabilities mean nothing.
        if not any(word.startswith(text) for word in self.track):
            return None
        l_correct, l_incorrect = (token.tracked.get(word, -math.inf) for word in self.track)
        if max(l_correct, l_incorrect) == -math.inf:
            return None
        if not self.normalize:
            return min(1.0, math.exp(l_correct))
        return 1.0 / (1.0 + math.exp(min(700.0, l_incorrect - l_correct)))


class _Reading:
    """What one critique says: its parse, a score and a verdict for each step, how many scores are hard 0/1, a usable correction."""

    def __init__(self, parsed: ParsedCritique, scores: list[float], verdicts: list[Verdict], hard: int, correction: str | None):
        self.parsed, self.scores, self.verdicts, self.hard, self.correction = parsed, scores, verdicts, hard, correction


def _usable_correction(parsed: ParsedCritique, completion: Completion, steps: Sequence[str]) -> str | None:
    """The correction without a marker; None when it repeats the step or was cut off by the token limit."""
    if parsed.correction is None or parsed.first_error is None:
        return None
    if completion.finish_reason == "length" and completion.text.rstrip().endswith(parsed.correction):
        return None
    correction = MARKER.sub("", parsed.correction, count=1).strip()
    original = steps[parsed.first_error]
    if not correction or same_text(correction, original) or same_text(correction, without_answer(original)):
        return None
    return correction


def _averaged(verdict: Verdict, probability: float) -> Verdict:
    return Verdict(verdict.step, probability >= 0.5, probability, verdict.image, verdict.logic, verdict.analysis)


def _key(sample: Sample) -> tuple[Any, ...]:
    return sample.problem.question, tuple(image_key(image) for image in sample.problem.images), sample.solution
