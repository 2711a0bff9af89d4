"""Thousands of malformed requests at a real reward server: `python benchmarks/load.py --parts malformed`

A seeded corpus of broken JSON, wrong fields, damaged pictures, decompression bombs, huge bodies, paths and addresses where a picture
belongs, strange HTTP; and schemathesis on the server's OpenAPI page where it is installed. Counted by the server's own metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
from load_corpus import RAW, TOKEN, malformed
from PIL import Image


def raw_statuses(port: int, times: int) -> Counter[str]:
    """What the server answers to bytes that are hardly HTTP: the status, or "closed"."""
    found: Counter[str] = Counter()
    for i in range(times):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as raw, contextlib.suppress(OSError):
            answer = b""
            raw.sendall(RAW[i % len(RAW)])
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                answer = raw.recv(100)
            found[answer.split(b" ")[1].decode() if answer.startswith(b"HTTP/1.1 ") else "closed"] += 1
    return found


@contextlib.contextmanager
def canary() -> Iterator[tuple[int, list[Any]]]:
    """A port on the loopback that nobody may call; the list of those who did."""
    calls: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def listen() -> None:
            with contextlib.suppress(OSError):
                while True:
                    calls.append(listening.accept()[1])

        threading.Thread(target=listen, daemon=True).start()
        yield listening.getsockname()[1], calls


async def send_all(url: str, wanted: int, seed: int, file: str, port: int, say: Callable[[int], None]) -> tuple[Counter[int], int]:
    """Sends until `wanted` requests were refused. Returns the statuses, and how many got no answer."""
    rng, statuses, lost = random.Random(seed), Counter[int](), 0

    async def worker(http: httpx.AsyncClient) -> None:
        nonlocal lost
        while sum(count for status, count in statuses.items() if status >= 400) < wanted:
            method, path, headers, body = malformed(rng, file, port)
            try:
                answer = await http.request(method, url + path, headers=headers, content=body)
            except httpx.TransportError:
                lost += 1
                continue
            except (httpx.InvalidURL, httpx.LocalProtocolError, ValueError):
                continue  # our own library does not send it
            statuses[answer.status_code] += 1
            if answer.status_code >= 400 and method != "HEAD":
                message = answer.json()["error"]["message"]
                if not message or "\n" in message:
                    raise AssertionError(f"{answer.status_code} without one clear line: {answer.text[:300]}")
            if sum(statuses.values()) % 1000 == 0:
                say(sum(statuses.values()))

    async with httpx.AsyncClient(timeout=60) as http:
        await asyncio.gather(*[worker(http) for _ in range(16)])
    return statuses, lost


def served_statuses(url: str) -> Counter[str]:
    """By the server's own count."""
    page = httpx.get(f"{url}/metrics", headers={"authorization": f"Bearer {TOKEN}"}).text
    found: Counter[str] = Counter()
    for status, count in re.findall(r'vlrm_requests_total\{route="[^"]*",status="(\w+)"\} ([\d.]+)', page):
        found[status] += int(float(count))
    return found


def run_schemathesis(command: str | None, url: str, examples: int, seed: int) -> bool | None:
    """Whether schemathesis found no fault in the statuses; None where it is not installed."""
    command = command or shutil.which("schemathesis")
    if command is None:
        return None
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    options = ["--checks", checks, "--max-examples", str(examples), "--seed", str(seed), "--header", f"Authorization: Bearer {TOKEN}"]
    options += ["--phases", "examples,coverage,fuzzing", "--generation-deterministic", "--no-color"]
    done = subprocess.run([command, "run", f"{url}/openapi.json", *options], capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:])
    return done.returncode == 0


def run_malformed(wanted: int, seed: int, schemathesis: str | None, examples: int) -> dict[str, Any]:
    """Everything that was seen, as one row of the result."""
    with tempfile.TemporaryDirectory() as folder, canary() as (port, calls):
        secret, seen, log = Path(folder) / "secret.png", Path(folder) / "seen.jsonl", Path(folder) / "log"
        Image.new("RGB", (4, 4), "red").save(secret)
        command = [sys.executable, str(Path(__file__).parent / "load_stub.py"), "--token", TOKEN, "--seen", str(seen)]
        with log.open("w") as errors:
            run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert run.stdout is not None
            url = run.stdout.readline().strip()
            if not url:
                raise SystemExit(log.read_text()[-2000:])
            before = memory(run.pid)
            statuses, lost = asyncio.run(send_all(url, wanted, seed, str(secret), port, lambda n: print(f"{n:,} sent", flush=True)))
            raw = raw_statuses(int(url.rsplit(":", 1)[1]), 50)
            fine = run_schemathesis(schemathesis, url, examples, seed)
            ask, token = {"question": "q", "solutions": ["fine"]}, {"authorization": f"Bearer {TOKEN}"}
            good = httpx.post(f"{url}/v1/score", json=ask, headers=token)
            right = good.status_code == 200 and good.json()["scores"][0]["value"] == zlib.crc32(b"fine") / 2**32
            counted, alive, after = served_statuses(url), run.poll() is None, memory(run.pid)
            run.send_signal(signal.SIGTERM)
            ended = run.wait(60) == 0
        finally:
            run.kill()
        doings = Counter(tuple(json.loads(line)) for line in seen.read_text().splitlines())
        if tracebacks := log.read_text().count("Traceback"):
            print(log.read_text()[:6000])
    return {
        "part": "malformed",
        "refused": sum(count for status, count in statuses.items() if status >= 400),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "hardly HTTP": dict(raw),
        "statuses, all, as the server counts": dict(sorted(counted.items())),
        "5xx": sum(count for status, count in [*counted.items(), *raw.items()] if status.startswith("5")),
        "no answer": lost,
        "files opened": sum(count for (event, _), count in doings.items() if event in ("open", "os.listdir")),
        "addresses asked": sum(count for (event, _), count in doings.items() if event.startswith("socket")) + len(calls),
        "programs started": sum(count for (event, _), count in doings.items() if event.startswith(("os.sys", "os.exec", "subprocess"))),
        "seen": [" ".join(doing) for doing in list(doings)[:10]],
        "tracebacks": tracebacks,
        "alive and right afterwards": alive and right and ended,
        "schemathesis": "not installed" if fine is None else "no fault" if fine else "faults",
        "memory before, MB": round(before),
        "memory after, MB": round(after),
    }


def memory(pid: int) -> float:
    """Resident memory in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
