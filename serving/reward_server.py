"""The reward server: any scorer behind HTTP. `vlrm serve FOLDER` runs it, `vlrm.load_scorer("reward+http://host:port")` is its client.

    POST /v1/score     {"question", "images", "solutions"} -> one score for each solution, `null` where there is none, and why
    POST /v1/critique  the same request -> what the scorer says of every step, and the corrected step
    POST /v1/search    {"question", "images"} -> a search's result, where the server has a policy
    GET  /v1/scorer /health /ready /metrics /openapi.json

Requests of all clients are scored together in batches. A retry with the same X-Request-ID is not computed again. The header
X-Timeout says how many seconds the client waits; then what is scored is answered, the rest as null. Pictures come as base64.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .. import __version__
from ..types import EngineError, InputError, Problem, Sample, Score, Scorer, Usage
from .apart import score_apart
from .batching import Batcher, Full, Worker
from .desk import Desk, Gone, refused_by_all
from .fetch import Sources
from .guard import Guard, Refused, error_body, too_large
from .intake import Intake
from .limits import Limits
from .schemas import CritiqueReply, Error, ScoreAsk, ScoreReply, ScorerOut, SearchAsk, SearchReply, Status, _Ask, parse_ask
from .telemetry import Telemetry
from .wire import checked, plain, score_to_wire, shares

Search = Callable[[Sequence[Problem]], Sequence[dict[str, Any]]]
PATIENCE = re.compile(r"\d{1,6}(\.\d{1,6})?")
REFUSALS = {
    400: "a header is wrong", 401: "no token, or a wrong one", 404: "this server does not offer that", 408: "the body did not arrive",
    409: "the request id belongs to another request", 413: "the body is too large", 415: "the body is not plain JSON",
    422: "the request must be changed", 429: "the queue is full; Retry-After says when to ask again",
    503: "the server is ending, or its engine fails; Retry-After says when to ask again",
}  # fmt: skip
HEADERS = [
    {"name": "X-Request-ID", "in": "header", "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,64}$"},
     "description": "a retry with the same id and body is not computed again"},
    {"name": "X-Timeout", "in": "header", "schema": {"type": "string", "pattern": r"^\d{1,6}(\.\d{1,6})?$"},
     "description": "seconds that the client waits"},
]  # fmt: skip


class RewardServer:
    """A scorer's queue, its telemetry and, as `app`, its ASGI application. `draining` True refuses new work and finishes the old."""

    def __init__(
        self,
        scorer: Scorer,
        *,
        name: str = "scorer",
        fingerprint: str = "",
        tokens: Collection[str] = (),
        open_health: bool = False,
        limits: Limits | None = None,
        sources: Sources | None = None,
        search: Search | None = None,
    ):
        self.scorer, self.name, self.fingerprint, self.search = scorer, name, fingerprint or name, search
        self.limits, self.telemetry, self.draining = limits or Limits(), Telemetry(), False
        self.sources = sources
        self.batchers: list[Batcher] = []
        open_paths = ("/health", "/ready") if open_health else ()
        self.app = Guard(_routes(self), tokens, open_paths, self.limits.body, self.telemetry)

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        """The queues work while the application lives."""
        limits, worker, intake = self.limits, Worker(), Intake(self.limits, self.sources)
        kinds: dict[str, tuple[Callable[..., Any], int, int]] = {"score": (self._judge, limits.batch, limits.waiting)}
        if self.search:
            kinds["search"] = (self.search, max(1, limits.batch // 8), max(1, limits.waiting // 8))
        self.desks = {}
        for kind, (work, batch, waiting) in kinds.items():
            observe = self.telemetry.batch(kind)
            batcher = Batcher(work, worker, max_batch=batch, max_wait=limits.wait, max_waiting=waiting, observe=observe)
            self.desks[kind] = Desk(batcher, intake, limits, self.telemetry)
        self.batchers = [desk.batcher for desk in self.desks.values()]
        score = self.desks["score"]
        self.telemetry.gauge("vlrm_waiting", "Solutions in the queue", lambda: score.batcher.waiting)
        self.telemetry.gauge("vlrm_waiting_pixels", "Pixels of the pictures of open requests", lambda: intake.pixels)
        self.telemetry.gauge("vlrm_remembered", "Scores kept for retries", lambda: score.kept)
        tasks = [asyncio.create_task(batcher.run()) for batcher in self.batchers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            intake.threads.shutdown(wait=False, cancel_futures=True)

    def stuck(self) -> bool:
        """Whether a batch takes longer than it may."""
        now = asyncio.get_running_loop().time()
        return any(batcher.busy_since is not None and now - batcher.busy_since > self.limits.stuck_seconds for batcher in self.batchers)

    def _judge(self, samples: Sequence[Sample]) -> list[Any]:
        """In the scorer's thread: for each sample (score, what it cost), or the InputError it causes. An engine that fails fails all."""
        before = self.scorer.usage
        try:
            outcomes = score_apart(self.scorer, samples, catch=Exception)
        except EngineError as error:
            return [error] * len(samples)
        finally:
            spent = self.scorer.usage - before
            self.telemetry.spent(spent)
        costs = shares(spent, len(samples))
        return [
            outcome if isinstance(outcome, InputError) else (self._usable(outcome), cost)
            for outcome, cost in zip(outcomes, costs, strict=True)
        ]

    def _usable(self, outcome: Any) -> Score:
        if isinstance(outcome, Exception):
            return Score(None, error=f"the scorer failed: {type(outcome).__name__}: {' '.join(str(outcome).split())[:200]}")
        return checked(outcome)

    async def ask(self, request: Request, kind: str, schema: type[_Ask]) -> tuple[Any, list[tuple[Any, int | None]], float]:
        """The parsed request, the outcome of each of its items, and the seconds that it had."""
        if self.draining:
            raise Refused(503, "this server is ending; ask another one, or again later", {"Retry-After": "1", "Connection": "close"})
        given = request.headers.get("x-timeout")
        if given is not None and (not PATIENCE.fullmatch(given) or not float(given)):
            raise Refused(400, "X-Timeout must be a number of seconds above 0, such as 30 or 2.5")
        seconds = min(float(given or self.limits.seconds), self.limits.seconds)
        body = await self._body(request)
        ask: Any = await asyncio.to_thread(parse_ask, schema, body) if len(body) > 65536 else parse_ask(schema, body)
        count = self._check(ask)
        id, named = request.state.request_id, request.state.named
        desk = self.desks[kind]
        gone = asyncio.ensure_future(_gone(request))
        try:
            outcomes = await desk.ask(id if named else None, body, ask.images, count, lambda images: _items(ask, id, images), seconds, gone)
        except Full:
            self.telemetry.full.inc()
            raise
        finally:
            gone.cancel()
        if error := refused_by_all(outcomes):
            raise error
        if error := next((outcome for outcome, _ in outcomes if isinstance(outcome, EngineError)), None):
            raise error
        return ask, outcomes, seconds

    async def scores(self, request: Request) -> tuple[ScoreAsk, list[dict[str, Any]]]:
        """The request and a score on the wire for each of its solutions."""
        ask, outcomes, seconds = await self.ask(request, "score", ScoreAsk)
        wired = []
        for solution, (outcome, batch) in zip(ask.solutions, outcomes, strict=True):
            if outcome is None:
                self.telemetry.unscored.labels("deadline").inc()
                wired.append(score_to_wire(Score(None, error=f"not scored within {seconds:g} s"), solution))
            elif isinstance(outcome, Exception):
                self.telemetry.unscored.labels("refused").inc()
                wired.append(score_to_wire(Score(None, error=" ".join(str(outcome).split())), solution, batch=batch))
            else:
                score, cost = outcome
                (self.telemetry.unscored.labels("scorer") if score.value is None else self.telemetry.scored).inc()
                own = score.details.get("usage")
                wired.append(score_to_wire(score, solution, own if isinstance(own, Usage) else cost, batch))
        return ask, wired

    async def _body(self, request: Request) -> bytes:
        """The body, which must arrive in time and within the limit; nothing is parsed yet."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "send the header Content-Type: application/json, and a JSON body")
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise Refused(415, "send the body as it is, without Content-Encoding")
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > self.limits.body:
                        raise Refused(413, too_large(self.limits.body))
        except TimeoutError:
            raise Refused(408, f"the body did not arrive within {self.limits.read_seconds:g} s", {"Connection": "close"}) from None
        return bytes(body)

    def _check(self, ask: Any) -> int:
        solutions = getattr(ask, "solutions", [])
        if len(solutions) > self.limits.solutions:
            raise InputError(f"solutions: {len(solutions)} are more than the limit of {self.limits.solutions}; send them in parts")
        for name, text in [("question", ask.question), *((f"solutions[{i}]", text) for i, text in enumerate(solutions))]:
            if len(text) > self.limits.text:
                raise InputError(f"{name}: {len(text):,} characters are more than the limit of {self.limits.text:,}; shorten it")
        return len(solutions) or 1


def _items(ask: Any, id: str, images: list[Any]) -> list[Any]:
    problem = Problem(ask.id or id, ask.question, images, ask.answer, ask.meta)
    return [Sample(problem, solution) for solution in ask.solutions] if isinstance(ask, ScoreAsk) else [problem]


async def _gone(request: Request) -> None:
    """Ends when the client goes away."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: Any, status: int = 200) -> Response:
    return Response(json.dumps(content, allow_nan=False), status, media_type="application/json")


def _routes(server: RewardServer) -> FastAPI:
    app = FastAPI(title="vlrm reward server", version=__version__, lifespan=server.running, docs_url=None, redoc_url=None)
    refusals: dict[int | str, dict[str, Any]] = {status: {"model": Error, "description": why} for status, why in REFUSALS.items()}
    plain_refusals = {status: refusals[status] for status in (400, 401, 404, 413)}

    def post(path: str, ask: type[_Ask], reply: Any) -> Any:
        content = {"application/json": {"schema": ask.model_json_schema()}}
        extra = {"requestBody": {"required": True, "content": content}, "parameters": HEADERS}
        return app.post(path, openapi_extra=extra, responses={200: {"model": reply}, **refusals})

    @post("/v1/score", ScoreAsk, ScoreReply)
    async def score(request: Request) -> Response:
        """One score for each solution of a problem."""
        _, scores = await server.scores(request)
        return _json({"request_id": request.state.request_id, "scorer": server.fingerprint, "scores": scores})

    @post("/v1/critique", ScoreAsk, CritiqueReply)
    async def critique(request: Request) -> Response:
        """What the scorer says of every step of each solution, and what should stand in place of the first wrong one."""
        _, scores = await server.scores(request)
        if not any(score["verdicts"] or score["error"] for score in scores):
            raise Refused(404, f"the scorer {server.name} judges no steps; ask /v1/score")
        critiques = [
            {"value": s["value"], "steps": s["verdicts"], "first_error": s["first_error"], "correction": s["correction"],
             "text": s["details"].get("critique"), "error": s["error"]} for s in scores
        ]  # fmt: skip
        return _json({"request_id": request.state.request_id, "scorer": server.fingerprint, "critiques": critiques})

    @post("/v1/search", SearchAsk, SearchReply)
    async def search(request: Request) -> Response:
        """Searches a problem with the server's policy and scorer."""
        if server.search is None:
            raise Refused(404, "this server has no policy to search with; start it with --policy, or ask /v1/score")
        _, outcomes, seconds = await server.ask(request, "search", SearchAsk)
        outcome = outcomes[0][0]
        if outcome is None:
            raise Refused(408, f"not searched within {seconds:g} s; raise X-Timeout")
        if isinstance(outcome, Exception):
            raise EngineError(f"the search failed: {type(outcome).__name__}: {str(outcome)[:200]}")
        return _json({"request_id": request.state.request_id, "result": plain(outcome)})

    @app.get("/v1/scorer", response_model=ScorerOut, responses=plain_refusals)
    async def scorer() -> Response:
        """Which scorer this is, and what the server takes."""
        limits = server.limits
        return _json({
            "name": server.name, "fingerprint": server.fingerprint, "version": __version__, "search": server.search is not None,
            "max_steps": getattr(server.scorer, "max_steps", None),
            "limits": {name: getattr(limits, name) for name in ("body", "images", "image_bytes", "image_pixels", "solutions", "text")},
        })  # fmt: skip

    @app.get("/health", response_model=Status, responses=plain_refusals)
    async def health() -> Response:
        """The process answers."""
        return _json({"status": "ok"})

    @app.get("/ready", response_model=Status, responses={**plain_refusals, 503: refusals[503]})
    async def ready() -> Response:
        """Whether new work may come."""
        if server.draining or server.stuck():
            raise Refused(503, "ending" if server.draining else "a batch takes longer than it may", {"Retry-After": "1"})
        return _json({"status": "ready"})

    @app.get("/metrics", response_class=Response, responses=plain_refusals)
    async def metrics() -> Response:
        """Counts and times, in the text format of Prometheus."""
        return Response(server.telemetry.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _errors(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


def _errors(app: FastAPI) -> None:
    """Every exception as its status and one line."""

    def handler(status: int, headers: Callable[[Any], dict[str, str]] = lambda error: {}) -> Any:
        async def answer(request: Request, error: Any) -> Response:
            body = error_body(str(error), request.state.request_id)
            return Response(body, getattr(error, "status", status), headers(error), media_type="application/json")

        return answer

    async def no_route(request: Request, error: HTTPException) -> Response:
        known = ", ".join(sorted({getattr(route, "path", "") for route in app.routes} - {""}))
        message = f"{error.detail}; there are {known}" if error.status_code == 404 else str(error.detail)
        return Response(error_body(message, request.state.request_id), error.status_code, error.headers, media_type="application/json")

    async def went_away(request: Request, error: Gone) -> Response:
        return Response(status_code=499)  # nobody reads it; the log does

    app.add_exception_handler(Refused, handler(400, lambda error: error.headers))
    app.add_exception_handler(InputError, handler(422))
    app.add_exception_handler(Full, handler(429, lambda error: {"Retry-After": str(math.ceil(error.wait))}))
    app.add_exception_handler(EngineError, handler(503, lambda error: {"Retry-After": "2"}))
    app.add_exception_handler(HTTPException, no_route)  # type: ignore[arg-type]
    app.add_exception_handler(Gone, went_away)  # type: ignore[arg-type]
    app.add_exception_handler(ClientDisconnect, went_away)  # type: ignore[arg-type]


def _openapi(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI page, with the token as what every route asks for."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes, description=__doc__)
        schema.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        app.openapi_schema = schema
    return app.openapi_schema
