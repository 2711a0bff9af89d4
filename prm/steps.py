"""From a solution's text to its steps and back to prefixes that a policy can go on from.

Marked solutions (`Step 1: ...` lines, Markdown bold or headings allowed) are split at their markers; other texts at blank lines.
More than `max_steps` pieces are merged in consecutive groups of ceil(n / max_steps), as VisualPRM does (arXiv 2503.10291). A closing
`Answer:` line belongs to the last step. Every step remembers its character span, so prefixes keep the solution's own spelling.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from ..types import InputError, Step

MARKER = re.compile(r"^[ \t>#*_]*step[ \t]*\d+[ \t]*(?:[:.)]|[*_]{1,2}[:.)])[*_ \t]*", re.IGNORECASE | re.MULTILINE)
_BLANK_LINES = re.compile(r"\n[ \t\r]*\n\s*")
_ANSWER_LINE = re.compile(r"[*_ \t]*(?:the\s+)?(?:final\s+)?answer\b", re.IGNORECASE)


def split_steps(text: str, max_steps: int = 12) -> list[Step]:
    """The steps of a solution, at most `max_steps`; an empty text has none. `Step.text` is the body without its marker."""
    if max_steps < 1:
        raise InputError(f"max_steps must be at least 1, got {max_steps}")
    spans = _marked_spans(text) or _paragraph_spans(text)
    group = math.ceil(len(spans) / max_steps) if spans else 1
    merged = [(spans[i][0], spans[min(i + group, len(spans)) - 1][1]) for i in range(0, len(spans), group)]
    return [Step(index=i, text=_body(text[start:end]), start=start, end=end) for i, (start, end) in enumerate(merged)]


def render_steps(texts: Sequence[str]) -> str:
    """Numbered `Step k: body` lines: how a critic sees every solution, whatever its own spelling was."""
    return "\n".join(f"Step {k}: {text.strip()}" for k, text in enumerate(texts, start=1))


def prefix_before(solution: str, steps: Sequence[Step], k: int) -> str:
    """The solution up to the end of step k-1 (0-based k); "" for the first step."""
    return solution[: steps[k - 1].end] if k > 0 else ""


def prefix_with(solution: str, steps: Sequence[Step], k: int, body: str) -> str:
    """The solution with step k replaced by `body` and everything after it dropped; ends right after the body.

    The marker and the separator are the solution's own, so a model sees its own style.
    """
    step = steps[k]
    separator = solution[steps[k - 1].end : step.start] if k > 0 else ""
    return prefix_before(solution, steps, k) + separator + _marker(solution[step.start : step.end]) + body.strip()


def _marked_spans(text: str) -> list[tuple[int, int]]:
    starts = [match.start() for match in MARKER.finditer(text)]
    if not starts:
        return []
    starts[0] = len(text) - len(text.lstrip()) if text[: starts[0]].strip() else starts[0]  # a preamble belongs to the first step
    ends = [*starts[1:], len(text)]
    return [(start, start + len(text[start:end].rstrip())) for start, end in zip(starts, ends, strict=True)]


def _paragraph_spans(text: str) -> list[tuple[int, int]]:
    spans, at = [], 0
    for start, end in [*((m.start(), m.end()) for m in _BLANK_LINES.finditer(text)), (len(text), len(text))]:
        piece = text[at:start]
        if piece.strip():
            first = at + len(piece) - len(piece.lstrip())
            spans.append((first, first + len(piece.strip())))
        at = end
    if len(spans) > 1 and _ANSWER_LINE.match(text, spans[-1][0]):
        spans[-2:] = [(spans[-2][0], spans[-1][1])]
    return spans


def _body(piece: str) -> str:
    return "\n".join(part.strip() for part in MARKER.split(piece) if part.strip())


def _marker(piece: str) -> str:
    """The marker of a step's text with the blank space after it; "" for a paragraph."""
    match = MARKER.search(piece)
    if match is None:
        return ""
    rest = piece[match.end() :]
    gap = rest[: len(rest) - len(rest.lstrip())]
    marker = match.group() + gap
    return marker if marker[-1:].isspace() else marker + " "


def without_answer(text: str) -> str:
    """A step's text without its closing `Answer:` line."""
    lines = text.rstrip().split("\n")
    return "\n".join(lines[:-1]).rstrip() if len(lines) > 1 and _ANSWER_LINE.match(lines[-1]) else text
