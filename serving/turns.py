"""A chat of several turns, read at once: what the model expects at the beginning of every assistant's turn.

A step verifier answers each step in a turn of its own. A causal model that reads the whole chat has computed, at the end of
every user's turn, just what it would have computed there had the chat ended: so one forward pass gives all verdicts.
`turn_logprobs` asks an engine in the quickest way that it has. Legend: N places, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..types import EngineError, InputError
from .engine import Engine, Request, Turn
from .prompting import MARK, Prompter, as_parts, check_images, heal

logger = logging.getLogger("vlrm")
# Names in a config that say that logits are more than the output layer times the hidden state.
SCALED_LOGITS = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling")


def places(request: Request) -> list[int]:
    """How many messages stand before each place: every assistant's turn, and the end where the last message is not one."""
    found = [i for i, message in enumerate(request.messages) if message["role"] == "assistant"]
    return found if found and found[-1] == len(request.messages) - 1 else [*found, len(request.messages)]


def place_request(request: Request, place: int) -> Request:
    """The request that ends at a place: one token is to be said there."""
    return replace(request, messages=request.messages[:place], prefix="", n=1, max_tokens=1)


def turn_logprobs(engine: Engine, requests: Sequence[Request], choices: Sequence[str]) -> list[list[Turn]]:
    """For each request, a `Turn` for each of its places, in order: the choices' first tokens as the assistant's turn would begin
    with them. What the assistant's turns say is part of what later places see."""
    own = getattr(engine, "turn_logprobs", None)
    return own(requests, choices) if own is not None else turn_by_turn(engine, requests, choices)


def turn_by_turn(engine: Engine, requests: Sequence[Request], choices: Sequence[str]) -> list[list[Turn]]:
    """The same by one `choice_logprobs` request a place: what any engine can do. It does not tell the numbers of tokens."""
    asked = [[place_request(request, place) for place in places(request)] for request in requests]
    answers = iter(engine.choice_logprobs([one for group in asked for one in group], choices))
    return [[Turn(next(answers)) for _ in group] for group in asked]


@dataclass(frozen=True)
class Chat:
    """A rendered chat up to its last place. `starts`: the character at which each place's word begins; `fillers`: what stands
    there, "" at the last place unless the chat ends with an assistant's turn."""

    text: str
    starts: tuple[int, ...]
    fillers: tuple[str, ...]


def render_turns(prompter: Prompter, request: Request) -> Chat:
    """The text of a chat with its places. Raises `Unreadable` where the model's chat template writes a turn that is past otherwise
    than one that is to come, or a picture stands after the first place: then only the slow way is right."""
    check_images(request)
    messages, found = as_parts(request.messages), places(request)
    if not past_turns_agree(prompter):
        raise Unreadable("the chat template writes past turns differently from the one to come")
    if any(part["type"] == "image" for message in messages[found[0] :] for part in message["content"]):
        raise Unreadable("a picture stands after the first place")
    open_end = found[-1] == len(messages)
    fillers = ["".join(part["text"] for part in messages[place]["content"]) for place in found[: len(found) - open_end]]
    for number, place in enumerate(found[: len(fillers)]):
        messages[place] = {"role": "assistant", "content": [{"type": "text", "text": f"{MARK}-{number};"}]}
    rest, text, starts = prompter._render(messages, add_generation_prompt=open_end), "", []
    _, (space,) = heal(request, [""], prompter.separator)
    for number, filler in enumerate(fillers):
        before, mark, rest = rest.partition(f"{MARK}-{number};")
        if not mark:
            raise Unreadable("the chat template drops an assistant's turn")
        text += before
        starts.append(len(text) - len(space))
        text += filler
    if not open_end:
        return Chat(text, tuple(starts), tuple(fillers))
    text += rest + prompter.separator[: len(prompter.separator) - len(space)]
    return Chat(text, (*starts, len(text)), (*fillers, ""))


class Unreadable(Exception):
    """Why a chat cannot be read at once."""


def past_turns_agree(prompter: Prompter) -> bool:
    """Whether a chat's text begins with the text of each shorter chat, up to the place where an assistant's turn begins."""
    if (known := getattr(prompter, "_past_turns_agree", None)) is None:
        turns = [{"role": role, "content": [{"type": "text", "text": f"x{i}"}]} for i, role in enumerate(["user", "assistant"] * 3)]
        whole = prompter._render(turns, add_generation_prompt=False)
        known = all(whole.startswith(prompter._render(turns[:end], True) + prompter.separator) for end in (1, 3, 5))
        prompter._past_turns_agree = known
    return known


def system_role(prompter: Prompter) -> bool:
    """Whether the chat template has a place for a system turn: it writes its text, and nothing goes wrong."""
    turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in (("system", MARK), ("user", "x"))]
    try:
        return MARK in prompter._render(turns, add_generation_prompt=True)
    except Exception:  # templates refuse in their own ways
        return False


