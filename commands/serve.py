"""`vlrm serve`."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..config import JSON
from ..types import InputError
from .common import fitting, key, say


@dataclass
class Serve:
    """Serves a scorer over HTTP: scores, critiques and, with a policy, search.

    Its client is `vlrm.load_scorer("reward+http://host:port")`, and `--scorer reward+http://host:port` of other commands; any other one
    sends {"question", "images", "solutions"} to /v1/score, pictures as base64. Every route wants the header Authorization: Bearer TOKEN;
    the token comes from the environment variable VLRM_TOKEN or from a file. SIGTERM ends it when the work that it has taken is done.
    Needs `pip install "vlrm[serve]"`."""

    scorer: str = key("folder that vlrm train wrote, or a URL of an OpenAI-compatible server")
    host: str = key("address to listen on; 0.0.0.0 is every one of the machine", "127.0.0.1")
    port: int = key("port to listen on; 0 takes a free one", 8100)
    token_env: str = key("environment variable that holds the token", "VLRM_TOKEN")
    token_file: str | None = key("file that holds the token, or several, one on each line; instead of the variable", None)
    auth: bool = key("false asks for no token, which only a loopback address allows", True)
    open_health: bool = key("/health and /ready answer without a token", False)
    name: str | None = key("the scorer's name for clients; else that of its folder", None)
    engine: Literal["transformers", "vllm"] = key("engine for a scorer folder", "transformers")
    method: Literal["gm_prm", "vl_prm"] = key("what a scorer that is a URL is; a folder says so itself", "gm_prm")
    scorer_settings: JSON = key('settings of the scorer, such as {"aggregation": "min"}', None)
    scorer_options: JSON = key("options of the scorer's engine", None)
    policy: str | None = key("policy engine for /v1/search: transformers:PATH, vllm:PATH, http://host:port/v1, or tiny-policy", None)
    policy_options: JSON = key("options of the policy's engine", None)
    search_method: str = key("/v1/search: a method of vlrm search", "refined_best_of_n")
    search_settings: JSON = key('/v1/search: its settings, such as {"n": 4}', None)
    max_batch: int = key("solutions scored together", 32)
    max_wait_ms: float = key("how long an idle scorer waits for a batch to fill", 10.0)
    max_queue: int = key("solutions that may wait; more get a 429", 512)
    max_solutions: int = key("solutions in one request", 64)
    max_body_mb: int = key("largest body of a request", 16)
    max_images: int = key("pictures in one request", 16)
    max_image_mb: int = key("largest picture, as a file", 10)
    max_pixels: int = key("pixels of a picture; larger ones are refused before they are decoded", 16_777_216)
    max_seconds: float = key("longest time for an answer; what is not scored by then is null", 600.0)
    image_root: str | None = key("folder whose pictures requests may name as file:///...; else none", None)
    image_hosts: list[str] = key("hosts whose pictures requests may name as https://..., at public addresses only; else none", [])
    drain_seconds: int = key("after SIGTERM, longest time for the work that was taken", 60)
    log_level: Literal["debug", "info", "warning", "error"] = key("info has a line for each request", "info")


def run_serve(settings: Serve) -> None:
    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'vlrm serve needs {", ".join(missing)}: pip install "vlrm[serve]"')
    tokens = read_tokens(settings)
    from ..serving.fetch import Sources
    from ..serving.limits import Limits
    from ..serving.reward_server import RewardServer
    from ..serving.run_server import leave, log_to_stderr, run_server

    limits = Limits(
        body=settings.max_body_mb << 20,
        images=settings.max_images,
        image_bytes=settings.max_image_mb << 20,
        image_pixels=settings.max_pixels,
        waiting_pixels=max(Limits.waiting_pixels, settings.max_pixels),
        solutions=settings.max_solutions,
        waiting=settings.max_queue,
        batch=settings.max_batch,
        wait=settings.max_wait_ms / 1000,
        seconds=settings.max_seconds,
    )
    sources = Sources(settings.image_hosts, settings.image_root)
    log_to_stderr(settings.log_level)
    if "://" not in settings.scorer:
        quicken()
    scorer = open_scorer(settings)
    name = settings.name or (settings.scorer if "://" in settings.scorer else Path(settings.scorer).resolve().name)
    server = RewardServer(
        scorer,
        name=name,
        fingerprint=fingerprint(settings),
        tokens=tokens,
        open_health=settings.open_health,
        limits=limits,
        sources=sources,
        search=open_search(settings, scorer) if settings.policy else None,
    )
    run_server(server, settings.host, settings.port, settings.drain_seconds, lambda url: say(f"serving {name} at {url}"))
    say("all work is done" if not any(batcher.waiting for batcher in server.batchers) else "some work was given up")
    leave()


def quicken() -> None:
    """On a CPU the worker's thread otherwise gives its memory back after every batch, only to ask for it again."""
    import torch

    from ..serving.allocator import quicken_process

    if not torch.accelerator.is_available():
        quicken_process()


