"""The one idea that search, scorers and data synthesis see of a model: requests in, completions out.

Three engines keep this contract: `transformers_engine`, `vllm_engine` and `http_engine`. `load_engine` picks one by its
specification: `"transformers:PATH"`, `"vllm:PATH"`, `"http://host:port/v1"`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from ..types import InputError, Usage


@dataclass(frozen=True)
class Request:
    """One prompt and how to sample from it.

    `messages` are chat messages whose content is a string or a list of `{"type": "text", "text": ...}` and
    `{"type": "image"}` parts; `images` (paths, PIL images or bytes) fill the image parts in order. `prefix` opens the
    assistant's turn: the model goes on from its last character, and completions do not repeat it. `track` names words whose
    log-probabilities are wanted at *every* generated token (a verdict word written as the model writes it, leading space
    included: `" Correct"`). `temperature` 0 is greedy. A `seed` gives the same samples again whatever else is in the batch.
    """

    messages: Sequence[Mapping[str, Any]]
    images: Sequence[Any] = ()
    prefix: str = ""
    n: int = 1
    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    logprobs: bool = False
    track: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n < 1:
            raise InputError(f"n must be at least 1, got {self.n}")
        if self.max_tokens < 1:
            raise InputError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if self.temperature < 0:
            raise InputError(f"temperature must not be negative, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise InputError(f"top_p must lie in (0, 1], got {self.top_p}")


@dataclass(frozen=True)
class Token:
    """A generated token: its text lies at characters [start, end) of the completion. `tracked` maps each word of
    `Request.track` to the natural log-probability of that word's first token at this place."""

    id: int
    start: int
    end: int
    logprob: float | None = None
    tracked: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Completion:
    """`finish_reason` is "stop" (end of turn or a stop string, which is not part of the text) or "length". `stopped_at` is the stop
    string that was met, "" where none was, None where the engine cannot tell. `tokens` is empty unless log-probabilities or
    tracked words were asked for."""

    text: str
    tokens: tuple[Token, ...] = ()
    finish_reason: str = "stop"
    completion_tokens: int = 0
    prompt_tokens: int = 0
    stopped_at: str | None = None


@dataclass(frozen=True)
class Turn:
    """What a model expects at the beginning of one assistant's turn: the log-probability of each choice, and the number of tokens
    before that place (None where the engine cannot tell)."""

    logprobs: Mapping[str, float]
    tokens: int | None = None


@runtime_checkable
class Engine(Protocol):
    """A model that answers. `name` is stable and goes into records; `usage` grows with every call.

    An engine may also have `turn_logprobs(requests, choices) -> list[list[Turn]]`, which reads a chat of several turns at once; ask for it
    through `vlrm.serving.turns.turn_logprobs`, which serves every engine.
    """

    name: str
    usage: Usage

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """`n` completions for each request, in order."""
        ...

    def choice_logprobs(self, requests: Sequence[Request], choices: Sequence[str]) -> list[dict[str, float]]:
        """Log-probability of each choice's first token right after the request's `prefix`.

        The token ids are resolved from the model's own tokenizer with the real prefix; two choices that begin with
        the same token raise `InputError`.
        """
        ...

    def close(self) -> None: ...
