"""What a folder tells of the LoRA adapter in it."""

from __future__ import annotations

import json
from pathlib import Path

from ..types import InputError

ADAPTER = "adapter_config.json"


def adapter_base(folder: Path) -> str:
    """The model that the LoRA adapter in this folder belongs to, as the card of a scorer or a policy names it, else as PEFT does. Raises
    InputError."""
    try:
        if (folder / "vlrm.json").is_file():
            return str(json.loads((folder / "vlrm.json").read_text())["base"])
        if (folder / "policy.json").is_file():
            return str(json.loads((folder / "policy.json").read_text())["training"]["run"]["model"])
        base = json.loads((folder / ADAPTER).read_text())["base_model_name_or_path"]
    except (ValueError, LookupError, TypeError, OSError) as error:
        raise InputError(f"cannot read whose adapter {folder} holds ({error}); give it as adapter=, its base as the path") from None
    if not base:
        raise InputError(f"the adapter in {folder} does not tell its base model: give it as adapter=, and its base model as the path")
    return str(base)


def adapter_rank(adapter: str | Path) -> int:
    """The smallest rank that vLLM can reserve for the adapter."""
    try:
        rank = int(json.loads((Path(adapter) / ADAPTER).read_text())["r"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"adapter {adapter} has no readable {ADAPTER}; give the folder that PEFT saved it in") from error
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= rank), rank)
