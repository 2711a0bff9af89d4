"""Can the reward server be trusted? `python benchmarks/load.py --scorer runs/quickstart/gm_prm`

load: `--clients` clients at a real `vlrm serve` of a trained GM-PRM for `--seconds`, in rounds; after each round the very batches that the
server made are scored in process, so that the two are timed side by side. Each reply is held against the scorer's own value.
kills: the server is killed with signal 9 and started again `--kills` times under load; all requests end in right scores or counted Nones.
malformed: see load_malformed.py. Writes benchmarks/results/load.json when all three parts were run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from load_corpus import TOKEN
from load_malformed import memory, run_malformed
from result import claim, write_result

from vlrm import Problem, Sample, Score, load_engine, load_scorer
from vlrm.data_synth import WORLDS, make_problems
from vlrm.policy import sample_pool
from vlrm.rm.remote import RemoteScorer
from vlrm.serving.images import to_data_url
from vlrm.serving.reward_client import ask_body
from vlrm.serving.wire import digest, score_from_wire

CLOSE = 1e-3  # a score depends a little on the batch that it is made in


class Server:
    """`vlrm serve` on one port of the loopback, with one thread for the model."""

    def __init__(self, scorer: Path, folder: Path, threads: int):
        self.log, self.threads = folder / "server.log", threads
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [sys.executable, "-m", "vlrm", "serve", "--scorer", str(scorer), "--port", str(self.port), "--log_level", "warning"]
        self.run: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        env = os.environ | {"OMP_NUM_THREADS": str(self.threads), "VLRM_TOKEN": TOKEN}
        with self.log.open("ab") as log:
            self.run = subprocess.Popen(self.command, stdout=log, stderr=log, env=env)

    def wait(self, seconds: float = 600) -> None:
        until = time.time() + seconds
        while time.time() < until:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/ready", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=2).status_code == 200:
                    return
            if self.run is None or self.run.poll() is not None:
                raise SystemExit(self.log.read_text()[-2000:])
            time.sleep(0.2)
        raise SystemExit("the server did not come up")

    def end(self, number: int = signal.SIGTERM) -> int:
        assert self.run is not None
        self.run.send_signal(number)
        return self.run.wait(120)


def solutions_of(problems: Sequence[Problem], each: int, seed: int) -> list[list[Sample]]:
    """Different solutions of each problem, sampled from the built-in policy."""
    pools = sample_pool(problems, load_engine("tiny-policy"), n=each, seed=seed, temperature=0.8, max_tokens=160)
    return [[Sample(problem, candidate.text) for candidate in pool] for problem, pool in zip(problems, pools, strict=True)]


def same(score: Score, own: Score) -> bool:
    """Whether a score is the scorer's own, and not that of another sample."""
    if score.value is None or own.value is None:
        return score.value == own.value
    close = abs(score.value - own.value) <= CLOSE and len(score.steps) == len(own.steps)
    return close and all(abs(a - b) <= 20 * CLOSE for a, b in zip(score.steps, own.steps, strict=True))


async def clients(url: str, groups: Sequence[Sequence[Sample]], count: int, seconds: float, seed: int) -> list[tuple[Sample, Any]]:
    """`count` clients, each asking for one group after the other; (sample, its score on the wire or the fault) of all that they asked."""
    bodies = []
    for group in groups:
        problem = group[0].problem
        pictures = [to_data_url(image) for image in problem.images]
        bodies.append(ask_body({"question": problem.question, "images": pictures, "solutions": [sample.solution for sample in group]}))
    replies: list[tuple[Sample, Any]] = []
    until = time.perf_counter() + seconds

    async def client(http: httpx.AsyncClient, rng: random.Random) -> None:
        while time.perf_counter() < until:
            i = rng.randrange(len(groups))
            id = uuid.uuid4().hex
            headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json", "X-Request-ID": id}
            fault, records = "", [None] * len(groups[i])
            try:
                answer = await http.post(f"{url}/v1/score", content=bodies[i], headers=headers)
                content = answer.json()
                if answer.status_code != 200:
                    fault = f"{answer.status_code}: {content}"
                elif content["request_id"] != id or [r["digest"] for r in content["scores"]] != [digest(s.solution) for s in groups[i]]:
                    fault = "mixed up"
                else:
                    records = content["scores"]
            except (httpx.HTTPError, ValueError) as error:
                fault = repr(error)
            replies.extend(zip(groups[i], [fault or record for record in records], strict=True))

    async with httpx.AsyncClient(timeout=300, limits=httpx.Limits(max_connections=count)) as http:
        await asyncio.gather(*[client(http, random.Random(f"{seed}.{k}")) for k in range(count)])
    return replies


