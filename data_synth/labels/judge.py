"""A model as judge of steps: it sees the pictures, the question and the numbered solution, and stops at the first wrong step.

Two ways of writing are asked for and read. "analysis": `<analysis_k>` blocks up to the first wrong step and a closing `<conclusion>`
Correct or Incorrect, as VL-PRM has it (arXiv 2509.23250); the first error is then the last block. "critique": the critique of GM-PRM
(arXiv 2508.04088), which also gives training critiques and a correction; a trained GM-PRM writes it unasked. Text that cannot be read
gives no verdict and is counted by its reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from ...prm.critique import WORDS, StepCritique, parse_critique
from ...prm.gm_prm import INSTRUCTIONS, critique_messages
from ...prm.records import same_text
from ...prm.steps import MARKER, render_steps
from ...rm.load import CARD, read_card
from ...serving.adapter import ADAPTER
from ...serving.engine import Completion, Engine, Request
from ...types import InputError, Kind
from .rollouts import Solution
from .rules import DISAGREE, Judgement, JudgesAgree, first_wrong, judges_agree, section_index

Style = Literal["analysis", "critique"]
Judge = Callable[[Sequence[Solution]], tuple[list[Judgement], Counter[str]]]

ANALYSIS = """Check this solution against the picture, step by step and in order. Is every object, value, label and relation that the
step names
there in the picture? Does the step follow from the steps before it, and is its calculation right? Only material errors count, not style.
For each step k write
<analysis_k> what you find </analysis_k>
and stop after the first step that is wrong: say there what is wrong and what should stand in its place, and write nothing on later steps.
Close with <conclusion>Incorrect</conclusion> if you found a wrong step, or with <conclusion>Correct</conclusion> if every step is right."""

_BLOCK = re.compile(r"<\s*analysis[ _-]*(\d{1,3})\s*>", re.IGNORECASE)
_CONCLUSION = re.compile(r"conclusion\W*(?:(?:the\s+)?(?:whole\s+)?(?:solution\s+)?is\s+\W*)?\b(correct|incorrect)\b", re.IGNORECASE)
_SECTION = re.compile(r"^[\s#*\[]*(visual elements|perception|reasoning)[\s*\]:]*$", re.IGNORECASE | re.MULTILINE)
_SECTIONS: dict[str, Kind] = {"visual elements": "perception", "perception": "perception", "reasoning": "reasoning"}


def judge_messages(solution: Solution, style: Style = "analysis", instructions: str | None = None) -> list[dict[str, Any]]:
    """The judge's prompt; `instructions` take the place of those of the style."""
    steps, n_images = [step.text for step in solution.steps], len(solution.problem.images)
    if style == "critique":
        return critique_messages(solution.problem.question, steps, n_images, INSTRUCTIONS if instructions is None else instructions)
    text = f"{solution.problem.question}\n\nSolution:\n{render_steps(steps)}\n\n{ANALYSIS if instructions is None else instructions}"
    return [{"role": "user", "content": [{"type": "image"} for _ in range(n_images)] + [{"type": "text", "text": text}]}]


def judge_solutions(
    solutions: Sequence[Solution],
    engine: Engine,
    *,
    style: Style = "analysis",
    instructions: str | None = None,
    words: Sequence[str] = WORDS,
    stop_at_first_error: bool = False,
    max_tokens: int = 2048,
) -> tuple[list[Judgement], Counter[str]]:
    """A greedy judgement of each solution, in order, from one call of the engine; and how many could not be read, by reason.

    `words` and `stop_at_first_error` are those that a critic was trained with.
    """
    if style not in ("analysis", "critique"):
        raise InputError(f"the judge's style must be analysis or critique, got {style!r}")
    requests = [
        Request(judge_messages(solution, style, instructions), solution.problem.images, max_tokens=max_tokens) for solution in solutions
    ]
    judgements, counts = [], Counter[str]()
    for solution, (answer,) in zip(solutions, engine.generate(requests) if requests else [], strict=True):
        texts, kinds = [step.text for step in solution.steps], [step.kind for step in solution.steps]
        if style == "critique":
            judgement = read_critique(answer, texts, words, stop_at_first_error)
        else:
            judgement = read_analysis(answer, len(texts), kinds)
        judgements.append(judgement)
        counts.update(judged=1, judge_tokens=answer.completion_tokens)
        if judgement.unread:
            counts[f"judge unread: {judgement.unread}"] += 1
    return judgements, counts


