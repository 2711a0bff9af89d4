"""Does a scalar head learn what is right? `python benchmarks/scalar.py --work runs/scalar`

For each seed: preferences from the worlds, between statements about a picture and between whole solutions of like length; a Bradley-Terry
head and (of statements) a generative judge trained on the same pairs from the same base, measured on held-out pairs of each world, the head
also without the picture and with another's, beside always taking the longer answer and the base's own step verdicts. Every stage is kept
in --work and goes on where it stopped. Writes benchmarks/results/scalar.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from result import claim, write_result

from vlrm import load_engine, load_scorer
from vlrm.data_synth import WORLDS
from vlrm.data_synth.preferences import make_preferences
from vlrm.prm.vl_prm import VLPRM
from vlrm.rm.pair_eval import evaluate_pair_file
from vlrm.rm.preferences import read_preferences
from vlrm.rm.rows import read_rows
from vlrm.rm.stats import paired_bootstrap
from vlrm.rm.train_judge import train_dpo_judge
from vlrm.rm.train_scalar import train_bradley_terry

METHODS = {"scalar": train_bradley_terry, "judge": train_dpo_judge}
JOBS = {"statements": ("scalar", "judge"), "solutions": ("scalar",)}


def preferences(args: argparse.Namespace, of: str, seed: int, split: str) -> Path:
    folder, n = args.work / of / f"seed{seed}" / split, getattr(args, split) // (4 if of == "statements" else 1)
    if not (folder / "preferences.jsonl").exists():
        print(split, seed, make_preferences(list(WORLDS), split, n, seed, folder, of=of))
    return folder / "preferences.jsonl"


def outcomes(folder: Path, name: str = "comparisons") -> dict[str, float]:
    """Pair id -> 1 right, 0 wrong, 0.5 undecided."""
    value = {"first": 1.0, "second": 0.0}
    return {row["id"]: value.get(row["said"], 0.5) for _, row in read_rows(folder / f"{name}.jsonl")}


def step_verifier(model: str) -> VLPRM:
    return VLPRM(load_engine(model), system="", headers=False, aggregation="min")


def one_seed(args: argparse.Namespace, of: str, seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """Arm -> pair id -> outcome."""
    train, test = preferences(args, of, seed, "train"), preferences(args, of, seed, "test")
    arms: dict[str, dict[str, float]] = {}
    for name in JOBS[of]:
        folder, out = args.work / of / f"seed{seed}" / name, args.work / of / f"seed{seed}" / f"{name}_eval"
        own: dict[str, Any] = {"centre": 0.01} if name == "scalar" else {"sft_weight": 1.0, "orders": "random", "instructions": "Better?"}
        rate = args.learning_rate if name == "scalar" else args.judge_learning_rate
        options = {"epochs": args.epochs, "batch_size": args.batch_size, "learning_rate": rate}
        options |= {"seed": seed, "save_steps": 50}
        METHODS[name](args.model, train, folder, freeze_vision=False, **options, **own)
        blind = ("removed", "other") if name == "scalar" else ()
        found = evaluate_pair_file(test, out, lambda folder=folder: load_scorer(folder), blind=blind, settings={"scorer": name}, seed=seed)
        print(of, seed, name, {key: figure and round(figure["value"], 3) for key, figure in found["metrics"]["figures"].items()})
        arms[name] = outcomes(out)
        arms |= {f"{name}, picture {how}": outcomes(out, f"comparisons.{how}") for how in blind}
    # What the base knows before it is trained on any pair: it reads each step's verdict, the worst of them counts.
    out = args.work / of / f"seed{seed}" / "base_eval"
    evaluate_pair_file(test, out, lambda: step_verifier(args.model), settings={"scorer": args.model}, seed=seed)
    arms["untrained base, step verdicts"] = outcomes(out)
    sizes = {p.problem.id: (len(p.chosen.split()), len(p.rejected.split())) for p in read_preferences(test)}
    arms["longer wins"] = {id: 0.5 + 0.5 * float(np.sign(good - bad)) for id, (good, bad) in sizes.items()}
    return {"arms": arms, "worlds": {p.problem.id: p.group for p in read_preferences(test)}}


def add(of: str, world: str, seeds: dict[int, Any], rows: list[dict[str, Any]], claims: list[dict[str, Any]]) -> None:
    """The table's lines and the claims of one world, or of all."""
    keys = [(s, id) for s, found in seeds.items() for id, own in found["worlds"].items() if world in ("all", own)]
    values = {arm: [seeds[s]["arms"][arm].get(id, 0.5) for s, id in keys] for arm in next(iter(seeds.values()))["arms"]}
    for arm, right in values.items():
        low, high = paired_bootstrap(right, [0.0] * len(right))[1:]
        by_seed = [round(float(np.mean([v for v, (s, _) in zip(right, keys, strict=True) if s == seed])), 3) for seed in seeds]
        row = {"pairs of": of, "world": world, "arm": arm, "pairs": len(right), "accuracy": round(float(np.mean(right)), 4)}
        rows.append(row | {"ci95": [round(low, 4), round(high, 4)], "seeds": by_seed})
    for other in [arm for arm in values if arm != "scalar"]:
        # What is undecided counts half, so a test on right and wrong alone would not be fair.
        gap, low, high = paired_bootstrap(values["scalar"], values[other], level=0.99)
        told = other in ("judge", "untrained base, step verdicts")
        goal = "reported" if told else "> 0, 99 % interval above 0"
        measured = f"{100 * gap:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
        claims.append(claim(f"{of}, {world}: scalar head - {other}", goal, measured, told or low > 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", default="tiny-checker")
    parser.add_argument("--of", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--train", type=int, default=12000, help="pairs of each seed, at most")
    parser.add_argument("--test", type=int, default=600)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=8e-4)
    parser.add_argument("--judge-learning-rate", type=float, default=2e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, help="folder for results/scalar.json; else the repository's")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    for of in args.of:
        seeds = {seed: one_seed(args, of, seed) for seed in args.seeds}
        for world in ("all", *WORLDS):
            add(of, world, seeds, rows, claims)
    command = f"python benchmarks/scalar.py --work DIR --train {args.train} --test {args.test} --epochs {args.epochs}"
    n = rows[0]["pairs"]
    write_result("scalar", command, args.seeds, n, rows, claims, **({} if args.folder is None else {"folder": args.folder}))
    for row in rows + claims:
        print(row)


if __name__ == "__main__":
    main()
