"""A model with a head on the token that ends a step, as an engine of transformers; and what its vLLM form shares with it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..rm.head import load_head
from ..serving.engine import Request, Turn
from ..serving.transformers_engine import TransformersEngine
from ..serving.turns import Unreadable, places, read_at_once
from ..types import EngineError, Usage


def load_step_head(path: str | Path, num_labels: int | None = None, **options: Any) -> Any:
    """The model of `path` with a head on every token (see `vlrm.rm.head.load_head`)."""
    return load_head(path, "token", num_labels, **options)


class StepHeadEngine(TransformersEngine):
    """A TransformersEngine whose `turn_logprobs` come from the head; it generates nothing."""

    _load = staticmethod(load_step_head)

    def turn_logprobs(self, requests: Sequence[Request], choices: Sequence[str]) -> list[list[Turn]]:
        """A `Turn` for each place, the end included: the two choices' log-probabilities by the head, which sum to 1 as probabilities."""
        if not requests:
            return []
        started = time.perf_counter()
        try:
            results = read_at_once(self, [answered(request, choices) for request in requests], choices, head_logprobs)
        except Unreadable as reason:
            raise EngineError(f"{self.name}: a step head cannot be read here, because {reason}") from None
        self.usage += Usage(sum(turns[-1].tokens for turns in results), 0, len(requests), time.perf_counter() - started)
        return results


def answered(request: Request, choices: Sequence[str]) -> Request:
    """The chat with its last answer filled in by the positive word: the head reads it there."""
    if places(request)[-1] < len(request.messages):
        return request
    answer = {"role": "assistant", "content": [{"type": "text", "text": choices[0]}]}
    return Request([*request.messages, answer], request.images, max_tokens=1)


def head_logprobs(model: Any, inputs: Any, rows: Sequence[int], columns: Sequence[int], ids_NK: Any) -> Any:
    """(N, 2) log-probabilities of the positive and the negative word, read at the word's own place."""
    logits_NL = model.score(model.base_model(**inputs, use_cache=False).last_hidden_state[rows, columns]).float()
    return two_way(logits_NL)


def two_way(logits_NL: Any) -> Any:
    """(N, 2) log-probabilities from one logit, which stands against 0, or from two."""
    import torch

    logits_N2 = logits_NL if logits_NL.shape[-1] == 2 else torch.cat([logits_NL, torch.zeros_like(logits_NL)], dim=-1)
    return torch.log_softmax(logits_N2, dim=-1)
