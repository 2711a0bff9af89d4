"""Heads in vLLM's pooling runner: the folder that training wrote, as it is. One forward pass gives a chat's number, or every token's."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..serving.engine import Request
from ..serving.vllm_engine import VLLMEngine
from ..types import Usage
from .head import whole_chat


class PoolingEngine(VLLMEngine):
    """A VLLMEngine that runs a model with a head and generates nothing. `TASK` and `POOLING` are vLLM's names for what is asked."""

    TASK = "classify"
    POOLING: ClassVar[dict[str, Any]] = {}

    def __init__(self, path: str | Path, **options: Any):
        from vllm.config import PoolerConfig

        pooling = {"runner": "pooling", "pooler_config": PoolerConfig(task=self.TASK, **self.POOLING)}
        super().__init__(path, **pooling | options)

    def encode(self, requests: Sequence[Request], texts: Sequence[str]) -> list[Any]:
        """vLLM's outputs, the head's numbers as they are."""
        from vllm import PoolingParams

        params = PoolingParams(task=self.TASK, use_activation=False)

        def call(prompts: list[Any]) -> list[Any]:
            return self.llm.encode(prompts, params, pooling_task=self.TASK, use_tqdm=False)

        return self._ask(call, requests, texts)


class VLLMHeadEngine(PoolingEngine):
    """As `HeadEngine`, in vLLM."""

    def chat_values(self, requests: Sequence[Request]) -> list[tuple[float, int]]:
        """As HeadEngine's."""
        if not requests:
            return []
        started = time.perf_counter()
        outputs = self.encode(requests, [whole_chat(self.prompter, request) for request in requests])
        results = [(float(output.outputs.data.flatten()[0]), len(output.prompt_token_ids)) for output in outputs]
        self.usage += Usage(sum(count for _, count in results), 0, len(requests), time.perf_counter() - started)
        return results