def tokens_after(prompter: Prompter, chat: Chat) -> tuple[list[int], list[int]]:
    """For each place, how many tokens the chat has from its word on; and the word's own id (-1 where there is none yet).

    Counted from the end, because pictures become many tokens, all of them before the first place.
    """
    encoded = prompter.tokenizer(chat.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, begins = encoded["input_ids"], [start for start, _ in encoded["offset_mapping"]]
    after, own, at = [], [], 0
    for start, filler in zip(chat.starts, chat.fillers, strict=True):
        while at < len(ids) and begins[at] < start:
            at += 1
        after.append(len(ids) - at)
        own.append(ids[at] if filler else -1)
    return after, own


def choice_ids(prompter: Prompter, chat: Chat, choices: Sequence[str]) -> list[int]:
    """The ids of the choices at the chat's last place; they must be one distinct token each."""
    space = prompter.separator[len(prompter.separator.rstrip(" ")) :]
    return prompter.single_ids(chat.text[: chat.starts[-1]], [space + choice for choice in choices])


def check_fillers(chat: Chat, own: Sequence[int], choices: Sequence[str], ids: Sequence[int]) -> None:
    """Raises InputError unless every answer that is a choice was read as that choice's token."""
    known = dict(zip(choices, ids, strict=True))
    if any(known.get(filler, id) != id for filler, id in zip(chat.fillers, own, strict=True)):
        raise InputError(f"the tokenizer reads the choices {list(choices)} differently from place to place; choose other words")


def read_at_once(engine: Any, requests: Sequence[Request], choices: Sequence[str], values: Any = None) -> list[list[Turn]]:
    """All places of all requests by a `TransformersEngine`, one forward pass for each batch of requests.

    `values(model, inputs, rows, columns, ids_NK)` gives the (N, K) log-probabilities of the choices whose words stand, or will
    stand, at the given places; by default those of the model's own next token there.
    """
    import torch

    chats = [render_turns(engine.prompter, request) for request in requests]
    ids = [choice_ids(engine.prompter, chat, choices) for chat in chats]
    results: list[list[Turn]] = [[] for _ in requests]
    one_token = [replace(request, n=1, max_tokens=1) for request in requests]
    for batch in engine._batches(one_token, [chat.text for chat in chats]):
        order = [index for index, _ in batch]
        # Padded on the right, so that positions count from a row's own first token for every kind of model.
        inputs = engine._inputs([chats[i].text for i in order], [requests[i] for i in order], padding_side="right")
        lengths = inputs["attention_mask"].sum(dim=1).tolist()
        rows, columns, owners = [], [], []
        for row, index in enumerate(order):
            after, own = tokens_after(engine.prompter, chats[index])
            check_fillers(chats[index], own, choices, ids[index])
            for back, filler in zip(after, own, strict=True):
                place = lengths[row] - back
                if filler >= 0 and int(inputs["input_ids"][row, place]) != filler:
                    raise EngineError(f"{engine.name}: a verdict's place was not found again after the pictures were put in")
                rows.append(row)
                columns.append(place)
                owners.append(index)
        with torch.inference_mode(), engine._enough_memory():
            ids_NK = torch.tensor([ids[index] for index in owners], device=engine.device)
            logprobs_NK = (values or word_logprobs)(engine.model, inputs, rows, columns, ids_NK)
        for index, column, row in zip(owners, columns, logprobs_NK.tolist(), strict=True):
            results[index].append(Turn(dict(zip(choices, row, strict=True)), column))
    return results


def word_logprobs(model: Any, inputs: Mapping[str, Any], rows: Sequence[int], columns: Sequence[int], ids_NK: Any) -> Any:
    """(N, K) log-probabilities of the words at the given places, predicted by the token before."""
    import torch

    logits_NV = logits_at(model, inputs, rows, [column - 1 for column in columns]).float()
    return torch.log_softmax(logits_NV, dim=-1).gather(1, ids_NK)


def logits_at(model: Any, inputs: Mapping[str, Any], rows: Sequence[int], columns: Sequence[int]) -> Any:
    """(N, V) logits at the given places alone: those of all places would not fit for long chats and large vocabularies."""
    import torch

    if all(getattr(model.config.get_text_config(), name, None) is None for name in SCALED_LOGITS):
        hidden_NH = model.base_model(**inputs, use_cache=False).last_hidden_state[rows, columns]
        return model.get_output_embeddings()(hidden_NH)
    kept, where = torch.unique(torch.tensor(columns, device=inputs["input_ids"].device), return_inverse=True)
    return model(**inputs, use_cache=False, logits_to_keep=kept).logits[rows, where]


def explain(engine: Any, reason: str) -> None:
    """Says once for each engine and reason why the slow way is taken."""
    told = engine.__dict__.setdefault("_told", set())
    if reason not in told:
        told.add(reason)
        logger.warning("%s: one request a turn, because %s", engine.name, reason)
