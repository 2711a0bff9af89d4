"""The critique of a solution: its data, its text, and a parser that forgives.

GM-PRM (arXiv 2508.04088) writes for every step its intent, whether it agrees with the picture, whether its logic holds, and a
verdict; for the first wrong step alone it also writes the corrected step. No official text format is public, so ours is:

    Step 1
    Intent: read row 1
    Image: red circle | red circle ok; blue square | green square no => Incorrect
    Logic: none => Correct
    Verdict: Incorrect
    Correction: row 1 is red circle green square
    Step 2
    ...

The parser also reads JSON with the fields step_intent / image_alignment / reasoning_logic / judgment / step_refinement. It never
raises: what it cannot read it reports, step by step.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

WORDS = ("Correct", "Incorrect")
Span = tuple[int, int]

# Every name a field goes by, in text or as a JSON key, and what we call it.
FIELDS = {
    "step intent": "intent",
    "intent": "intent",
    "image alignment": "image",
    "image": "image",
    "reasoning logic": "logic",
    "logic": "logic",
    "overall verdict": "verdict",
    "overall judgment": "verdict",
    "verdict": "verdict",
    "judgment": "verdict",
    "judgement": "verdict",
    "corrected step": "correction",
    "correction": "correction",
    "step refinement": "correction",
    "refinement": "correction",
}
_NAMES = "|".join(name.replace(" ", "[ _]") for name in sorted(FIELDS, key=len, reverse=True))
_FIELD = re.compile(rf"^[ \t>#*_-]*({_NAMES})[*_ \t]*:[*_ \t]*", re.IGNORECASE | re.MULTILINE)
_INLINE_FIELD = re.compile(rf"({_NAMES})[*_ \t]*:[*_ \t]*", re.IGNORECASE)
_HEADER = re.compile(rf"^[ \t>#*_-]*step[ \t]*(\d{{1,3}})[ \t*_:.)-]*(?=\r?$|(?:{_NAMES})[*_ \t]*:)", re.IGNORECASE | re.MULTILINE)
_ARROW = r"(?:=>|->|→)"
_NOTHING = frozenset({"", "none", "null", "n/a", "na", "-"})


@dataclass(frozen=True)
class StepCritique:
    """What is said of one step. `ok` is the overall verdict; `image_ok` and `logic_ok` are None where only the overall verdict is
    known (a Monte-Carlo label, say). Otherwise `ok` should be `image_ok and logic_ok`."""

    intent: str = ""
    image_analysis: str = ""
    image_ok: bool | None = None
    logic_analysis: str = ""
    logic_ok: bool | None = None
    ok: bool = True


@dataclass(frozen=True)
class Critique:
    """A whole critique. `first_error` is the 0-based index of the first wrong step; `correction` takes that step's place."""

    steps: tuple[StepCritique, ...]
    first_error: int | None = None
    correction: str | None = None


@dataclass(frozen=True)
class ParsedStep:
    """A step as read from a critique; spans are the character ranges of the verdict words in the text. None: not readable."""

    intent: str = ""
    image_analysis: str = ""
    image_ok: bool | None = None
    image_span: Span | None = None
    logic_analysis: str = ""
    logic_ok: bool | None = None
    logic_span: Span | None = None
    ok: bool | None = None
    span: Span | None = None
    correction: str | None = None

    @property
    def judgement(self) -> bool | None:
        """The overall verdict, else what the two sub-verdicts imply, else None."""
        if self.ok is not None:
            return self.ok
        if False in (self.image_ok, self.logic_ok):
            return False
        return True if self.image_ok and self.logic_ok else None


@dataclass(frozen=True)
class ParsedCritique:
    """`steps` has one entry for each step of the solution; `problems` says in words what was wrong with the text. `stopped` is set
    where judging ended at the first error, so that later steps are not missing."""

    steps: tuple[ParsedStep, ...]
    first_error: int | None = None
    correction: str | None = None
    problems: tuple[str, ...] = ()
    stopped: bool = False

    @property
    def failed(self) -> int:
        """Number of steps whose verdict was wanted and could not be read."""
        return sum(step.judgement is None for step in self.steps[: self.first_error if self.stopped else None])


def format_critique(critique: Critique, words: Sequence[str] = WORDS, stop_at_first_error: bool = False) -> str:
    """The critique as text. Fields without content are left out, so a verdict-only critique is `Step k` and `Verdict:` lines."""
    lines: list[str] = []
    for index, step in enumerate(critique.steps):
        lines.append(f"Step {index + 1}")
        if step.intent.strip():
            lines.append(f"Intent: {_one_line(step.intent)}")
        for name, analysis, ok in (("Image", step.image_analysis, step.image_ok), ("Logic", step.logic_analysis, step.logic_ok)):
            if ok is not None:
                lines.append(f"{name}: {_one_line(analysis)} => ".replace(":  =>", ": =>") + words[0 if ok else 1])
        lines.append(f"Verdict: {words[0 if step.ok else 1]}")
        if index == critique.first_error:
            if critique.correction is not None and critique.correction.strip():
                lines.append(f"Correction: {_safe_lines(critique.correction)}")
            if stop_at_first_error:
                break
    return "\n".join(lines)


