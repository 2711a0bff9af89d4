"""Heads over HTTP: a folder with a sequence head as vLLM serves it.

vllm serve FOLDER --runner pooling
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..serving.engine import Request
from ..serving.http_engine import HTTPEngine
from ..types import EngineError, InputError, Usage


class HTTPHeadEngine(HTTPEngine):
    """An HTTPEngine that asks vLLM's /classify, which lies beside /v1; it generates nothing."""

    def chat_values(self, requests: Sequence[Request]) -> list[tuple[float, int]]:
        """As HeadEngine's."""
        return self._all(self._value, requests)

    async def _meet(self) -> None:
        listed = await self.client.call("GET", "/models")
        names = [model["id"] for model in listed.get("data", ())]
        if self.model not in (None, *names) or (self.model is None and len(names) != 1):
            raise InputError(f"{self.client.urls[0]} serves {', '.join(names) or 'no model'}; name one: {self.client.urls[0]}#MODEL")
        self.model, self.is_vllm = self.model or names[0], True

    async def _value(self, request: Request) -> tuple[tuple[float, int], Usage]:
        import asyncio

        body = await asyncio.to_thread(self._body, request, ())
        asked = {"model": self.model, "messages": body["messages"], "add_generation_prompt": False, "use_activation": False}
        answer: Any = await self.client.call("POST", "/../classify", asked)
        try:
            value, read = float(answer["data"][0]["probs"][0]), int(answer["usage"]["prompt_tokens"])
        except (KeyError, IndexError, TypeError, ValueError):
            raise EngineError(f"{self.client.urls[0]} gives no class values: {answer!r:.200}; start it with --runner pooling") from None
        return (value, read), Usage(read, 0, 1)