def read_tokens(settings: Serve) -> list[str]:
    """The tokens that let a client in; empty where none is asked for. Raises InputError."""
    if not settings.auth:
        if not _loopback(settings.host):
            raise InputError(f"--auth false is for a loopback address such as 127.0.0.1, not for {settings.host}; give a token")
        return []
    if settings.token_file is not None:
        path = Path(settings.token_file)
        if not path.is_file():
            raise InputError(f"there is no token file {path}; write the token into it, one on each line")
        tokens, where = path.read_text(encoding="utf-8").split(), str(path)
    else:
        tokens, where = os.environ.get(settings.token_env, "").split(), f"the environment variable {settings.token_env}"
    if not tokens:
        raise InputError(f"{where} holds no token; set it (openssl rand -hex 32 makes one), or give --token_file")
    if short := [token for token in tokens if len(token) < 8]:
        raise InputError(f"{where}: a token must have at least 8 characters, one has {len(short[0])}")
    return tokens


def open_scorer(settings: Serve) -> Any:
    from ..rm import load_scorer

    with fitting("scorer_options", settings.scorer):
        named = {} if settings.method == "gm_prm" else {"method": settings.method}
        return load_scorer(settings.scorer, settings.engine, settings.scorer_options, **named, **settings.scorer_settings)


def open_search(settings: Serve, scorer: Any) -> Any:
    """From problems to one line of `vlrm search` for each."""
    from functools import partial

    from ..config import nearest
    from ..policy import SEARCH
    from ..policy.result import as_record
    from ..serving import load_engine

    if settings.search_method not in SEARCH:
        raise InputError(f"unknown search_method {settings.search_method!r}{nearest(settings.search_method, SEARCH)}")
    method = partial(SEARCH[settings.search_method], **settings.search_settings)
    judges = () if settings.search_method == "self_consistency" else (scorer,)
    with fitting("search_settings", settings.search_method):
        method([], None, *[None for _ in judges])  # checks the settings before anything is loaded
    with fitting("policy_options", settings.policy or ""):
        policy = load_engine(settings.policy or "", **settings.policy_options)

    def search(problems: Sequence[Any]) -> list[dict[str, Any]]:
        return [as_record(result) for result in method(problems, policy, *judges)]

    return search


def fingerprint(settings: Serve) -> str:
    """Equal for servers of the same files and settings."""
    import hashlib

    said = repr((folder_stamp_of_content(settings.scorer), settings.method, sorted(settings.scorer_settings.items())))
    return hashlib.blake2b(said.encode(), digest_size=8).hexdigest()


def folder_stamp_of_content(folder: str) -> str:
    """Of the bytes of a folder's files, so that copies on other machines have the same; the name itself of what is no folder."""
    import hashlib

    path = Path(folder).expanduser()
    if not path.is_dir():
        return folder
    stamp = hashlib.blake2b(digest_size=8)
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt"):
            stamp.update(file.name.encode())
            with file.open("rb") as content:
                stamp.update(hashlib.file_digest(content, "blake2b").digest())
    return stamp.hexdigest()


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
