"""Before any route of the reward server: a request id, the token, the size of the body; after it: one line in the log, one count.

Plain ASGI, so that nothing of a request is read before it may be.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Collection, Mapping
from typing import Any

import h11

from .telemetry import Telemetry

LOG = logging.getLogger("vlrm.serve")
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
ALWAYS = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


class Refused(Exception):
    """An answer that says in one line what to change, or when to ask again."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None):
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


class Guard:
    """Wraps an ASGI application. `tokens` empty lets everybody in; `open_paths` need no token."""

    def __init__(self, app: Any, tokens: Collection[str], open_paths: Collection[str], max_body: int, telemetry: Telemetry):
        self.app, self.open_paths, self.max_body, self.telemetry = app, frozenset(open_paths), max_body, telemetry
        self.tokens = [_hash(token.encode()) for token in tokens]

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.perf_counter(), 0
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        named = REQUEST_ID.fullmatch(given) is not None
        id = given if named else uuid.uuid4().hex
        scope.setdefault("state", {}).update(request_id=id, named=named)

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", id.encode()), *ALWAYS]}
            try:
                await send(message)
            except h11.LocalProtocolError:  # the client broke the protocol meanwhile, and has its 400 from uvicorn
                status = 400

        try:
            self._check(scope["path"], headers, given, named)
            await self.app(scope, receive, answer)
        except Refused as refused:
            await refuse(answer, refused.status, str(refused), id, refused.headers)
        except asyncio.CancelledError:  # the server ends before the work is done
            if not status:
                await refuse(answer, 503, "the server has ended; ask another one, or again later", id, {"Retry-After": "1"})
            raise
        except Exception:
            LOG.exception("%s failed", id)
            if not status:
                await refuse(answer, 500, "the server failed; its log says why under this request id", id)
        finally:
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "other")
            self.telemetry.requests.labels(route, str(status or "gone")).inc()
            self.telemetry.request_seconds.labels(route).observe(seconds)
            path = scope["path"][:100].encode("unicode_escape").decode()
            LOG.info("%s %s %s %s %.1f ms", id, scope["method"][:10], path, status or "gone", 1000 * seconds)

    def _check(self, path: str, headers: Mapping[bytes, bytes], id: str, named: bool) -> None:
        if self.tokens and path not in self.open_paths:
            kind, _, token = headers.get(b"authorization", b"").partition(b" ")
            found = _hash(token.strip())
            if not any([hmac.compare_digest(found, known) for known in self.tokens]) or kind.lower() != b"bearer":
                message = "send the header Authorization: Bearer TOKEN with the token that this server was started with"
                raise Refused(401, message, {"WWW-Authenticate": "Bearer"})
        if id and not named:
            raise Refused(400, "X-Request-ID must be 1 to 64 letters, digits, dots, dashes or underscores")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self.max_body:
            raise Refused(413, too_large(self.max_body))


def too_large(limit: int) -> str:
    return f"the body is larger than the limit of {limit:,} bytes; send fewer or smaller pictures"


def error_body(message: str, id: str) -> bytes:
    return json.dumps({"error": {"message": " ".join(message.split())}, "request_id": id}).encode()


async def refuse(send: Any, status: int, message: str, id: str, headers: Mapping[str, str] | None = None) -> None:
    body = error_body(message, id)
    listed = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
    await send({"type": "http.response.start", "status": status, "headers": [(k.encode(), v.encode()) for k, v in listed.items()]})
    await send({"type": "http.response.body", "body": body})


def _hash(token: bytes) -> bytes:
    """Of one length for all, so that comparing takes the same time."""
    return hashlib.sha256(token).digest()
