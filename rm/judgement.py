"""What a generative judge is asked, and what its words mean: prompts and tolerant parsers. Standard library only.

The criteria and the closing sentence are those of VL-RewardBench (arXiv 2411.17451) in our words; `published_choice` reads only what its
released script reads.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

Said = Literal["first", "second", "tie", "unparsed"]

PAIRWISE = (
    "Two answers to a question about the picture are shown. Judge them by accuracy (is what they say of the picture true?), completeness, "
    "clarity and relevance. Neither their order nor their length counts. Explain in a few sentences, then end with exactly one line: "
    "Overall Judgment: Answer X is better.  X is 1 or 2."
)
TIES = " If neither is better, the line is: Overall Judgment: Tie."
POINTWISE = (
    "An answer to a question about the picture is shown. Judge it by accuracy (is what it says of the picture true?), completeness, "
    "clarity and relevance; its length does not count. Explain in a few sentences, then end with exactly one line: "
    "Score: N  N is a whole number from {low} (useless) to {high} (perfect)."
)

_PUBLISHED = re.compile(r"(?:Overall Judgment|Therefore).*?Answer\s*([12])\s+is\s+(?:the\s+)?(?:slightly\s+)?better", re.IGNORECASE)
_BETTER = re.compile(
    r"\b(?:answer|response|assistant|solution|option)?\s*([12AB])\s+is\s+(?:clearly\s+|overall\s+|much\s+|slightly\s+)?(?:the\s+)?"
    r"(?:slightly\s+|clearly\s+|much\s+)?better\b",
    re.IGNORECASE,
)
_NAMED = re.compile(
    r"\b(?:better|best|preferred|winner|choice|verdict|overall judge?ment|final judge?ment)(?:\s+(?:answer|response|one))?\s*(?:is|:|=)+\s*"
    r"(?:(?:answer|response|option)\s*)?\(?([12AB])\b",
    re.IGNORECASE,
)
_BRACKETS = re.compile(r"\[\[\s*(A|B|C|1|2|tie)\s*\]\]|\\boxed\{\s*(?:\\text\{)?(?:answer\s*)?(A|B|1|2|tie)\s*\}", re.IGNORECASE)
_TIE = re.compile(
    r"(?:judge?ment|verdict|result|winner)\s*(?:is|:)\s*(?:a\s+)?(?:tie|draw|equal)|\bit(?:'s| is) a (?:tie|draw)\b", re.IGNORECASE
)
_EQUAL = re.compile(r"\b(?:both|the two|neither)\b[^.]{0,60}\b(?:equally (?:good|bad|correct)|equal|better)\b", re.IGNORECASE)
_ALONE = re.compile(r"(?:answer\s*)?\(?([12AB])\)?[.!]?", re.IGNORECASE)
_SIDES: dict[str, Said] = {"1": "first", "a": "first", "2": "second", "b": "second", "c": "tie", "tie": "tie"}

_NUMBER = r"([-+]?\d+(?:\.\d+)?)"
_RATED = re.compile(rf"\b(?:score|rating|grade|overall)\s*(?:is|:|=)*\s*\[*\(*\s*{_NUMBER}", re.IGNORECASE)
_BOXED = re.compile(rf"\\boxed\{{\s*{_NUMBER}\s*\}}|\[\[\s*{_NUMBER}\s*\]\]")
_OUT_OF = re.compile(rf"{_NUMBER}\s*(?:/|out of)\s*\d+", re.IGNORECASE)
_BARE = re.compile(rf"{_NUMBER}\.?")


def published_choice(text: str) -> Said:
    """What VL-RewardBench's own pattern finds, after newlines and asterisks are removed."""
    found = _PUBLISHED.search(text.replace("\n", " ").replace("*", ""))
    return _SIDES[found.group(1)] if found else "unparsed"


def read_choice(text: str) -> Said:
    """Which answer a judgement prefers, in any of the usual wordings. The last thing said counts; a tie must be said as one."""
    plain = re.sub(r"[*_`#]", "", text).strip()
    found: list[tuple[int, Said]] = []
    for pattern in (_BETTER, _NAMED, _BRACKETS):
        for match in pattern.finditer(plain):
            before = plain[max(0, match.start() - 24) : match.start()].casefold()
            if pattern is _BETTER and re.search(r"\b(?:neither|not|nor|if|whether|than)\b[^.]*$", before):
                continue
            found.append((match.end(), _SIDES[next(group for group in match.groups() if group).casefold()]))
    found += [(match.end(), "tie") for pattern in (_TIE, _EQUAL) for match in pattern.finditer(plain)]
    if found:
        return max(found)[1]
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    alone = _ALONE.fullmatch(lines[-1]) if lines else None
    return _SIDES[alone.group(1).casefold()] if alone else "unparsed"


def read_rating(text: str, low: float, high: float) -> float | None:
    """The number that a judgement gives, None where there is none in [low, high]. The last one named as a score counts."""
    plain = re.sub(r"[*_`#]", "", text)
    for pattern in (_RATED, _BOXED, _OUT_OF):
        if numbers := [float(next(group for group in match.groups() if group)) for match in pattern.finditer(plain)]:
            return numbers[-1] if low <= numbers[-1] <= high else None
    lines = [line.strip() for line in plain.splitlines() if line.strip()]
    bare = _BARE.fullmatch(lines[-1]) if lines else None
    return float(bare.group(1)) if bare and low <= float(bare.group(1)) <= high else None


def verdict_sentence(better: int) -> str:
    """The closing line that names answer `better` (0 or 1): what preference training of a judge teaches."""
    return f"Overall Judgment: Answer {better + 1} is better."


def turned(said: Said) -> Said:
    """The same judgement of the two answers in the other order."""
    return {"first": "second", "second": "first"}.get(said, said)  # type: ignore[return-value]


def majority(votes: Sequence[Said]) -> Said:
    """More than half of all votes, as VL-RewardBench counts them: a vote that was not parsed stands against both. Else "tie" where
    votes were parsed, "unparsed" where none was."""
    for side in ("first", "second"):
        if 2 * sum(vote == side for vote in votes) > len(votes):
            return side  # type: ignore[return-value]
    return "tie" if any(vote != "unparsed" for vote in votes) else "unparsed"
