"""Preferences and ratings: the rows that scalar heads and judges are trained and measured on, with the columns that other trainers take.

    prompt              text, or chat messages (system and user turns); `question` is another name; may be missing where chosen and rejected
                        are whole chats that begin alike
    chosen, rejected    text, or messages that end with the assistant's
    images              paths (relative to the file), or {"bytes": ..., "path": ...} as datasets keeps them; `image` holds a single one
    margin              optional number: by how much chosen is better (Bradley-Terry)
    response, score     instead of chosen and rejected, for ratings; `completion`, `solution` and `label`, `rating` are other names
    id, group           optional; a group is what figures are also given for

All other columns travel along in `Problem.meta`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..serving.engine import Request
from ..serving.prompting import as_parts
from ..types import InputError, Problem
from .datasets import Parsed, open_dataset
from .problems import policy_messages

_COLUMNS = ("id", "prompt", "question", "chosen", "rejected", "images", "image", "margin", "group")
_RESPONSE, _SCORE = ("response", "completion", "solution"), ("score", "label", "rating")
_MARK = re.compile(r"<image>[ \t]*\n?")


@dataclass(frozen=True)
class Preference:
    """Two answers to one problem, the better one known. `margin`: by how much, where that is known."""

    problem: Problem
    chosen: str
    rejected: str
    margin: float | None = None
    group: str = ""


@dataclass(frozen=True)
class Rating:
    """An answer and a number that says how good it is."""

    problem: Problem
    response: str
    value: float


def read_preferences(source: Any, *, image_root: str | Path | None = None, split: str | None = None) -> Sequence[Preference]:
    """The preferences of `source` (see `vlrm.rm.datasets.open_dataset`), each made when it is asked for. InputErrors name the row."""
    if isinstance(source, Sequence) and source and isinstance(source[0], Preference):
        return source
    rows, name, folder = open_dataset(source, split, "preferences")
    root = Path(image_root) if image_root is not None else folder
    return _checked(Parsed(rows, name, lambda row, number: preference_from_row(row, f"row-{number}", root)), "preferences", name)


def read_ratings(source: Any, *, image_root: str | Path | None = None, split: str | None = None) -> Sequence[Rating]:
    """The ratings of `source`, as `read_preferences`."""
    if isinstance(source, Sequence) and source and isinstance(source[0], Rating):
        return source
    rows, name, folder = open_dataset(source, split, "ratings")
    root = Path(image_root) if image_root is not None else folder
    return _checked(Parsed(rows, name, lambda row, number: rating_from_row(row, f"row-{number}", root)), "ratings", name)


def _checked(items: Sequence[Any], what: str, name: str) -> Sequence[Any]:
    if not len(items):
        raise InputError(f"{name}: holds no {what}")
    items[0]  # missing columns are told before anything else is done
    return items


def preference_from_row(row: Mapping[str, Any], name: str, root: Path) -> Preference:
    """A preference from one row; `name` is its id where the row has none. Raises InputError."""
    for column in ("chosen", "rejected"):
        if row.get(column) is None:
            raise InputError(f"column {column} is missing; the columns are prompt, chosen, rejected and images")
    prompt = _prompt(row)
    if prompt is None:
        prompt = _shared(row["chosen"], row["rejected"])
    chosen, rejected = (_answer(row[column], prompt, column) for column in ("chosen", "rejected"))
    problem = _problem(row, name, prompt, root, _COLUMNS)
    margin = row.get("margin")
    if margin is not None and (isinstance(margin, bool) or not isinstance(margin, (int, float))):
        raise InputError(f"column margin must be a number, got {margin!r}")
    return Preference(problem, chosen, rejected, None if margin is None else float(margin), str(row.get("group") or ""))


def rating_from_row(row: Mapping[str, Any], name: str, root: Path) -> Rating:
    """A rating from one row. A number that is not finite stays: training counts and drops it."""
    response = next((row[column] for column in _RESPONSE if row.get(column) is not None), None)
    value = next((row[column] for column in _SCORE if row.get(column) is not None), None)
    if response is None or not any(column in row for column in _SCORE):
        raise InputError("columns response (completion, solution) and score (label, rating) are needed, beside prompt and images")
    if value is not None and not isinstance(value, (int, float)):
        raise InputError(f"column score must be a number, got {value!r}")
    prompt = _prompt(row)
    if prompt is None:
        raise InputError("column prompt is missing; it holds the question as text, or chat messages")
    problem = _problem(row, name, prompt, root, (*_COLUMNS, *_RESPONSE, *_SCORE))
    return Rating(problem, _answer(response, prompt, "response"), math.nan if value is None else float(value))


def preference_fault(item: Preference) -> str | None:
    """Why a preference cannot be trained on."""
    if not item.chosen.strip() or not item.rejected.strip():
        return "an answer has no text"
    if item.chosen.strip() == item.rejected.strip():
        return "chosen and rejected are the same"
    return None if item.margin is None or math.isfinite(item.margin) else "the margin is not a finite number"


def rating_fault(item: Rating, loss: str = "mse") -> str | None:
    """Why a rating cannot be trained on."""
    if not item.response.strip():
        return "an answer has no text"
    if not math.isfinite(item.value):
        return "the score is not a finite number"
    return "the score is not in [0, 1]" if loss == "bce" and not 0 <= item.value <= 1 else None


def chat(problem: Problem, system: str = "") -> list[dict[str, Any]]:
    """The messages before the answer: the problem's own, or one user turn with the pictures and the question. `system` is put before
    them where they have no system turn of their own."""
    messages = list(problem.meta.get("messages") or policy_messages(problem))
    if system and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    return messages


def chat_problem(prompt: str | Sequence[Mapping[str, Any]], images: Sequence[Any] = (), id: str = "prompt") -> Problem:
    """The problem that a prompt puts: text, or messages, which the problem keeps where they are more than a question."""
    return _problem({"images": list(images)}, id, prompt if isinstance(prompt, str) else list(prompt), Path("."), _COLUMNS)


def answered(problem: Problem, answer: str, system: str = "") -> Request:
    """The whole chat, the answer in the assistant's turn."""
    turn = {"role": "assistant", "content": [{"type": "text", "text": answer.replace("<image>", "image")}]}
    return Request([*chat(problem, system), turn], problem.images, max_tokens=1)


