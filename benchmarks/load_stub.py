"""A reward server with a scorer that costs nothing, for `load_malformed.py`: everything is real but the model.

It tells which files were opened and which addresses were asked while it served: what Python opens for its own modules, and the
process's own figures in /proc, are left out.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import vlrm
from vlrm.serving.limits import Limits
from vlrm.serving.reward_server import RewardServer
from vlrm.serving.run_server import leave, log_to_stderr, run_server
from vlrm.types import Score, Usage

WATCHED = ("open", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system", "os.exec", "os.listdir")


class Stub:
    usage = Usage()

    def __call__(self, samples: Any) -> list[Score]:
        self.usage = self.usage + Usage(len(samples), 0, len(samples))
        return [Score(zlib.crc32(sample.solution.encode()) / 2**32) for sample in samples]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--token", required=True)
    parser.add_argument("--seen", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    package = Path(vlrm.__file__)
    own = (sys.prefix, sys.base_prefix, str(package.parent), str(package.resolve().parent), "/proc/self", "/proc/stat")
    log = args.seen.open("a", buffering=1)
    watching = False

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if not watching or event not in WATCHED:
            return
        what = str(arguments[0] if event != "socket.connect" else arguments[1])
        if event in ("open", "os.listdir") and (what.startswith(own) or isinstance(arguments[0], int)):
            return
        log.write(json.dumps([event, what[:200]]) + "\n")

    def started(url: str) -> None:
        nonlocal watching
        print(url, flush=True)
        watching = True

    import PIL.Image

    PIL.Image.init()
    sys.addaudithook(watch)
    log_to_stderr("warning")
    limits = Limits(body=1 << 20, image_bytes=1 << 19, image_pixels=1_000_000, solutions=16, text=10_000)
    server = RewardServer(Stub(), tokens=[args.token], limits=limits, search=lambda problems: [{"answer": p.question} for p in problems])
    run_server(server, port=args.port, drain_seconds=10, started=started)
    watching = False
    leave()


if __name__ == "__main__":
    main()
