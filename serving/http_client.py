"""JSON over HTTP to one or several equal servers: bounded concurrency, retries with back-off, one clear line on failure."""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from ..types import EngineError, InputError

if TYPE_CHECKING:
    from httpx import AsyncClient

LONGEST_WAIT = 60.0  # seconds between two tries, whatever a server asks for
POOL = 8


class Pools:
    """httpx clients for `concurrency` requests at a time: `async with pools.one() as client`. The others wait.

    Each has few connections, because httpx looks through all of a client's connections at every request: one client with 64 of them
    spends more time on that than on anything else.
    """

    def __init__(self, concurrency: int, headers: Mapping[str, str], idle: float = 5.0):
        import httpx

        context = httpx.create_ssl_context()  # as dear as a hundred clients, so it is shared
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=2 * POOL, keepalive_expiry=idle)
        self.clients = [httpx.AsyncClient(headers=headers, limits=limits, verify=context) for _ in range(-(-concurrency // POOL))]
        self._free: asyncio.LifoQueue[AsyncClient] = asyncio.LifoQueue()  # the connection used last is the one that is surely open
        for k in range(concurrency):
            self._free.put_nowait(self.clients[k // POOL])

    @asynccontextmanager
    async def one(self) -> AsyncIterator[AsyncClient]:
        client = await self._free.get()
        try:
            yield client
        finally:
            self._free.put_nowait(client)

    async def close(self) -> None:
        for client in self.clients:
            await client.aclose()


class Client:
    """In an event loop: `async with Client(...) as client: await client.call("GET", "/models")`.

    Paths are relative to the base URLs; `/../tokenize` climbs out of `/v1`. Requests go round the URLs in turn. Connection
    errors, 429 and 5xx are tried again `retries` times, at the next URL, after `backoff` * 2^try seconds (jittered) or what the
    server's Retry-After says. Raises EngineError, or InputError where the server says that the request itself is wrong.
    """

    def __init__(
        self,
        urls: Sequence[str],
        headers: Mapping[str, str],
        concurrency: int = 64,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 0.5,
    ):
        self.urls, self.headers, self.concurrency = list(urls), dict(headers), concurrency
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.turn = 0

    async def __aenter__(self) -> Client:
        self.pools = Pools(self.concurrency, self.headers)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.pools.close()

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """The JSON that a server answers."""
        import httpx

        first, timeout = self.turn, httpx.Timeout(self.timeout, connect=min(10.0, self.timeout), pool=None)
        self.turn += 1
        for attempt in range(self.retries + 1):
            url = _join(self.urls[(first + attempt) % len(self.urls)], path)
            wait = min(LONGEST_WAIT, self.backoff * 2**attempt) * random.uniform(0.5, 1.0)
            try:
                async with self.pools.one() as http:
                    response = await http.request(method, url, json=body, timeout=timeout)
            except (httpx.TimeoutException, httpx.TransportError) as error:
                problem = _unreachable(url, error, self.timeout)
            except httpx.HTTPError as error:
                raise EngineError(f"{url}: {error or type(error).__name__}") from error
            else:
                if response.status_code == 200:
                    return _json(url, response.text)
                problem = f"{url} answers {response.status_code}: {server_words(response.text)}"
                if response.status_code != 429 and response.status_code < 500:
                    raise _refusal(response.status_code, problem)
                wait = max(wait, retry_after(response.headers.get("retry-after")))
            if attempt < self.retries:
                await asyncio.sleep(wait)
        tried = f" (tried {self.retries + 1} times)" if self.retries else ""
        raise EngineError(problem + tried)


def run(task: Callable[[], Awaitable[Any]]) -> Any:
    """The result of an asynchronous function, from ordinary code; in a thread of its own where a loop already runs (notebooks)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(task())
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(task())).result()


async def gather(ask: Callable[[Any], Awaitable[Any]], items: Sequence[Any], concurrency: int) -> list[Any]:
    """`ask(item)` for every item, in order, at most `concurrency` at a time; the first failure cancels the rest."""
    gate = asyncio.Semaphore(concurrency)

    async def one(item: Any) -> Any:
        async with gate:
            return await ask(item)

    running = [asyncio.ensure_future(one(item)) for item in items]
    try:
        return await asyncio.gather(*running)
    finally:
        for task in running:
            task.cancel()


def _join(url: str, path: str) -> str:
    if path.startswith("/../"):
        return url.removesuffix("/v1") + path[3:]
    return url + path


def _json(url: str, text: str) -> Any:
    import json

    try:
        return json.loads(text)
    except ValueError as error:
        raise EngineError(f"{url} answers something that is not JSON: {server_words(text)}; does the URL end in /v1?") from error


def server_words(text: str) -> str:
    """The server's own words on one line, 200 characters at most."""
    import json

    try:
        content = json.loads(text)
        content = content.get("error", content) if isinstance(content, dict) else content
        content = content.get("message", content) if isinstance(content, dict) else content
    except ValueError:
        content = text
    return " ".join(str(content).split())[:200] or "(no text)"


def _refusal(status: int, problem: str) -> Exception:
    if status in (401, 403):
        return InputError(f"{problem}; give api_key= or set VLRM_API_KEY")
    return InputError(problem) if status in (400, 404, 413, 422) else EngineError(problem)


def _unreachable(url: str, error: Exception, timeout: float) -> str:
    import httpx

    if isinstance(error, httpx.ReadTimeout):
        return f"{url} gave no answer within {timeout:g} s; is the server overloaded? raise timeout= or lower concurrency="
    reason = str(error) or type(error).__name__
    return f"{url} cannot be reached ({reason}); is the server running, and are host and port right?"


def retry_after(value: str | None) -> float:
    """Seconds from a Retry-After header (a number or a date), at most LONGEST_WAIT; 0 where there is none."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        date = email.utils.parsedate_tz(value)
        seconds = email.utils.mktime_tz(date) - time.time() if date else 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)