def _prompt(row: Mapping[str, Any]) -> str | list[Mapping[str, Any]] | None:
    prompt = row.get("prompt", row.get("question"))
    if prompt is not None and not isinstance(prompt, (str, list)):
        raise InputError(f"column prompt must be text or a list of messages, got {type(prompt).__name__}")
    return prompt


def _shared(chosen: Any, rejected: Any) -> list[Mapping[str, Any]]:
    """The messages with which both chats begin: the prompt where there is no column for it."""
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        raise InputError("column prompt is missing; it holds the question as text, or chat messages")
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    if not same:
        raise InputError("chosen and rejected do not begin with the same messages; give a column prompt")
    return chosen[:same]


def _answer(value: Any, prompt: Any, column: str) -> str:
    """The assistant's text: as it is, or the last of messages that may begin with the prompt's."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise InputError(f"column {column} must be text or messages, got {type(value).__name__}")
    if isinstance(prompt, list) and value[: len(prompt)] == prompt:
        value = value[len(prompt) :]
    if len(value) != 1 or value[0].get("role") != "assistant":
        raise InputError(f"column {column} must hold one assistant's message after the prompt, got {len(value)} messages")
    return "".join(part["text"] for part in as_parts(value)[0]["content"] if part["type"] == "text")


def _problem(row: Mapping[str, Any], name: str, prompt: Any, root: Path, known: Sequence[str]) -> Problem:
    images = row.get("images", row.get("image"))
    images = [] if images is None else list(images) if isinstance(images, (list, tuple)) else [images]
    images = [_image(image, root) for image in images]
    meta = {key: value for key, value in row.items() if key not in known}
    question = prompt
    if isinstance(prompt, list):
        messages = _messages(prompt, len(images))
        question = next((_text(message) for message in reversed(messages) if message["role"] == "user"), "")
        meta["messages"] = messages
    return Problem(str(row.get("id") or name), _MARK.sub("", question).strip() or "(no text)", images, row.get("answer"), meta)


def _messages(prompt: list[Any], images: int) -> list[dict[str, Any]]:
    """The prompt's messages with one image part for each picture; those without any get them all before the first user's text."""
    messages = [{**message, "content": [_plain(part) for part in message["content"]]} for message in as_parts(_parts_only(prompt))]
    if not messages or messages[-1]["role"] != "user":
        raise InputError("the prompt's messages must end with a user's turn")
    found = sum(part["type"] == "image" for message in messages for part in message["content"])
    if found not in (0, images):
        raise InputError(f"the prompt's messages have {found} image parts, but there are {images} images; give one part for each")
    if not found and images:
        first = next(message for message in messages if message["role"] == "user")
        first["content"] = [{"type": "image"} for _ in range(images)] + first["content"]
    return messages


def _parts_only(prompt: list[Any]) -> list[Any]:
    """Messages whose parts have the two forms that chat templates read; columns that a parquet file fills with null are left out."""
    if not all(isinstance(message, Mapping) and "role" in message and "content" in message for message in prompt):
        raise InputError('the prompt must hold messages such as {"role": "user", "content": ...}')
    return [{"role": message["role"], "content": message["content"]} for message in prompt]


def _plain(part: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "image"} if part["type"] == "image" else {"type": "text", "text": _MARK.sub("", part["text"])}


def _text(message: Mapping[str, Any]) -> str:
    return "".join(part["text"] for part in message["content"] if part["type"] == "text")


def _image(image: Any, root: Path) -> Any:
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    if isinstance(image, str):
        return str(root / image) if root != Path(".") else image
    if image is None:
        raise InputError("column images holds an empty entry; give a path or bytes for each picture")
    return image
