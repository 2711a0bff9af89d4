"""Final answers: taking them out of a solution and comparing them. Standard library; math-verify is used for LaTeX when installed."""

from __future__ import annotations

import math
import re
import threading

_ANSWER = re.compile(r"^[ \t>#*_]*(?:final[ \t]+)?answer[*_ \t]*:[*_ \t]*(.*)$", re.IGNORECASE | re.MULTILINE)
_CHOICE = re.compile(r"[(\[]?([a-j])[)\].:]?")
_CHOICE_WITH_TEXT = re.compile(r"(?:[(\[]([a-j])[)\]]|([a-j])[).:])\s+\S.*", re.DOTALL)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d{1,3})?")
_FRACTION = re.compile(r"([+-]?)(?:\\[dt]?frac\{(\d+)\}\{(\d+)\}|(\d+)\s*/\s*(\d+))")
_LATEX = re.compile(r"[\\^_{}]")


def extract_answer(text: str) -> str | None:
    """The answer of a solution: its last `Answer:` line, else its last \\boxed{...}, else None."""
    for match in reversed(list(_ANSWER.finditer(text))):
        value = match.group(1).strip() or text[match.end() :].strip().split("\n", 1)[0].strip()
        value = value.strip("*_ \t")
        if value:
            return _boxed(value) or value
    return _boxed(text)


def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two answers say the same: equal after normalising, equal as numbers, or the same choice letter. None equals nothing."""
    if a is None or b is None:
        return False
    left, right = _normalise(a), _normalise(b)
    if not left or not right:
        return False
    if left == right:
        return True
    number_left, number_right = _number(left), _number(right)
    if number_left is not None and number_right is not None:
        return math.isclose(number_left, number_right, rel_tol=1e-6, abs_tol=1e-9)
    choice_left, choice_right = _CHOICE.fullmatch(left), _CHOICE.fullmatch(right)
    if choice_left or choice_right:
        return _choice(left) is not None and _choice(left) == _choice(right)
    if _LATEX.search(left) or _LATEX.search(right):
        return same_latex(a, b)
    return False


def number_of(answer: str) -> float | None:
    """The answer as a number; None where it is none, or holds several. A unit beside a single number is ignored."""
    text = _normalise(answer)
    value = _number(text)
    found = [match.group() for match in re.finditer(_NUMBER, text)] if value is None else []
    return _number(found[0]) if len(found) == 1 else value


def choice_of(answer: str) -> str | None:
    """The letter of a multiple-choice answer, `b` of `(B)` or `B. seven circles`; None where it names none."""
    return _choice(_normalise(answer))


def _normalise(text: str) -> str:
    text = text.strip().casefold().replace("\u2212", "-").replace("\\left", "").replace("\\right", "")
    text = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\{([^{}]*)\}", r"\1", text)
    text = text.replace("$", "").replace("\\%", "").replace("\\,", "").strip("`'\"*_ \t\n")
    text = re.sub(r"(?<=\d),(?=\d{3}\b)", "", text).rstrip("%").rstrip(".").rstrip()
    return re.sub(r"\s+", " ", text).strip()


def _number(text: str) -> float | None:
    if _NUMBER.fullmatch(text):
        return float(text)
    match = _FRACTION.fullmatch(text)
    if match is None:
        return None
    top, bottom = match.group(2) or match.group(4), match.group(3) or match.group(5)
    if len(top) > 300 or len(bottom) > 300 or int(bottom) == 0:
        return None
    return (-1.0 if match.group(1) == "-" else 1.0) * int(top) / int(bottom)


def _choice(text: str) -> str | None:
    match = _CHOICE.fullmatch(text) or _CHOICE_WITH_TEXT.fullmatch(text)
    return next(group for group in match.groups() if group) if match else None


def _boxed(text: str) -> str | None:
    """The content of the last \\boxed{...} with balanced braces."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin:at].strip() or None
    return None


def same_latex(a: str, b: str) -> bool:
    """Whether two answers are the same mathematics, by math-verify; False where either cannot be read."""
    if len(a) > 300 or len(b) > 300:
        return False
    try:
        from math_verify import parse, verify
    except ImportError:
        return False
    # math-verify limits its time by SIGALRM, which only the main thread may set.
    seconds = 3 if threading.current_thread() is threading.main_thread() else None
    try:
        gold, other = (parse(f"${text.strip().strip('$')}$", parsing_timeout=seconds, raise_on_error=False) for text in (a, b))
        return bool(gold and other and verify(gold, other, timeout_seconds=seconds, raise_on_error=False))
    except Exception:  # sympy raises anything on odd input; an answer that cannot be read is not the same answer
        return False
