"""What PaCo-Reward is asked (arXiv 2512.04784): two pictures and a question whose answer begins with Yes or No, reasons after it.

The form of the chat and the content of the instructions are those of the released code, in our words. Training and use must agree on
both. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..serving.engine import Request
from ..types import InputError, Problem

PAIR = "Are the two pictures consistent in style, logic and identity?"


def ask(question: str) -> str:
    """The question as it is."""
    return question


def ask_theme(theme: str) -> str:
    """Two sub-figures of one set that was generated from a prompt."""
    return f"The two pictures were made for the theme: {theme}\n{PAIR}"


def ask_criterion(criterion: str) -> str:
    """One given criterion."""
    return f"Do the two pictures meet this criterion of consistency? {criterion}"


def ask_edit_consistency(instruction: str) -> str:
    """SC: what the edit leaves alone."""
    return (
        f"The second picture is an edit of the first. The instruction was: {instruction}\n"
        "Apart from the change that was asked for, does the edited picture keep the style, logic and identity of the first?"
    )


def ask_edit_following(instruction: str) -> str:
    """PF: what the edit was to do."""
    edit = f"The second picture is an edit of the first. The instruction was: {instruction}"
    return f"{edit}\nDoes the edited picture do accurately what was asked for?"


# meta["task"] of a problem: how its question is put.
QUESTIONS = {
    "ask": ask,
    "theme": ask_theme,
    "criterion": ask_criterion,
    "edit_consistency": ask_edit_consistency,
    "edit_following": ask_edit_following,
}
TASKS = (*QUESTIONS, "edit")  # an edit is asked both questions that it has
ORDERED = ("edit_consistency", "edit_following")  # the first picture is the original: these are never asked the other way round


@dataclass(frozen=True)
class PairStyle:
    """The chat about two pictures.

    `words`: the verdict words, the positive one first. `marks` stand before the pictures, `ending` after the question ("" for none);
    `system` is the text of a system turn, "" for none (the templates of Qwen's models add the released code's line themselves).
    """

    words: tuple[str, str] = ("Yes", "No")
    marks: tuple[str, str] = ("<img1>:", "<img2>:")
    ending: str = "Answer Yes or No first, then give your reasons."
    system: str = ""

    def __post_init__(self) -> None:
        for name, values in (("words", self.words), ("marks", self.marks)):
            if isinstance(values, str) or len(values) != 2 or not all(isinstance(value, str) for value in values):
                raise InputError(f"{name} must be two strings, got {values!r}")
        if not all(word.strip() for word in self.words) or self.words[0] == self.words[1]:
            raise InputError(f"words must be two different verdict words, the positive one first, got {self.words!r}")

    def request(self, question: str, first: Any, second: Any) -> Request:
        """One user turn: both pictures with their marks, then the question."""
        parts: list[dict[str, Any]] = []
        for mark in self.marks:
            parts += [{"type": "text", "text": mark}] if mark else []
            parts.append({"type": "image"})
        parts.append({"type": "text", "text": f"{question}\n{self.ending}" if self.ending else question})
        system = [{"role": "system", "content": [{"type": "text", "text": self.system}]}] if self.system else []
        return Request([*system, {"role": "user", "content": parts}], [first, second], max_tokens=1)

    def answer(self, yes: bool, reasons: str = "") -> str:
        """What the model learns to write: the verdict word, then the reasons; without reasons the word alone, with a full stop."""
        word = self.words[0] if yes else self.words[1]
        return f"{word}\n{reasons}" if reasons else f"{word}."


def questions_of(problem: Problem) -> dict[str, dict[str, tuple[str, bool]]]:
    """{dimension: {name: (question, ordered)}} of a problem.

    `meta["criteria"]` ({dimension: {name: criterion}}) asks every criterion; `meta["task"] = "edit"` asks SC and PF of the instruction that
    the problem's question holds; any other task puts the question as `QUESTIONS` says ("ask" if there is none).
    """
    criteria, task = problem.meta.get("criteria"), problem.meta.get("task") or "ask"
    if criteria:
        return _criteria(problem.id, criteria)
    if task == "edit":
        return {name: {"": (QUESTIONS[kind](problem.question), True)} for name, kind in zip(("SC", "PF"), ORDERED, strict=True)}
    if task not in QUESTIONS:
        raise InputError(f"problem {problem.id}: unknown task {task!r}; there are {', '.join(TASKS)}")
    return {"": {"": (QUESTIONS[task](problem.question), task in ORDERED)}}


def _criteria(name: str, criteria: Any) -> dict[str, dict[str, tuple[str, bool]]]:
    form = 'criteria must be {"Identity": {"name": "text"}, ...}, with a text for each criterion'
    if not isinstance(criteria, Mapping):
        raise InputError(f"problem {name}: {form}, got {type(criteria).__name__}")
    asked: dict[str, dict[str, tuple[str, bool]]] = {}
    for dimension, texts in criteria.items():
        if texts is None or texts == {}:
            continue  # parquet writes every dimension of the file into every row
        if not isinstance(texts, Mapping) or not all(text is None or isinstance(text, str) for text in texts.values()):
            raise InputError(f"problem {name}: {form}, got {texts!r:.100} for {dimension}")
        if kept := {key: (ask_criterion(text), False) for key, text in texts.items() if text}:
            asked[str(dimension)] = kept
    if not asked:
        raise InputError(f"problem {name}: {form}, got none")
    return asked


def pair_problem(
    first: Any, second: Any, question: str = PAIR, *, id: str = "pair", task: str = "ask", meta: Mapping[str, Any] | None = None
) -> Problem:
    """Two pictures as a problem: what is judged is the pictures themselves, so the sample's solution is empty."""
    return Problem(id, question, [first, second], meta={**(meta or {}), **({} if task == "ask" else {"task": task})})


def orders(images: Sequence[Any], both: bool) -> list[tuple[Any, Any]]:
    first, second = images
    return [(first, second), (second, first)] if both else [(first, second)]
