"""Is anything lost when labelling is killed, or cut in parts? `python benchmarks/interrupted_labels.py --kills 5`

Real processes: `vlrm synth labels` without a disturbance; again with `kill -9` at random moments, until it ends by itself; and once more in
three shards made by three processes at the same time, one of them killed, put together by `vlrm synth merge`. Files and reports must be
equal byte for byte, and no finished batch of rollouts may be asked for twice. Writes benchmarks/results/interrupted_labels.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from result import claim, write_result

from vlrm.data_synth import WORLDS, make_problems

SHARDS = 3


class Journals:
    """All journals that a folder ever has. Labelling removes a journal with its chunk, so each gets a second name when it is seen, under
    which everything that is appended to it stays readable."""

    def __init__(self, folder: Path):
        self.folder, self.kept, self.over = folder, folder / "journals", threading.Event()
        self.kept.mkdir(parents=True)
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self.over.wait(0.02):
            for path in self.folder.glob("*.calls"):
                try:
                    name = self.kept / f"{path.name}-{path.stat().st_ino}"
                    if not name.exists():
                        os.link(path, name)
                except FileNotFoundError:
                    continue

    def count(self, shard: str = "") -> int:
        """How many batches are finished."""
        return sum(path.read_bytes().count(b"\n") for path in self.kept.iterdir() if shard in path.name)

    def batches(self, shard: str = "") -> list[dict[str, Any]]:
        """All finished batches, those of one shard's file if it is named; a last line that a kill cut off is none."""
        found = []
        for path in sorted(path for path in self.kept.iterdir() if shard in path.name):
            found += [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]
        return found


def start(args: argparse.Namespace, problems: Path, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vlrm", "synth", "labels", "--problems", str(problems), "--policy", args.policy]
    command += ["--output", str(folder / "labels.jsonl"), "--method", args.method, "--samples", str(args.samples), "--k", str(args.k)]
    command += ["--max_tokens", "160", "--chunk", str(args.chunk), "--batch", str(args.batch), "--seed", str(args.seed), *more]
    log = (folder / f"log{''.join(more[1:]).replace('/', '-')}").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def ended(process: subprocess.Popen[bytes], folder: Path) -> None:
    if process.wait() != 0:
        raise SystemExit("\n".join(path.read_text()[-2000:] for path in folder.glob("log*")))


def kill_at_work(process: subprocess.Popen[bytes], journals: Journals, longest: float, rng: random.Random, shard: str = "") -> bool:
    """Kills a process up to `longest` seconds after it has finished its first batch of its own; False if it had ended by then."""
    before = journals.count(shard)
    while journals.count(shard) == before and process.poll() is None:
        time.sleep(0.1)
    time.sleep(rng.uniform(0, longest))
    if process.poll() is not None:
        return False
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return True


def state(name: str, journals: Journals, killed: bool | None = None) -> dict[str, Any]:
    """Where a run stands: what it has finished so far, all its processes together."""
    batches = journals.batches()
    parts = [path.read_text().count("\n") - 1 for path in journals.folder.glob("*.part")]
    done = {"finished batches": len(batches), "sequences in them": sequences(batches), "finished chunks": sum(parts) if parts else None}
    return {"run": name, "killed": killed, **done}


def sequences(batches: Sequence[dict[str, Any]]) -> int:
    return sum(len(group) for batch in batches for group in batch["completions"])


def asked_again(batches: Sequence[dict[str, Any]], quiet: Sequence[dict[str, Any]]) -> int:
    """Sequences of finished batches that were asked for more often than in the quiet run."""
    sizes = {(batch["unit"], batch["key"]): sequences([batch]) for batch in batches}
    asked, once = (Counter((batch["unit"], batch["key"]) for batch in some) for some in (batches, quiet))
    return sum(sizes[name] * max(0, count - once[name]) for name, count in asked.items())


def contents(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "labels.jsonl").read_bytes(), (folder / "labels.jsonl.report.json").read_bytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="tiny-policy")
    parser.add_argument("--method", default="flat", choices=["flat", "binary", "omega"])
    parser.add_argument("--problems", type=int, default=24)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="folder for the result; else the repository's")
    args = parser.parse_args()
    rng, rows = random.Random(args.seed), []
    with tempfile.TemporaryDirectory() as scratch:
        homes = {name: Path(scratch) / name for name in ("quiet", "killed", "split")}
        journals = {name: Journals(home) for name, home in homes.items()}
        make_problems(list(WORLDS), "test", args.problems, args.seed, Path(scratch) / "problems")
        problems = Path(scratch) / "problems" / "problems.jsonl"

        run = start(args, problems, homes["quiet"])
        while not journals["quiet"].count() and run.poll() is None:
            time.sleep(0.1)
        began = time.perf_counter()
        ended(run, homes["quiet"])
        work = time.perf_counter() - began
        quiet = journals["quiet"].batches()
        rows.append(state("quiet", journals["quiet"]))

        hits = 0
        for number in range(1, args.kills + 1):
            hit = kill_at_work(start(args, problems, homes["killed"]), journals["killed"], work / (args.kills + 2), rng)
            hits += hit
            rows.append(state(f"killed, time {number}", journals["killed"], hit))
        ended(start(args, problems, homes["killed"]), homes["killed"])
        killed = journals["killed"].batches()
        rows.append(state("killed, to the end", journals["killed"]))

        def shard(index: int) -> subprocess.Popen[bytes]:
            return start(args, problems, homes["split"], "--shard", f"{index}/{SHARDS}")

        runs = [shard(index) for index in range(1, SHARDS + 1)]
        cut = kill_at_work(runs[1], journals["split"], work / (SHARDS + 1), rng, f"-2-of-{SHARDS}")
        rows.append(state(f"split, shard 2 of {SHARDS} killed", journals["split"], cut))
        for run in [runs[0], shard(2), *runs[2:]]:
            ended(run, homes["split"])
        merge = [sys.executable, "-m", "vlrm", "synth", "merge", "--output", str(homes["split"] / "labels.jsonl")]
        subprocess.run(merge, check=True, stdout=subprocess.DEVNULL)
        split = journals["split"].batches()
        rows.append(state("split, merged", journals["split"]))
        for watcher in journals.values():
            watcher.over.set()
        same = {name: contents(homes[name]) == contents(homes["quiet"]) for name in ("killed", "split")}
        records = contents(homes["quiet"])[0].count(b"\n")
    repeated = {"killed": asked_again(killed, quiet), "split": asked_again(split, quiet)}
    equal = len(killed) == len(split) == len(quiet)
    claims = [
        claim("kills with signal 9 while it labels", f">= {args.kills}", hits, hits >= args.kills),
        claim("kills with signal 9 of one of three shards", "1", int(cut), cut),
        claim(f"killed run equals the quiet one ({records} records), byte for byte", "yes", same["killed"], same["killed"]),
        claim("merged shards equal the quiet run, byte for byte", "yes", same["split"], same["split"]),
        claim("finished rollouts asked for again, killed run", "0", repeated["killed"], repeated["killed"] == 0),
        claim("finished rollouts asked for again, shards", "0", repeated["split"], repeated["split"] == 0),
        claim("finished batches of the quiet, the killed and the split run", "equal", f"{len(quiet)}, {len(killed)}, {len(split)}", equal),
    ]
    command = f"python benchmarks/interrupted_labels.py --kills {args.kills}"
    options = {} if args.folder is None else {"folder": args.folder}
    write_result("interrupted_labels", command, [args.seed], args.problems, rows, claims, **options)
    for row in rows + claims:
        print(row)


if __name__ == "__main__":
    main()
