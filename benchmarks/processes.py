"""Do two processes train as one does? `python benchmarks/processes.py --work runs/processes`

Trains each method for a few steps twice, by `accelerate launch` with two CPU processes and by one process with their batches together, and
holds the loss curves against each other. Writes benchmarks/results/multiprocess.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from result import claim, write_result

from vlrm.data_synth import WORLDS, make_step_records
from vlrm.data_synth.consistency_pairs import make_consistency
from vlrm.data_synth.preferences import make_preferences

CONFIG = Path(__file__).parent.parent / "configs" / "accelerate_cpu.yaml"


def curve(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def train(args: argparse.Namespace, method: str, data: Path, processes: int) -> tuple[list[float], float]:
    out = args.work / f"{method}_{processes}"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG)] if processes > 1 else [sys.executable]
    command += ["-m", "vlrm", "train", "--method", method, "--model", args.model, "--data", str(data), "--output_dir", str(out)]
    command += ["--batch_size", str(args.batch // processes), "--max_steps", str(args.steps), "--logging_steps", "1", "--workers", "0"]
    command += ["--bf16", "false", "--learning_rate", str(args.learning_rate), "--progress", "false"]
    started = time.perf_counter()
    if not (out / "vlrm.json").exists():
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return curve(out), time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--methods", nargs="+", default=["gm_prm", "bradley_terry", "paco", "dpo_judge"])
    parser.add_argument("--data", nargs="*", default=[], help="method=file, for methods that read other data than is made here")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16, help="global batch; even")
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--folder", type=Path, help="folder for results/multiprocess.json; else the repository's")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    n = args.batch * args.steps
    records, pairs = args.work / "steps" / "records.jsonl", args.work / "pairs" / "preferences.jsonl"
    if not records.exists():
        make_step_records(list(WORLDS), "train", n, 0, records)
    if not pairs.exists():
        make_preferences(list(WORLDS), "train", n, 0, pairs.parent)
    consistency = args.work / "consistency" / "pairs.jsonl"
    if not consistency.exists():
        make_consistency(consistency.parent, "train", 1 + n // 34, 0, ranks=0)
    own = {"gm_prm": records, "vl_prm": records, "paco": consistency, **dict(item.split("=", 1) for item in args.data)}
    rows, claims = [], []
    for method in args.methods:
        data = Path(own.get(method, pairs))
        (one, alone), (two, together) = (train(args, method, data, processes) for processes in (1, 2))
        gap = max(abs(a - b) for a, b in zip(one, two, strict=True))
        rows.append(
            {
                "method": method,
                "steps": len(one),
                "first loss": one[0],
                "last loss": one[-1],
                "largest gap": gap,
                "seconds, one process": round(alone, 1),
                "seconds, two": round(together, 1),
            }
        )
        claims.append(claim(f"{method}: largest gap of the losses, two processes against one", "<= 1e-3", f"{gap:.1e}", gap <= 1e-3))
    command = f"python benchmarks/processes.py --work DIR --steps {args.steps} --batch {args.batch}"
    write_result("multiprocess", command, [0], n, rows, claims, **({} if args.folder is None else {"folder": args.folder}))
    for row in rows + claims:
        print(row)


if __name__ == "__main__":
    main()
