"""Runs the reward server with uvicorn until it is told to end: SIGTERM or SIGINT stop new work, finish the old, then leave."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from ..types import InputError
from .reward_server import RewardServer

KEEP_ALIVE = 30  # seconds; longer than our client keeps an idle connection, so that it does not write into a closing one
LONGEST_HEAD = 64 << 10  # bytes of a request's head


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, reward_server: RewardServer, started: Callable[[str], None]):
        super().__init__(config)
        self.reward_server, self.said = reward_server, started

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if self.started:
            host, port = sockets[0].getsockname()[:2]
            self.said(f"http://{f'[{host}]' if ':' in host else host}:{port}")

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.reward_server.draining = True
        super().handle_exit(sig, frame)


def run_server(
    server: RewardServer, host: str = "127.0.0.1", port: int = 8100, drain_seconds: int = 60, started: Callable[[str], None] = print
) -> None:
    """Serves until a signal; `started` is told the URL once requests are taken (port 0 takes a free one).

    After `drain_seconds`, or at a second signal, work that is still open is given up: its clients see a lost connection. Raises
    InputError where the address cannot be had.
    """
    listening = _bound(host, port)
    config = uvicorn.Config(
        server.app,
        http="h11",  # it bounds the size of a request's head
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=drain_seconds,
        h11_max_incomplete_event_size=LONGEST_HEAD,
    )
    # uvicorn sends itself the signal again when it is done; by then it has been obeyed.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _Uvicorn(config, server, started).run([listening])


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        raise InputError(f"cannot listen on {host}, port {port} ({error}); choose another --host or --port") from None
    return listening


def log_to_stderr(level: str) -> None:
    """One line for each request, and uvicorn's warnings."""
    logging.basicConfig(format="%(asctime)s %(name)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger("vlrm.serve").setLevel(level.upper())


def leave() -> None:
    """Ends the process although a scorer may hang in its thread."""
    logging.shutdown()
    os._exit(0)
