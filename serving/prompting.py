"""From a Request to the text and the token ids that a model reads; shared by the engines that own a tokenizer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from ..types import InputError
from .engine import Request
from .images import check_image

MARK = "vlrm-mark"
TAIL = 64  # characters before a place that can bear on how the tokenizer reads what follows
# Texts after which a tracked word's first token is looked up, best first: the tokenizer must not join their end with the word.
CONTEXTS = (":", "a", "\n", "")


def as_parts(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The messages with every content as a list of parts, the one form that all image-text chat templates read."""
    result = []
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise InputError(f'a message must be {{"role": ..., "content": ...}}, got {message!r:.200}')
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
        for part in parts:
            if (
                not isinstance(part, Mapping)
                or part.get("type") not in ("text", "image")
                or (part["type"] == "text" and not isinstance(part.get("text"), str))
            ):
                raise InputError(f'a content part must be {{"type": "text", "text": ...}} or {{"type": "image"}}, got {part!r:.200}')
        result.append({"role": message["role"], "content": parts})
    return result


def check_images(request: Request) -> None:
    """Raises InputError unless the messages have one image part for every image, and every image can be opened."""
    parts = sum(part["type"] == "image" for message in as_parts(request.messages) for part in message["content"])
    if parts != len(request.images):
        raise InputError(f"the messages have {parts} image parts but the request has {len(request.images)} images; give one part for each")
    for image in request.images:
        check_image(image)


class Prompter:
    """Renders requests with a model's own chat template and finds token ids in the context where they stand."""

    def __init__(self, processor: Any, path: str):
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        if getattr(processor, "chat_template", None) is None:
            raise InputError(f"{path} has no chat template; add a chat_template.jinja to it or choose an instruction-tuned model")
        self._known: dict[tuple[str | None, str], int] = {}
        # What the template puts between the generation prompt and the assistant's own first word ("Assistant:" + " ").
        turn = [{"role": "user", "content": [{"type": "text", "text": "x"}]}]
        opened = self._render(turn, add_generation_prompt=True)
        answer = {"role": "assistant", "content": [{"type": "text", "text": MARK}]}
        self.separator = separator(opened, self._render([*turn, answer], add_generation_prompt=False))

    def _render(self, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)

    def text(self, request: Request) -> str:
        """The prompt up to the place where the model goes on: the chat, the opened assistant turn, the prefix."""
        check_images(request)
        text = self._render(as_parts(request.messages), add_generation_prompt=True)
        if request.prefix and not request.prefix.startswith(self.separator):
            text += self.separator
        return text + request.prefix

    def ids(self, text: str) -> list[int]:
        """Token ids of a rendered prompt, image placeholders not yet expanded."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def all_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """`ids` of many prompts in one call, a third of the time of one call each."""
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []

    def choice_ids(self, text: str, choices: Sequence[str]) -> list[int]:
        """The id of each choice's first token right after `text`. Raises InputError where two are the same, or where the
        tokenizer would merge the end of `text` into the choice (there the model never sees that place)."""
        tail = text[-TAIL:]
        for choice in choices:
            if (tail, choice) not in self._known:
                if (id := next_id(self.ids(tail), self.ids(tail + choice))) is None:
                    raise InputError(joined(choice, tail))
                self._known[tail, choice] = id
        return distinct([self._known[tail, choice] for choice in choices], choices)

    def single_ids(self, text: str, choices: Sequence[str]) -> list[int]:
        """As `choice_ids`, for choices that must be one token each. Raises InputError for one that is not."""
        tail = text[-TAIL:]
        # In one call: the tail is another one for every solution, and calls of a tokenizer cost more than short texts do.
        before, *after = self.tokenizer([tail, *(tail + choice for choice in choices)], add_special_tokens=False)["input_ids"]
        found = []
        for choice, ids in zip(choices, after, strict=True):
            if (id := next_id(before, ids)) is None:
                raise InputError(joined(choice, tail))
            found.append(id)
        distinct(found, choices)
        for choice, ids in zip(choices, after, strict=True):
            if (count := len(ids) - len(before)) != 1:
                raise InputError(f"{choice!r} is {count} tokens for this model's tokenizer; choose words that are one token each")
        return found

    def track_ids(self, words: Sequence[str]) -> list[int]:
        """The id of each tracked word's first token, as it stands after other text."""
        for word in words:
            if (None, word) not in self._known:
                found = (next_id(self.ids(context), self.ids(context + word)) for context in CONTEXTS)
                if (id := next((id for id in found if id is not None), None)) is None:
                    raise InputError(f"the tokenizer gives no token for the tracked word {word!r}; choose another")
                self._known[None, word] = id
        return distinct([self._known[None, word] for word in words], words)


def joined(choice: str, tail: str) -> str:
    """What to say where the tokenizer joins a choice with the end of the prefix."""
    return f"the tokenizer joins the choice {choice!r} with the end of the prefix {tail!r}; end the prefix elsewhere"


def separator(opened: str, answered: str) -> str:
    """What stands between the generation prompt and the assistant's first word, from two renderings: the opened turn, and a
    turn that answers MARK."""
    before, found, _ = answered.partition(MARK)
    return before[len(opened) :] if found and before.startswith(opened) else ""


def next_id(before: Sequence[int], after: Sequence[int]) -> int | None:
    """The first token that `after` has beyond `before`; None where the two differ earlier."""
    whole = len(after) > len(before) and list(after[: len(before)]) == list(before)
    return after[len(before)] if whole else None


def distinct(ids: list[int], words: Sequence[str]) -> list[int]:
    """The ids themselves. Raises InputError naming two words that share one."""
    for later, id in enumerate(ids):
        if (first := ids.index(id)) != later:
            raise InputError(f"{words[first]!r} and {words[later]!r} begin with the same token (id {id}); choose words that differ there")
    return ids


def heal(request: Request, choices: Sequence[str], separator: str = "") -> tuple[str, list[str]]:
    """The prefix without its trailing spaces, and the choices with them: tokenizers join a space with the word that follows it.

    Where there is no prefix a choice opens the turn, after the `separator` that the chat template puts there.
    """
    opened = request.prefix or separator
    prefix = opened.rstrip(" ")
    return prefix, [opened[len(prefix) :] + choice for choice in choices]


def drawn(request: Request) -> int:
    """How many sequences have to be generated: greedy ones are all the same."""
    return request.n if request.temperature > 0 else 1


def spread(seed: int) -> int:
    """A seed in [0, 2^31) for samplers that give sample i the seed `seed + i`: neighbouring seeds must not share samples."""
    return int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "big") >> 1