def measure_load(args: argparse.Namespace, groups: list[list[Sample]], scorer: Any, own: dict[int, Score], folder: Path) -> dict[str, Any]:
    server = Server(args.scorer, folder, args.threads)
    server.start()
    server.wait()
    assert server.run is not None
    asyncio.run(clients(server.url, groups, args.clients, 2.0, -1))  # connections, caches
    ratios, sizes, resident, found, worst = [], [], [], Counter[str](), 0.0
    for turn in range(args.rounds):
        started = time.perf_counter()
        replies = asyncio.run(clients(server.url, groups, args.clients, args.seconds / args.rounds, turn))
        served = len(replies) / (time.perf_counter() - started)
        resident.append(memory(server.run.pid))
        batches: dict[int, list[Sample]] = {}
        for sample, record in replies:
            if isinstance(record, str):
                found["mixed up" if record == "mixed up" else "lost"] += 1
                continue
            score = score_from_wire(record)
            found["right" if same(score, own[id(sample)]) else "wrong"] += 1
            worst = max(worst, abs((score.value or 0) - (own[id(sample)].value or 0)))
            batches.setdefault(record["batch"], []).append(sample)
        started, done = time.perf_counter(), 0
        for batch in batches.values():
            scorer(batch)
            done += len(batch)
        ratios.append(served / (done / (time.perf_counter() - started)))
        sizes += [len(batch) for batch in batches.values()]
        print(f"round {turn + 1}: {served:.1f} solutions/s, {ratios[-1]:.3f} of in process, {resident[-1]:.0f} MB", flush=True)
    ended = server.end()
    later = resident[len(resident) // 2 :]
    return {
        "part": "load", "clients": args.clients, "seconds": args.seconds, "solutions in a request": args.solutions,
        "solutions": sum(found.values()), **{name: found[name] for name in ("right", "wrong", "mixed up", "lost")},
        "largest difference": worst, "mean batch": round(statistics.mean(sizes), 1), "solutions/s": round(served, 1),
        "ratios": [round(ratio, 3) for ratio in ratios], "memory, MB": [round(mb) for mb in resident],
        "memory growth in the second half": round(later[-1] / later[0] - 1, 4), "exit code": ended,
    }  # fmt: skip


async def under_kills(
    scorer: RemoteScorer, groups: list[list[Sample]], own: dict[int, Score], count: int, ended: asyncio.Event
) -> Counter[str]:
    """What became of all that `count` clients asked until the load is ended."""
    found: Counter[str] = Counter()

    async def client(rng: random.Random) -> None:
        while not ended.is_set():
            group = rng.choice(groups)
            for sample, score in zip(group, await scorer.score_async(group), strict=True):
                missing = score.value is None and own[id(sample)].value is not None
                found["None" if missing and score.error else "right" if same(score, own[id(sample)]) else "wrong"] += 1

    await asyncio.gather(*[client(random.Random(k)) for k in range(count)])
    return found


def measure_kills(args: argparse.Namespace, groups: list[list[Sample]], own: dict[int, Score], folder: Path) -> dict[str, Any]:
    server, rng = Server(args.scorer, folder, args.threads), random.Random(args.seed)
    server.start()
    server.wait()
    remote = RemoteScorer(server.url, token=TOKEN, concurrency=args.clients, timeout=args.patience, backoff=0.1)
    unscored_here = sum(score.value is None for score in own.values())
    kills = 0

    async def everything() -> Counter[str]:
        nonlocal kills
        ended = asyncio.Event()
        load = asyncio.create_task(under_kills(remote, groups, own, args.clients, ended))
        for _ in range(args.kills):
            await asyncio.sleep(rng.uniform(2, 6))
            kills += await asyncio.to_thread(server.end, signal.SIGKILL) == -signal.SIGKILL
            server.start()
            await asyncio.to_thread(server.wait)
            print(f"kill {kills}", flush=True)
        await asyncio.sleep(3)
        ended.set()
        return await load

    found = asyncio.run(everything())
    server.end()
    counts = dict(remote.counts)
    return {
        "part": "kills", "kills": kills, "solutions": sum(found.values()), **{name: found[name] for name in ("right", "None", "wrong")},
        "None as the client counts": counts["unscored"] if not unscored_here else None, "client": counts,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", type=Path, default=Path("runs/quickstart/gm_prm"))
    parser.add_argument("--parts", nargs="+", choices=["load", "kills", "malformed"], default=["load", "kills", "malformed"])
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180.0, help="of load, all rounds together")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--problems", type=int, default=48)
    parser.add_argument("--solutions", type=int, default=4, help="in each request")
    parser.add_argument("--threads", type=int, default=1, help="of the model, in the server and in process")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--patience", type=float, default=300.0, help="seconds in which a score must be had while the server is killed")
    parser.add_argument("--malformed", type=int, default=10_000)
    parser.add_argument("--schemathesis", help="its command, where it is not on the PATH")
    parser.add_argument("--examples", type=int, default=100, help="of schemathesis for each route")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows, claims = [], []
    if {"load", "kills"} & set(args.parts):
        import torch

        torch.set_num_threads(args.threads)
        with tempfile.TemporaryDirectory() as scratch:
            problems = make_problems(list(WORLDS), "test", args.problems, args.seed, scratch)
            groups = solutions_of(problems, args.solutions, args.seed)
            samples = [sample for group in groups for sample in group]
            scorer = load_scorer(args.scorer)
            own = {id(sample): score for sample, score in zip(samples, scorer(samples), strict=True)}
            if "load" in args.parts:
                rows.append(row := measure_load(args, groups, scorer, own, Path(scratch)))
                middle = statistics.median(row["ratios"])
                spread = f"{middle:.3f} ({min(row['ratios']):.3f} to {max(row['ratios']):.3f}, {args.rounds} rounds)"
                faults = row["wrong"] + row["mixed up"] + row["lost"]
                growth = row["memory growth in the second half"]
                claims += [
                    claim(f"replies lost, mixed up or wrong, of {row['solutions']:,}", "0", faults, not faults and row["solutions"] > 0),
                    claim("solutions per second, server / in process with the same batches", ">= 0.9", spread, middle >= 0.9),
                    claim("memory growth over the second half of the load", "<= 0.03", growth, growth <= 0.03),
                ]
            if "kills" in args.parts:
                rows.append(row := measure_kills(args, groups, own, Path(scratch)))
                counted = row["None as the client counts"] in (row["None"], None)
                claims += [
                    claim("kills with signal 9 under load", f">= {args.kills}", row["kills"], row["kills"] >= args.kills),
                    claim(f"wrong scores of {row['solutions']:,} asked for across the kills", "0", row["wrong"], not row["wrong"]),
                    claim("solutions without a score that the client did not count", "0", 0 if counted else "some", counted),
                ]
    if "malformed" in args.parts:
        rows.append(row := run_malformed(args.malformed, args.seed, args.schemathesis, args.examples))
        touched = row["files opened"] + row["addresses asked"] + row["programs started"]
        calm = row["alive and right afterwards"] and not row["tracebacks"] and not row["no answer"]
        claims += [
            claim("malformed requests refused", f">= {args.malformed:,}", row["refused"], row["refused"] >= args.malformed),
            claim("answers of 5xx, all requests", "0", row["5xx"], row["5xx"] == 0),
            claim("files, addresses and programs touched", "0", touched, touched == 0),
            claim("crashes, tracebacks and requests without an answer", "none", "none" if calm else "some", calm),
            claim("schemathesis on the OpenAPI page", "no fault", row["schemathesis"], row["schemathesis"] == "no fault"),
        ]
    for row in [*rows, *claims]:
        print(row)
    if set(args.parts) == {"load", "kills", "malformed"}:
        command = f"python benchmarks/load.py --scorer DIR --clients {args.clients} --seconds {args.seconds:g}"
        n = sum(row.get("solutions", row.get("refused", 0)) for row in rows)
        write_result("load", command, [args.seed], n, rows, claims)


if __name__ == "__main__":
    main()
