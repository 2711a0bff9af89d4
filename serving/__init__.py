"""Engines: transformers, vLLM in process, any OpenAI-compatible server. `load_engine` picks one by its specification."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# Imported when first used: the engines pull in torch, transformers, vllm or httpx.
_LAZY = {
    "Completion": ".engine",
    "Engine": ".engine",
    "Request": ".engine",
    "Token": ".engine",
    "load_engine": ".load",
    "open_image": ".images",
}

if TYPE_CHECKING:
    from .engine import Completion, Engine, Request, Token
    from .images import open_image
    from .load import load_engine

__all__ = ["Completion", "Engine", "Request", "Token", "load_engine", "open_image"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
