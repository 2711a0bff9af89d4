"""Is anything lost when the quickstart is killed? `python benchmarks/interrupted.py --kills 10`

Runs a small quickstart without a disturbance, then again in another folder with `kill -9` at random moments, one in every
stage at least, until it ends by itself. Every figure of the two `results.json` must be equal but for the seconds, and no
finished file may be made again. Writes benchmarks/results/interrupted.json.
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
import time
from pathlib import Path
from typing import Any

from result import claim, write_result

SMALL = ["--problems", "96", "--train_problems", "1400", "--replay", "60", "--seed", "5"]  # some 130 training steps: one checkpoint

SAVED = "training, after a checkpoint"
LONGEST = {"problems": 0.1, SAVED: 25, "report": 0.5}  # seconds into a stage; 12 in the others
PLAN = ["problems", "step data", "step data", "training", SAVED, SAVED, "search", "search", "search", "report"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "vlrm", "quickstart", "--out", str(folder), *SMALL]
    log = (folder.parent / f"{folder.name}.log").open("ab")
    return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


def stage_of(folder: Path) -> str:
    """What a run is at, by the files that it has finished."""
    if not (folder / "problems" / "problems.jsonl").exists():
        return "problems"
    if not (folder / "train" / "records.jsonl").exists():
        return "step data"
    if not (folder / "gm_prm" / "vlrm.json").exists():
        return SAVED if any((folder / "gm_prm" / "checkpoints").glob("checkpoint-*/trainer_state.json")) else "training"
    return "report" if len(list((folder / "arms").glob("self_critic-*"))) == 2 else "search"


def begun(folder: Path, stage: str) -> bool:
    """Whether the first files of the quick stage `problems` are there; the others begin with the end of the one before."""
    return stage != "problems" or (folder / "problems" / "images").exists()


def finished(folder: Path) -> dict[str, int]:
    """Finished files and the time they were written."""
    files = [folder / "problems" / "problems.jsonl", folder / "train" / "records.jsonl", folder / "gm_prm" / "model.safetensors"]
    files += (folder / "arms").glob("*.jsonl")
    return {str(path): path.stat().st_mtime_ns for path in files if path.exists()}


def without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_seconds(item) for key, item in value.items() if key not in ("seconds", "stages")}
    return [without_seconds(item) for item in value] if isinstance(value, list) else value


def kill_in(folder: Path, stage: str, rng: random.Random) -> str | None:
    """Starts the run, kills it a random moment after it has come to `stage`; None if it ended before."""
    run = start(folder)
    while (stage_of(folder) != stage or not begun(folder, stage)) and run.poll() is None:
        time.sleep(0.002)
    time.sleep(rng.uniform(0, LONGEST.get(stage, 12)))
    if run.poll() is not None:
        return None
    reached = stage_of(folder)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    plan = PLAN[: args.kills]
    rows, remade = [], []
    with tempfile.TemporaryDirectory() as scratch:
        quiet, killed = Path(scratch) / "quiet", Path(scratch) / "killed"
        if start(quiet).wait() != 0:
            raise SystemExit((Path(scratch) / "quiet.log").read_text()[-2000:])
        before: dict[str, int] = {}
        for number, stage in enumerate(plan, 1):
            reached = kill_in(killed, stage, rng)
            after = finished(killed)
            remade += [path for path, moment in before.items() if after.get(path) != moment]
            before = after
            rows.append({"kill": number, "aimed at": stage, "killed in": reached or "had ended", "finished files": len(after)})
        if start(killed).wait() != 0:
            raise SystemExit((Path(scratch) / "killed.log").read_text()[-2000:])
        after = finished(killed)
        remade += [path for path, moment in before.items() if after.get(path) != moment]
        one, two = (without_seconds(json.loads((folder / "results.json").read_text())) for folder in (quiet, killed))
        same_weights = (quiet / "gm_prm" / "model.safetensors").read_bytes() == (killed / "gm_prm" / "model.safetensors").read_bytes()
    hits = sum(row["killed in"] != "had ended" for row in rows)
    missed = sorted(set(plan) - {row["killed in"] for row in rows})
    claims = [
        claim("kills with signal 9", f">= {len(plan)}", hits, hits >= len(plan)),
        claim("stages that no kill hit", "none", ", ".join(missed) or "none", not missed),
        claim("results equal those of the undisturbed run", "yes", "yes" if one == two else "no", one == two),
        claim("weights of the GM-PRM are equal, byte for byte", "yes", "yes" if same_weights else "no", same_weights),
        claim("finished files made again", "0", len(remade), not remade),
    ]
    write_result("interrupted", f"python benchmarks/interrupted.py --kills {args.kills}", [args.seed], len(plan), rows, claims)
    for row in rows + claims:
        print(row)


if __name__ == "__main__":
    main()
