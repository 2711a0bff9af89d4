"""Replicas of one reward server: which one is asked, what is tried again, and what every answer means.

A request keeps its id through all tries. Where a connection breaks after the request went out, the same replica is asked again first:
it knows the id and computes nothing twice. Where it cannot be reached, another one is asked.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..types import EngineError, InputError, Score
from .http_client import Pools, retry_after, server_words
from .wire import digest, score_from_wire

if TYPE_CHECKING:
    from httpx import AsyncClient

LONGEST_REST = 10.0  # seconds that a replica that failed is left alone
IDLE = 15.0  # seconds that an idle connection is kept


@dataclass(eq=False)
class Replica:
    """`busy` requests are open there; it rests until the time `rests_until` of the loop, after `failures` failures in a row."""

    url: str
    busy: int = 0
    rests_until: float = 0.0
    failures: int = 0

    def rest(self, now: float, backoff: float, least: float = 0.0) -> None:
        self.failures += 1
        self.rests_until = now + max(least, min(LONGEST_REST, backoff * 2 ** min(self.failures, 10)) * random.uniform(0.5, 1.0))


class RewardClient:
    """In one event loop: `async with RewardClient(...) as client: await client.meet(30); await client.score(body, solutions, 60)`.

    `attempt`: seconds for the answer to one try; `hedge`: after so many seconds without an answer a second replica is asked too, once
    for a request, and the first answer counts. `counts` tells what happened.
    """

    def __init__(
        self,
        urls: Sequence[str],
        token: str | None = None,
        concurrency: int = 64,
        attempt: float = 120.0,
        hedge: float | None = None,
        backoff: float = 0.25,
        expect: str | None = None,
    ):
        self.replicas = [Replica(url) for url in urls]
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.concurrency, self.attempt, self.hedge, self.backoff, self.expect = concurrency, attempt, hedge, backoff, expect
        self.counts: Counter[str] = Counter()
        self.scorer: dict[str, Any] = {}
        self.turn = 0
        self.silent_since: float | None = None  # when the replicas, all of them, stopped answering

    async def __aenter__(self) -> RewardClient:
        self.pools = Pools(self.concurrency, self.headers, IDLE)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.pools.close()

    async def meet(self, patience: float) -> None:
        """Learns what the replicas serve. Raises InputError where a token is wrong or they are not the scorer that is expected, and
        EngineError where none answers within `patience` seconds."""
        until = self._now() + patience
        while True:
            found = await asyncio.gather(*[self._ask_scorer(replica, until) for replica in self.replicas], return_exceptions=True)
            if refusal := next((answer for answer in found if isinstance(answer, InputError)), None):
                raise refusal
            met = {replica.url: answer for replica, answer in zip(self.replicas, found, strict=True) if isinstance(answer, dict)}
            if met:
                break
            if self._now() >= until:
                raise next(answer for answer in found if isinstance(answer, Exception))
            await asyncio.sleep(min(1.0, max(0.05, until - self._now())))
        if len({answer["fingerprint"] for answer in met.values()}) > 1:
            told = "; ".join(f"{url} serves {answer['name']} ({answer['fingerprint']})" for url, answer in met.items())
            raise InputError(f"the replicas must serve one scorer, but {told}")
        url, self.scorer = next(iter(met.items()))
        if self.expect is not None and self.expect not in (self.scorer["name"], self.scorer["fingerprint"]):
            raise InputError(f"{url} serves {self.scorer['name']} ({self.scorer['fingerprint']}), not {self.expect!r}")

    async def score(self, body: bytes, solutions: Sequence[str], seconds: float) -> list[Score]:
        """A score for each solution; without a value, and with the reason, where there is none within `seconds`."""
        async with self.pools.one() as http:
            if len(body) > self.scorer["limits"]["body"]:
                message = f"the request has {len(body):,} bytes, more than the server's limit of {self.scorer['limits']['body']:,}"
                return [Score(None, error=f"{message}; use smaller pictures")] * len(solutions)
            if self.silent_since is not None and self._now() - self.silent_since > seconds:
                seconds = min(seconds, LONGEST_REST)  # they have had their time: thousands of samples must not wait it out one by one
            id, until = uuid.uuid4().hex, self._now() + seconds
            used: list[Replica] = []
            tries = [asyncio.ensure_future(self._tries(http, id, body, solutions, until, used, None))]
            try:
                if self.hedge is not None and len(self.replicas) > 1:
                    await asyncio.wait(tries, timeout=self.hedge)
                    if not tries[0].done():
                        self.counts["hedged"] += 1
                        tries.append(asyncio.ensure_future(self._tries(http, id, body, solutions, until, [], used[-1] if used else None)))
                while True:
                    done, waiting = await asyncio.wait(tries, return_when=asyncio.FIRST_COMPLETED)
                    good = [task for task in done if not all(score.value is None for score in task.result())]
                    if good or not waiting:
                        return (good or list(done))[0].result()
                    tries = list(waiting)
            finally:
                for task in tries:
                    task.cancel()

    async def _tries(
        self,
        http: AsyncClient,
        id: str,
        body: bytes,
        solutions: Sequence[str],
        until: float,
        used: list[Replica],
        avoid: Replica | None,
    ) -> list[Score]:
        import httpx

        problem, again, mixed = "no replica was free", None, 0
        while (left := until - self._now()) > 0:
            replica = again or await self._free(left, avoid)
            if replica is None:
                break
            if used:
                self.counts["retries"] += 1
            used.append(replica)
            same, again = again is not None, None
            replica.busy += 1
            try:
                headers = {"X-Request-ID": id, "X-Timeout": f"{max(0.001, min(left, 999_999)):.3f}"}
                timeout = httpx.Timeout(min(self.attempt, left + 1), connect=min(10.0, left), pool=None)
                response = await http.post(f"{replica.url}/v1/score", content=body, headers=headers, timeout=timeout)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                problem = f"{replica.url} cannot be reached ({error or type(error).__name__})"
                self.silent_since = self.silent_since or self._now()
                replica.rest(self._now(), self.backoff)
            except httpx.TransportError as error:  # it may have been computed: the same replica knows the id
                problem = f"{replica.url} broke off ({error or type(error).__name__})"
                again = None if same else replica
                replica.rest(self._now(), self.backoff)
            else:
                status = response.status_code
                if status == 200:
                    try:
                        scores = self._read(response.content, id, solutions)
                    except _Mixed as error:
                        problem = f"{replica.url}: {error}"
                        self.counts["mixed_up"] += 1
                        mixed += 1
                        replica.rest(self._now(), self.backoff)
                        if mixed > len(self.replicas):
                            break
                    else:
                        replica.failures, self.silent_since = 0, None
                        return scores
                elif status == 429 or status >= 500:
                    problem = f"{replica.url} answers {status}: {server_words(response.text)}"
                    self.counts["busy" if status == 429 else "failed"] += 1
                    replica.rest(self._now(), self.backoff, retry_after(response.headers.get("retry-after")))
                else:
                    self.counts["refused"] += len(solutions)
                    return _none(f"{replica.url} answers {status}: {server_words(response.text)}", solutions)
            finally:
                replica.busy -= 1
        self.counts["gave_up"] += len(solutions)
        return _none(f"not scored: {problem}", solutions)

    def _read(self, content: bytes, id: str, solutions: Sequence[str]) -> list[Score]:
        """The scores of an answer that is surely the one to this request."""
        try:
            answer = json.loads(content)
            records = answer["scores"]
            if answer["request_id"] != id or [record["digest"] for record in records] != [digest(text) for text in solutions]:
                raise _Mixed("the answer belongs to another request")
            if answer["scorer"] != self.scorer["fingerprint"]:
                raise _Mixed(f"serves another scorer now ({answer['scorer']}) than {self.scorer['fingerprint']}")
            return [score_from_wire(record) for record in records]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _Mixed(f"the answer is not one of a reward server ({type(error).__name__})") from None

    async def _free(self, left: float, avoid: Replica | None) -> Replica | None:
        """The replica that rests least and has least to do, once it is awake; None where none is awake in time."""
        until = self._now() + left
        while True:
            now = self._now()
            self.turn += 1
            order = self.replicas[self.turn % len(self.replicas) :] + self.replicas[: self.turn % len(self.replicas)]
            fit = [replica for replica in order if replica is not avoid] or order
            awake = [replica for replica in fit if replica.rests_until <= now]
            if awake:
                return min(awake, key=lambda replica: replica.busy)
            wake = min(replica.rests_until for replica in fit)
            if now >= until:
                return None
            await asyncio.sleep(max(0.001, min(wake, until) - now))

    async def _ask_scorer(self, replica: Replica, until: float) -> dict[str, Any]:
        import httpx

        url = f"{replica.url}/v1/scorer"
        try:  # takes no place: with few of them a replica that is silent would keep the others waiting
            response = await self.pools.clients[0].get(url, timeout=max(0.5, min(10.0, until - self._now())))
        except httpx.TransportError as error:
            raise EngineError(f"{url} cannot be reached ({error or type(error).__name__}); is `vlrm serve` running there?") from None
        except httpx.InvalidURL as error:
            raise InputError(f"{url} is not a URL ({error})") from None
        if response.status_code in (401, 403):
            raise InputError(f"{url} answers {response.status_code}; give token= or set VLRM_TOKEN to the server's token")
        if response.status_code == 404:
            raise InputError(f"{url} is not there: no reward server; for an OpenAI-compatible one leave `reward+` out of the URL")
        if response.status_code != 200:
            raise EngineError(f"{url} answers {response.status_code}: {server_words(response.text)}")
        try:
            answer = response.json()
            return {name: answer[name] for name in ("name", "fingerprint", "version", "search", "max_steps", "limits")}
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{url} does not answer as a reward server; is the URL right?") from None

    def _now(self) -> float:
        return asyncio.get_running_loop().time()


class _Mixed(Exception):
    """An answer that cannot be used."""


def _none(error: str, solutions: Sequence[str]) -> list[Score]:
    return [Score(None, error=error)] * len(solutions)


def ask_body(mapping: Mapping[str, Any]) -> bytes:
    """A request's body; made once, sent as often as needed."""
    return json.dumps(mapping, ensure_ascii=True, allow_nan=False).encode()
