"""A linear head named `score` on any image-text-to-text model: a number for a whole chat, or one for every token.

Saved as `...ForSequenceClassification` or `...ForTokenClassification` with `score.weight` (num_labels, hidden), which is what vLLM's
pooling runner makes of an image-text model. `HeadEngine` reads the number of a chat at its last token.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ..serving.engine import Request
from ..serving.prompting import Prompter, as_parts, check_images
from ..serving.transformers_engine import TransformersEngine
from ..types import InputError, Usage

Kind = Literal["sequence", "token"]
SUFFIX = {"sequence": "ForSequenceClassification", "token": "ForTokenClassification"}


def load_head(path: str | Path, kind: Kind, num_labels: int | None = None, **options: Any) -> Any:
    """The model of `path` with a head. A folder that training wrote has its own; any other gets a fresh one of `num_labels`."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    config = AutoConfig.from_pretrained(path)
    if num_labels is not None:
        config.num_labels = num_labels
    if type(config) not in AutoModelForImageTextToText._model_mapping:
        raise InputError(f"{path} is no image-text-to-text model; a head needs one")
    return head_class(AutoModelForImageTextToText._model_mapping[type(config)], kind).from_pretrained(path, config=config, **options)


@functools.cache
def head_class(base: type, kind: Kind) -> type:
    """The subclass of an image-text model that has `score`, a linear layer without bias, and gives its output as logits: (B, T, labels) of
    every token, or (B, labels) at each chat's last token."""
    from torch import nn
    from transformers.modeling_outputs import SequenceClassifierOutput, TokenClassifierOutput

    def __init__(self: Any, config: Any) -> None:
        base.__init__(self, config)
        self.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels, bias=False)
        self.post_init()

    def tokens(self: Any, *args: Any, logits_to_keep: Any = 0, labels: Any = None, **kwargs: Any) -> Any:
        hidden_BTH = self.base_model(*args, **kwargs).last_hidden_state
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return TokenClassifierOutput(logits=self.score(hidden_BTH[:, kept]))

    def sequences(self: Any, attention_mask: Any, **kwargs: Any) -> Any:
        hidden_BTH = self.base_model(attention_mask=attention_mask, use_cache=False, **kwargs).last_hidden_state
        return SequenceClassifierOutput(logits=self.score(hidden_BTH[range(len(hidden_BTH)), last_places(attention_mask)]))

    forward = {"token": tokens, "sequence": sequences}[kind]
    name = base.__name__.removesuffix("ForConditionalGeneration") + SUFFIX[kind]
    return type(name, (base,), {"__init__": __init__, "forward": forward, "__module__": base.__module__})


def last_places(mask_BT: Any) -> Any:
    """(B,) the place of each row's last token, whichever side is padded."""
    import torch

    return (mask_BT * torch.arange(1, mask_BT.shape[1] + 1, device=mask_BT.device)).argmax(dim=1)


def whole_chat(prompter: Prompter, request: Request) -> str:
    """The text of a chat that ends with an assistant's turn, as the chat template writes it to its end."""
    check_images(request)
    return prompter._render(as_parts(request.messages), add_generation_prompt=False)


class HeadEngine(TransformersEngine):
    """A TransformersEngine whose model has a sequence head; it generates nothing."""

    _load = staticmethod(functools.partial(load_head, kind="sequence"))

    def chat_values(self, requests: Sequence[Request]) -> list[tuple[float, int]]:
        """For each chat the head's number, read at its last token, and how many tokens were read."""
        import torch

        started = time.perf_counter()
        texts = [whole_chat(self.prompter, request) for request in requests]
        results: list[tuple[float, int]] = [(0.0, 0)] * len(requests)
        for batch in self._batches(requests, texts) if requests else ():
            order = [index for index, _ in batch]
            inputs = self._inputs([texts[i] for i in order], [requests[i] for i in order], padding_side="right")
            with self._enough_memory(), torch.inference_mode():
                values = self.model(**inputs).logits[:, 0].float().tolist()
            counts = inputs["attention_mask"].sum(dim=1).tolist()
            for index, value, count in zip(order, values, counts, strict=True):
                results[index] = value, count
        self.usage += Usage(sum(count for _, count in results), 0, len(requests), time.perf_counter() - started)
        return results