def agreeing_judges(judges: Sequence[Judge], agree: JudgesAgree = "first_error") -> Judge:
    """One judge made of several: the first one's judgement stands where all of them agree; elsewhere nothing is known.

    VL-PRM (arXiv 2509.23250) asked three and dropped a solution that any of them gave no readable verdict on (`agree` "read"); its first
    version of the labels wanted the same first error of all of them ("first_error", the default here); "outcome" wants the same answer to
    whether there is one. A judge is asked only about solutions that those before it agree on. Counted: judges_agree, judges_disagree.
    """
    if agree not in get_args(JudgesAgree):
        raise InputError(f"judges_agree must be {', '.join(get_args(JudgesAgree))}, got {agree!r}")
    if len(judges) < 2:
        raise InputError(f"agreement needs two judges or more, got {len(judges)}")

    def judge(solutions: Sequence[Solution]) -> tuple[list[Judgement], Counter[str]]:
        found, counts = judges[0](solutions)
        for other in judges[1:]:
            asked = [i for i, judgement in enumerate(found) if not judgement.unread]
            said, more = other([solutions[i] for i in asked])
            counts = counts + more
            for i, second in zip(asked, said, strict=True):
                tokens = found[i].tokens + second.tokens
                if judges_agree(found[i], second, agree):
                    found[i] = replace(found[i], tokens=tokens)
                else:
                    reason = second.unread or DISAGREE
                    found[i] = Judgement((None,) * len(second.verdicts), reason, text=second.text, tokens=tokens)
        reasons = [judgement.unread for judgement in found]
        counts.update(judges_agree=reasons.count(None), judges_disagree=reasons.count(DISAGREE))
        return found, counts

    return judge


def read_analysis(answer: Completion, size: int, kinds: Sequence[Kind | None] = ()) -> Judgement:
    """Reads `<analysis_k>` blocks and a conclusion. Never raises.

    A judge that counts the steps of each section anew, under the section's name, is understood if `kinds` tells the sections: a step's
    place is its (section, number) then.
    """
    text = answer.text
    conclusion = _CONCLUSION.findall(text)
    blocks = [(match.start(), int(match[1])) for match in _BLOCK.finditer(text)]
    if not text.strip():
        return _unread(answer, size, "empty text")
    if not conclusion:
        return _unread(answer, size, "cut off by the token limit" if answer.finish_reason == "length" else "no conclusion")
    if conclusion[-1].casefold() == "correct":
        return Judgement((True,) * size, text=text, tokens=answer.completion_tokens)
    if not blocks:
        return _unread(answer, size, "an error but no analysis")
    at, number = blocks[-1]
    place: int | None = number - 1 if 1 <= number <= size else None
    headers = [(match.start(), _SECTIONS[match[1].casefold()]) for match in _SECTION.finditer(text, 0, at)]
    if headers and any(kinds) and _starts_anew(blocks, headers):
        place = section_index(kinds, headers[-1][1], number)
    if place is None:
        return _unread(answer, size, "an error in a step that is not there")
    return Judgement((True,) * place + (False,) + (None,) * (size - place - 1), text=text, tokens=answer.completion_tokens)


def _starts_anew(blocks: Sequence[tuple[int, int]], headers: Sequence[tuple[int, Kind]]) -> bool:
    """Whether the first block behind the last header is numbered 1, as the very first block is."""
    return next(number for at, number in blocks if at > headers[-1][0]) == 1


def read_critique(answer: Completion, steps: Sequence[str], words: Sequence[str] = WORDS, stop_at_first_error: bool = False) -> Judgement:
    """Reads a GM-PRM critique. What stands behind the first wrong step may be missing; a gap before it makes the text unreadable."""
    parsed = parse_critique(answer.text, len(steps), words, stop_at_first_error)
    verdicts = tuple(step.judgement for step in parsed.steps)
    first = first_wrong(verdicts)
    if not answer.text.strip():
        return _unread(answer, len(steps), "empty text")
    if None in verdicts[: len(steps) if first is None else first]:
        cut = answer.finish_reason == "length"
        return _unread(answer, len(steps), "cut off by the token limit" if cut else "a step without a verdict")
    critiques, correction = None, None
    if None not in verdicts:
        critiques = tuple(
            StepCritique(s.intent, s.image_analysis, s.image_ok, s.logic_analysis, s.logic_ok, bool(s.judgement)) for s in parsed.steps
        )
        if first is not None and parsed.correction:
            correction = MARKER.sub("", parsed.correction, count=1).strip() or None
            correction = None if correction is None or same_text(correction, steps[first]) else correction
    return Judgement(verdicts, None, critiques, correction, answer.text, answer.completion_tokens)


def _unread(answer: Completion, size: int, reason: str) -> Judgement:
    return Judgement((None,) * size, reason, text=answer.text, tokens=answer.completion_tokens)


def open_judge(spec: str, style: Style = "analysis") -> tuple[str, dict[str, Any], dict[str, Any]]:
    """(engine's specification, its options, what `judge_solutions` must be told) of a judge named by an engine or a folder.

    A folder that `vlrm train` wrote is asked as it was trained to be, in the style "critique".
    """
    scheme, colon, path = spec.partition(":")
    folder = Path(path if colon and scheme in ("transformers", "vllm") else spec)
    if not (folder / CARD).is_file():
        return spec, {}, {"style": style}
    card = read_card(folder)
    known = {name: card["settings"][name] for name in ("words", "stop_at_first_error", "max_tokens") if name in card.get("settings", {})}
    options = {"style": "critique", "instructions": card.get("settings", {}).get("instructions", ""), **known}
    if (folder / ADAPTER).is_file():
        return f"{scheme if colon else 'transformers'}:{card['base']}", {"adapter": str(folder)}, options
    return spec, {}, options
