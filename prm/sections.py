"""Solutions in sections, as VL-PRM's policy writes them (arXiv 2509.23250): what is seen first, then what follows from it.

    [Visual Elements]
    <step_1> ... </step_1>
    [Reasoning]
    <step_1> ... </step_1>
    <correct_answer> ... </correct_answer>

`[Perception]` is the same header as `[Visual Elements]`. Numbers start again in each section and two steps may say the same, so a step
is known by its section and its place there, never by its number alone or by its text.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from ..types import InputError, Kind, Step
from .steps import split_steps

HEADERS: dict[Kind, str] = {"perception": "[Visual Elements]", "reasoning": "[Reasoning]"}
_KINDS: dict[str, Kind] = {"visual elements": "perception", "perception": "perception", "reasoning": "reasoning"}
_HEADER = re.compile(r"^[ \t>#*_]*\[[ \t]*(visual elements|perception|reasoning)[ \t]*\][ \t*_:]*$", re.IGNORECASE | re.MULTILINE)
_BLOCK = re.compile(r"<step_\d+>(.*?)(?:</step_\d+>|(?=<step_\d+>)|\Z)", re.IGNORECASE | re.DOTALL)
_ANSWER = re.compile(r"<correct_answer>", re.IGNORECASE)


def solution_steps(text: str, max_steps: int = 12) -> list[Step]:
    """The steps of a solution, with their kinds where it has sections; `Step.index` counts through all of them.

    A section without `<step_i>` blocks, and a text without sections, is split by `split_steps` with `max_steps`; blocks are never
    merged (but for `max_steps` 1, which makes one step of any text). What stands before the first header, and the final answer's
    block, is no step.
    """
    if max_steps == 1 or not (_HEADER.search(text) or _BLOCK.search(text)):
        return split_steps(text, max_steps)
    answer = _ANSWER.search(text)
    end_of_steps = answer.start() if answer else len(text)
    headers = [match for match in _HEADER.finditer(text) if match.start() < end_of_steps]
    sections = [(_KINDS[match[1].casefold()], match.end()) for match in headers] or [(None, 0)]
    ends = [*(match.start() for match in headers[1:]), end_of_steps]
    steps: list[Step] = []
    for (kind, start), end in zip(sections, ends, strict=True):
        body = text[start:end]
        found = [(match[1].strip(), match.start(), match.end()) for match in _BLOCK.finditer(body) if match[1].strip()]
        found = found or [(step.text, step.start, step.end) for step in split_steps(body, max_steps)]
        steps += [
            Step(len(steps) + number, said, start + first, start + first + len(body[first:last].rstrip()), kind)
            for number, (said, first, last) in enumerate(found)
        ]
    return steps


def step_keys(steps: Sequence[Step]) -> list[tuple[Kind | None, int]]:
    """What each step is known by: its section and its 0-based place among that section's steps."""
    seen: Counter[Kind | None] = Counter()
    keys = []
    for step in steps:
        keys.append((step.kind, seen[step.kind]))
        seen[step.kind] += 1
    return keys


def render_sections(texts: Sequence[str], kinds: Sequence[Kind | None]) -> str:
    """The sectioned text of steps whose kinds are all known; a header stands wherever the section changes."""
    if len(texts) != len(kinds) or None in kinds:
        raise InputError("a sectioned solution needs a kind, perception or reasoning, for each step")
    lines, seen, section = [], Counter[Kind | None](), None
    for text, kind in zip(texts, kinds, strict=True):
        if kind != section:
            lines.append(HEADERS[kind])
        seen[kind] += 1
        section = kind
        lines.append(f"<step_{seen[kind]}>\n{text.strip()}\n</step_{seen[kind]}>")
    return "\n".join(lines)
