"""The step head in vLLM's pooling runner: one forward pass gives every token's labels, and those of the steps' answers are taken.

`tok_pooling_type` "ALL" is used rather than "STEP": the places are known here, so the token that ends a step may occur elsewhere too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

from ..rm.head_vllm import PoolingEngine
from ..serving.engine import Request, Turn
from ..serving.turns import Unreadable, check_fillers, choice_ids, render_turns, tokens_after
from ..types import EngineError, Usage
from .step_head_engine import answered, two_way


class VLLMStepHeadEngine(PoolingEngine):
    """A PoolingEngine whose `turn_logprobs` come from the head; it generates nothing."""

    TASK = "token_classify"
    POOLING: ClassVar[dict[str, Any]] = {"tok_pooling_type": "ALL"}

    def turn_logprobs(self, requests: Sequence[Request], choices: Sequence[str]) -> list[list[Turn]]:
        """As StepHeadEngine's."""
        if not requests:
            return []
        started = time.perf_counter()
        try:
            chats = [render_turns(self.prompter, answered(request, choices)) for request in requests]
        except Unreadable as reason:
            raise EngineError(f"{self.name}: a step head cannot be read here, because {reason}") from None
        outputs = self.encode(requests, [chat.text for chat in chats])
        results = []
        for chat, output in zip(chats, outputs, strict=True):
            after, own = tokens_after(self.prompter, chat)
            check_fillers(chat, own, choices, choice_ids(self.prompter, chat, choices))
            places = [len(output.prompt_token_ids) - back for back in after]
            rows = two_way(output.outputs.data[places].float()).tolist()
            results.append([Turn(dict(zip(choices, row, strict=True)), place) for row, place in zip(rows, places, strict=True)])
        read = sum(turns[-1].tokens for turns in results)
        self.usage += Usage(read, 0, len(requests), time.perf_counter() - started)
        return results