def parse_critique(text: str, n_steps: int, words: Sequence[str] = WORDS, stop_at_first_error: bool = False) -> ParsedCritique:
    """Read a critique of `n_steps` steps from model output: text or JSON, bare or fenced, possibly cut short. Never raises."""
    found = _read_text(text, words)
    if not any(step.judgement is not None for _, step in found) and "{" in text:
        found = _read_json(text, words) or found
    steps: list[ParsedStep | None] = [None] * n_steps
    problems: list[str] = []
    for number, step in found:
        if not 1 <= number <= n_steps:
            problems.append(f"step {number}: there is no such step")
        elif steps[number - 1] is not None:
            problems.append(f"step {number}: judged twice")
        else:
            steps[number - 1] = step
    first_error = next((i for i, step in enumerate(steps) if step is not None and step.judgement is False), None)
    stopped = stop_at_first_error and first_error is not None
    for i, step in enumerate(steps):
        if stopped and i > first_error:
            break
        problems.extend(f"step {i + 1}: {problem}" for problem in _step_problems(step, i == first_error))
    correction = steps[first_error].correction if first_error is not None else None
    return ParsedCritique(tuple(step or ParsedStep() for step in steps), first_error, correction, tuple(problems), stopped=stopped)


def _step_problems(step: ParsedStep | None, is_first_error: bool) -> list[str]:
    if step is None:
        return ["missing"]
    problems = []
    if step.ok is None:
        problems.append("no verdict, or an unknown verdict word")
    elif None not in (step.image_ok, step.logic_ok) and step.ok != (step.image_ok and step.logic_ok):
        problems.append("the verdict contradicts the image and logic verdicts")
    if is_first_error and step.correction is None:
        problems.append("error without correction")
    if not is_first_error and step.correction is not None:
        problems.append("correction without error" if step.judgement else "correction of a step that is not the first error")
    return problems


def _read_text(text: str, words: Sequence[str]) -> list[tuple[int, ParsedStep]]:
    headers = [(match.start(), match.end(), int(match.group(1))) for match in _HEADER.finditer(text)]
    if not headers:
        return [(1, _read_block(text, 0, len(text), words))] if _FIELD.search(text) else []
    ends = [start for start, _, _ in headers[1:]] + [len(text)]
    return [(number, _read_block(text, after, end, words)) for (_, after, number), end in zip(headers, ends, strict=True)]


def _read_block(text: str, start: int, end: int, words: Sequence[str]) -> ParsedStep:
    """The fields of one step, from the characters [start, end) of the text."""
    marks = [(m.start(), m.end(), FIELDS[m.group(1).casefold().replace("_", " ")]) for m in _FIELD.finditer(text, start, end)]
    inline = _INLINE_FIELD.match(text, start, end)  # "Step 1: Intent: ..." has a field that does not begin its line
    if inline and not (marks and marks[0][0] == start):
        marks.insert(0, (inline.start(), inline.end(), FIELDS[inline.group(1).casefold().replace("_", " ")]))
    step, seen = ParsedStep(), set[str]()
    for i, (_, at, name) in enumerate(marks):
        stop = marks[i + 1][0] if i + 1 < len(marks) else end
        if name not in seen:
            seen.add(name)
            step = _with_field(step, name, text, at, stop, words)
    return step


def _with_field(step: ParsedStep, name: str, text: str, start: int, end: int, words: Sequence[str]) -> ParsedStep:
    value = text[start:end].strip()
    if name == "intent":
        return replace(step, intent=value)
    if name == "correction":
        value = value.removesuffix("```").strip().strip("*").strip()
        return replace(step, correction=None if value.casefold() in _NOTHING else value)
    if name == "verdict":
        ok, span = _leading_verdict(text, start, end, words)
        return replace(step, ok=ok, span=span)
    ok, span = _closing_verdict(text, start, end, words)
    analysis = _without_arrow(text[start : span[0]]) if span else value
    if name == "image":
        return replace(step, image_analysis=analysis, image_ok=ok, image_span=span)
    return replace(step, logic_analysis=analysis, logic_ok=ok, logic_span=span)


def _without_arrow(text: str) -> str:
    text = text.strip(" \t\r\n*_`")
    return re.sub(f"{_ARROW}$", "", text).rstrip()


def _word_pattern(words: Sequence[str]) -> str:
    bounded = ((r"(?<!\w)" if w[0].isalnum() else "") + re.escape(w) + (r"(?!\w)" if w[-1].isalnum() else "") for w in words)
    return "|".join(sorted(bounded, key=len, reverse=True))


def _is_positive(word: str, words: Sequence[str]) -> bool:
    return word.casefold() == words[0].casefold()


def _leading_verdict(text: str, start: int, end: int, words: Sequence[str]) -> tuple[bool | None, Span | None]:
    """The verdict word that opens a verdict field; markdown, quotes and a short lead-in ("the step is") may stand before it."""
    lead = r"[\s*_`\"'>(\[]*(?:(?:the|this)\s+step\s+is\s+[*_`\"']*)?"
    match = re.compile(f"{lead}({_word_pattern(words)})", re.IGNORECASE).match(text, start, end)
    return (_is_positive(match.group(1), words), match.span(1)) if match else (None, None)


