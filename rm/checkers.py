"""Is a solution right? A checker is a function of (solution text, problem) that says True, False, or None where it cannot tell.

auto                     equal answers after normalising: as numbers, as choice letters, as LaTeX by math-verify
choice                   the same choice letter
numeric, numeric:0.01    the same number within a relative tolerance (1 % unless given); a unit beside it is ignored
math                     math-verify alone
package.module:function  your own, called with (solution text, problem)
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ..types import InputError, Problem
from .answers import choice_of, extract_answer, number_of, same_answer, same_latex
from .load import resolve

Checker = Callable[[str, Problem], bool | None]


def load_checker(spec: str = "auto") -> Checker:
    """The checker that `spec` names (see the module's docstring). A solution without an answer is wrong. Raises InputError."""
    name, _, argument = spec.partition(":")
    if name == "numeric":
        return _comparing(_within(_tolerance(spec, argument)))
    if spec in _COMPARE:
        return _comparing(_COMPARE[spec])
    if not argument:
        raise InputError(f"unknown checker {spec!r}; choose auto, choice, numeric, numeric:TOLERANCE, math, or package.module:function")
    return resolve(spec, "checker")


def same_choice(answer: str, gold: str) -> bool | None:
    """Whether two answers name the same letter; None where the gold answer names none."""
    letter = choice_of(gold)
    return None if letter is None else choice_of(answer) == letter


def _within(tolerance: float) -> Callable[[str, str], bool | None]:
    def compare(answer: str, gold: str) -> bool | None:
        wanted, given = number_of(gold), number_of(answer)
        if wanted is None:
            return None
        return given is not None and math.isclose(given, wanted, rel_tol=0.0, abs_tol=max(1e-9, tolerance * abs(wanted)))

    return compare


_COMPARE: dict[str, Callable[[str, str], bool | None]] = {"auto": same_answer, "choice": same_choice, "math": same_latex}


def _comparing(compare: Callable[[str, str], bool | None]) -> Checker:
    def check(solution: str, problem: Problem) -> bool | None:
        if problem.answer is None:
            return None
        answer = extract_answer(solution)
        return False if answer is None else compare(answer, problem.answer)

    return check


def _tolerance(spec: str, argument: str) -> float:
    try:
        value = float(argument or 0.01)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        raise InputError(f"checker {spec!r}: the tolerance must be a number of at least 0, such as numeric:0.01")
    return value
