"""Loading a scorer: a folder that `vlrm train` wrote, the URL of a server that serves such a model, or a reward server."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ..types import InputError, Scorer

# By name, because an import never climbs to a higher floor.
METHODS = {
    "gm_prm": "vlrm.prm.gm_prm:GMPRM",
    "vl_prm": "vlrm.prm.vl_prm:VLPRM",
    "paco": "vlrm.rm.paco:PaCo",
    "scalar": "vlrm.rm.scalar:ScalarRM",
    "judge": "vlrm.rm.judge:Judge",
    "yes_no": "vlrm.rm.yes_no:YesNo",
}
CARD = "vlrm.json"
CARD_KEYS = ("scorer", "base", "settings", "training", "version")


def load_scorer(
    path_or_url: str | os.PathLike[str],
    engine: Any = "transformers",
    engine_options: Mapping[str, Any] | None = None,
    method: str = "gm_prm",
    **settings: Any,
) -> Scorer:
    """A scorer from a trained folder, over an OpenAI-compatible server (`"http://host:port/v1"`) that serves its model, over reward
    servers (`"reward+http://host:port"`, several with commas; `settings` are those of `RemoteScorer`), or any model (`"vllm:PATH"`).

    The folder's `vlrm.json` names the scorer class and its settings; `settings` override them. For a URL, and for a model as it comes,
    named "transformers:PATH" or "vllm:PATH", they are all there is, and `method` says which scorer, a key of `METHODS` (a trained
    folder's settings are `read_card(FOLDER)["settings"]`). `engine` is "transformers", "vllm", the URL of a server that serves the
    folder's model, or an engine that already holds it; `engine_options` go to `load_engine`. Raises InputError for a missing folder, a
    folder that training has not finished, and unknown settings.
    """
    source, options = os.fspath(path_or_url), dict(engine_options or {})
    if source.startswith("reward+"):
        from .remote import RemoteScorer, load_remote

        check_settings(RemoteScorer, settings, "load_scorer")
        return load_remote(source, options, settings)
    if source.startswith(("http://", "https://", "transformers:", "vllm:")):
        if method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        scorer = resolve(METHODS[method])
        check_settings(scorer, settings, "load_scorer")
        return scorer(_served(scorer, source, options) or _engine(engine, source, options), **settings)
    card = read_card(source)
    scorer = resolve(card["scorer"])
    merged = {**card.get("settings", {}), **settings}
    check_settings(scorer, merged, f"{source}/{CARD} or load_scorer")
    if isinstance(engine, str) and engine.startswith(("http://", "https://")):
        return scorer(_served(scorer, engine, options) or _engine(engine, engine, options), **merged)
    if isinstance(engine, str) and engine not in ("transformers", "vllm"):
        raise InputError(f'engine must be "transformers", "vllm", a URL or an engine object, got {engine!r}')
    if isinstance(engine, str) and hasattr(scorer, "open_engine"):  # a model that an ordinary engine cannot load
        return scorer(scorer.open_engine(engine, source, **options), **merged)
    return scorer(_engine(engine, f"{engine}:{source}", options), **merged)


def read_card(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The checked content of a folder's `vlrm.json`."""
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{path}: no such folder; give a folder that `vlrm train` wrote, or a server's URL")
    if not (path / CARD).is_file():
        raise InputError(f"{path}: has no {CARD}, so no training finished here; run the same `vlrm train` again to go on")
    try:
        card = json.loads((path / CARD).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path / CARD}: not valid JSON ({error})") from None
    if not isinstance(card, dict) or not isinstance(card.get("scorer"), str) or not isinstance(card.get("settings", {}), dict):
        raise InputError(f'{path / CARD}: must be an object with "scorer": "package.module:Class" and "settings": {{...}}')
    if not isinstance(card.get("base", ""), str):
        raise InputError(f"{path / CARD}: base must be the path or the hub name of the base model")
    if unknown := [key for key in card if key not in CARD_KEYS]:
        raise InputError(f"{path / CARD}: unknown key {_nearest(unknown[0], CARD_KEYS)}")
    return card


def resolve(dotted: str, what: str = "scorer") -> Callable[..., Any]:
    """The object that `package.module:name` names; `what` it is meant to be is said where it cannot be loaded."""
    module, _, name = dotted.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot load the {what} {dotted!r} ({error}); write it as package.module:name") from None


def check_settings(scorer: Callable[..., Scorer], settings: Iterable[str], where: str) -> None:
    """Raises InputError for a setting that the scorer does not have."""
    known = [p.name for p in inspect.signature(scorer).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if unknown := [key for key in settings if key not in known]:
        raise InputError(f"{where}: unknown setting {_nearest(unknown[0], known)}")


def _nearest(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1, cutoff=0.0)
    return f"{key!r}; did you mean {close[0]!r}?" if close else repr(key)


def _engine(engine: Any, spec: str, options: Mapping[str, Any]) -> Any:
    if not isinstance(engine, str):
        return engine
    from ..serving import load_engine

    return load_engine(spec, **options)


def _served(scorer: Callable[..., Scorer], url: str, options: Mapping[str, Any]) -> Any:
    """The engine of a scorer whose server is asked otherwise than in OpenAI's protocol; None for the others."""
    if url.startswith(("http://", "https://")) and getattr(scorer, "SERVED", False):
        return scorer.open_engine(url, url, **options)
    return None