def _closing_verdict(text: str, start: int, end: int, words: Sequence[str]) -> tuple[bool | None, Span | None]:
    """The verdict word that closes an analysis: after its last arrow, or its very last word."""
    value = text[start:end]
    arrows = list(re.finditer(rf"{_ARROW}[\s*_`\"']*({_word_pattern(words)})", value, re.IGNORECASE))
    match = arrows[-1] if arrows else re.search(rf"({_word_pattern(words)})[\s.*_`\"')\]]*\Z", value, re.IGNORECASE)
    if match is None or value[: match.start(1)].rstrip().casefold().endswith(("not", "n't")):
        return None, None
    return _is_positive(match.group(1), words), (start + match.start(1), start + match.end(1))


def _read_json(text: str, words: Sequence[str]) -> list[tuple[int, ParsedStep]]:
    """Step objects found anywhere in the text, so that the whole ones of a truncated answer still count."""
    found: list[tuple[dict[str, Any], int, int]] = []
    at = text.find("{")
    for _ in range(500):  # bounds the work on adversarial input
        if at < 0:
            break
        value, end = _decode(text, at)
        if value is not None and not _STEP_KEYS.isdisjoint(value) and not any(_is_object_list(v) for v in value.values()):
            found.append((value, at, end))
            at = text.find("{", end)
        else:
            at = text.find("{", at + 1)
    numbers = [next((int(str(v[k])) for k in _NUMBER_KEYS if re.fullmatch(r"\d{1,3}", str(v.get(k)))), None) for v, _, _ in found]
    shift = 1 if 0 in numbers else 0
    return [
        (position if number is None else number + shift, _step_from_json(value, text, start, end, words))
        for position, (number, (value, start, end)) in enumerate(zip(numbers, found, strict=True), start=1)
    ]


_NUMBER_KEYS = ("step", "step_index", "step_number", "index")
_STEP_KEYS = frozenset(name.replace(" ", "_") for name in FIELDS) - {"image"}


def _is_object_list(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, dict) for item in value)


def _decode(text: str, at: int) -> tuple[dict[str, Any] | None, int]:
    try:
        value, end = json.JSONDecoder(strict=False).raw_decode(text, at)
    except (ValueError, RecursionError):
        return None, at
    return (value, end) if isinstance(value, dict) else (None, at)


def _step_from_json(value: dict[str, Any], text: str, start: int, end: int, words: Sequence[str]) -> ParsedStep:
    """Verdict spans are looked up in the raw text: the value after a key, outside of the nested objects."""
    raw = text[start:end]
    step, nested = ParsedStep(), []
    for key, content in value.items():
        name = FIELDS.get(key.casefold().replace("_", " "))
        if name in ("image", "logic"):
            place = _value_span(raw, key, [])
            if place is None:
                continue
            nested.append(place)
            inner = _value_span(raw[place[0] : place[1]], "judgment", []) or _value_span(raw[place[0] : place[1]], "verdict", [])
            ok, span = None, None
            if isinstance(content, dict) and inner:
                ok, span = _leading_verdict(text, start + place[0] + inner[0], start + place[0] + inner[1], words)
            elif isinstance(content, str):
                ok, span = _closing_verdict(text, start + place[0], start + place[1], words)
            analysis = content.get("analysis", "") if isinstance(content, dict) else content
            step = replace(step, **{f"{name}_analysis": str(analysis or ""), f"{name}_ok": ok, f"{name}_span": span})
        elif name == "intent":
            step = replace(step, intent=str(content or ""))
        elif name == "correction" and isinstance(content, str) and content.strip().casefold() not in _NOTHING:
            step = replace(step, correction=content.strip())
    for key in value:
        if FIELDS.get(key.casefold().replace("_", " ")) == "verdict" and (place := _value_span(raw, key, nested)):
            ok, span = _leading_verdict(text, start + place[0], start + place[1], words)
            step = replace(step, ok=ok, span=span)
    return step


def _value_span(raw: str, key: str, outside: Sequence[Span]) -> Span | None:
    """Where the value of `"key":` lies in a JSON text, skipping the spans in `outside`."""
    for match in re.finditer(rf'(?<!\\)"{re.escape(key)}"\s*:\s*', raw):
        if not any(first <= match.start() < last for first, last in outside):
            try:
                return match.end(), json.JSONDecoder(strict=False).raw_decode(raw, match.end())[1]
            except (ValueError, RecursionError):
                return None
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _safe_lines(text: str) -> str:
    """A correction keeps its lines, except those that would read as a header or a field: they join the line before."""
    kept: list[str] = []
    for line in text.strip().splitlines():
        if kept and (_HEADER.match(line) or _FIELD.match(line)):
            kept[-1] += " " + line.strip()
        else:
            kept.append(line.rstrip())
    return "\n".join(kept)
