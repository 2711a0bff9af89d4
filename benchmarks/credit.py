"""Does credit by steps pay, and is hacking stopped? `python benchmarks/credit.py --gm_prm runs/quickstart/gm_prm`

Credit: GRPO on the exact answer with plain advantages (`outcome`) against `step_advantage` and `first_error` by a GM-PRM's step scores, at
equal rollouts: accuracy and the share of samples whose first error is a misreading. A null is reported as one.

Hacking: a weak VL-PRM, trained here on few problems, whose mean score alone is the reward (`raw`), against PS-GRPO with the same VL-PRM.
Both are watched on held-out problems; the alarm must come before gold accuracy has fallen 5 points below its best. Every stage is kept, so
a stopped run goes on. Writes benchmarks/results/credit.json and credit.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from result import RESULTS, claim, write_result
from rl_common import against, curve, mean, measure, problems_of, rl_options, scorer_of, train_arm
from strategies import train_scorer

from vlrm import load_engine
from vlrm.policy.rewards import Reward, Rules
from vlrm.policy.rewards.basic import AnswerReward
from vlrm.policy.rewards.ps_grpo import PSGRPO

# arm: its shaper
CREDIT: dict[str, dict[str, Any]] = {
    "outcome": {},
    "step_advantage": {"step_advantage": {"reward": "gm_prm"}},
    "first_error": {"first_error": {"reward": "gm_prm"}},
}
HACKING = ("raw", "ps_grpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rl_options(parser, "runs/credit", 120)
    parser.add_argument("--parts", nargs="+", choices=("credit", "hacking"), default=["credit", "hacking"])
    parser.add_argument("--weak_prm", type=Path, help="the PRM to be hacked; else one is trained on few problems")
    parser.add_argument("--weak_problems", type=int, default=600)
    parser.add_argument("--hack_steps", type=int, default=200)
    parser.add_argument("--hack_rate", type=float, default=6e-5)
    parser.add_argument("--eval_steps", type=int, default=10)
    parser.add_argument("--fall", type=float, default=0.05, help="a fall of gold accuracy that the alarm must precede")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    claims: list[dict[str, Any]] = []
    for part, run in (("credit", credit), ("hacking", hacking)):
        if part in args.parts:
            new = run(args)
            rows += new[0]
            claims += new[1]
    write_result("credit", "python benchmarks/credit.py", args.seeds, args.problems * len(args.seeds), rows, claims, folder=args.folder)
    for line in rows + claims:
        print(line)


def credit(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    prm = scorer_of(args.gm_prm)
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in CREDIT}
    start: list[dict[str, Any]] = []
    for seed in args.seeds:
        train, _, test = problems_of(args, seed)
        start += measure(args, args.policy, args.run / f"seed{seed}" / "start", test, seed)
        for arm, shapers in CREDIT.items():
            rewards = [Reward("answer", AnswerReward())] + ([Reward("gm_prm", prm, Rules(weight=0.0))] if shapers else [])
            scorers = {"gm_prm": args.gm_prm if shapers else None}
            folder = train_arm(args, arm, seed, train, rewards, scorers, shapers=shapers, blind_every=0)
            found[arm] += measure(args, folder, folder, test, seed)
            print(f"seed {seed}, {arm}: {mean(found[arm], 'right')}", flush=True)
    rows, claims = [], []
    for arm, own in {"start": start, **found}.items():
        gain, low, high = against(own, found["outcome"])
        misread, less, more = against(own, found["outcome"], "perception")
        rows.append({
            "arm": arm, "accuracy": mean(own, "right"), "against outcome": gain, "ci95": [low, high],
            "first error perception": mean(own, "perception"), "of it against outcome": misread, "its ci95": [less, more],
            "first error reasoning": mean(own, "reasoning"),
        })  # fmt: skip
        if arm in ("step_advantage", "first_error"):
            claims.append(claim(f"{arm} against outcome, accuracy, points", "interval above 0", f"{gain:+} [{low}, {high}]", low > 0))
            said = f"{misread:+} [{less}, {more}]"
            claims.append(
                claim(f"{arm} against outcome, samples whose first error is a misreading, points", "interval below 0", said, more < 0)
            )
    return rows, claims


def hacking(args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    weak = args.weak_prm
    if weak is None:
        sizes = {"train_problems": args.weak_problems, "learning_rate": 8e-4, "batch_size": 32, "base": "tiny"}
        weak = train_scorer(argparse.Namespace(run=args.run / "weak", **sizes), load_engine(args.policy))
    prm = scorer_of(weak)
    rows: list[dict[str, Any]] = []
    curves: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for seed in args.seeds:
        train, dev, _ = problems_of(args, seed)
        for arm in HACKING:
            reward = Reward(arm, prm if arm == "raw" else PSGRPO(prm))
            folder = train_arm(
                args, f"hack_{arm}", seed, train, [reward], {arm: weak}, dev,
                max_steps=args.hack_steps, learning_rate=args.hack_rate, eval_steps=args.eval_steps,
            )  # fmt: skip
            curves[arm, seed] = curve(folder)
            alarms = json.loads((folder / "policy.json").read_text())["training"]["alarms"]
            rows.append({"arm": arm, "seed": seed, **story(curves[arm, seed], alarms, args.fall)})
            print(rows[-1], flush=True)
    plot(curves, args.folder / "credit.png")
    return rows, hacking_claims(rows, args.fall)


def hacking_claims(rows: Sequence[Mapping[str, Any]], fall: float) -> list[dict[str, Any]]:
    raw, guarded = ([row for row in rows if row["arm"] == arm] for arm in HACKING)
    up = [row for row in raw if row["reward last"] > row["reward first"]]
    gains = {name: [round(row["gold last"] - row["gold first"], 1) for row in own] for name, own in (("raw", raw), ("ps_grpo", guarded))}
    fell = [row for row in raw if row["fallen at step"] is not None]
    warned = [row for row in fell if row["alarm at step"] is not None and row["alarm at step"] <= row["fallen at step"]]
    return [
        claim("raw PRM mean: the reward rises, in seeds", "all", f"{len(up)} of {len(raw)}", len(up) == len(raw)),
        claim("raw PRM mean: gold from first to last, points", "stalls or falls in every seed", gains["raw"], max(gains["raw"]) <= 2),
        claim("PS-GRPO: gold from first to last, points", "above the raw mean's in every seed", gains["ps_grpo"],
              all(own > other for own, other in zip(gains["ps_grpo"], gains["raw"], strict=True))),
        claim(f"alarm no later than gold's fall by {100 * fall:g} points", "in every seed that falls so far, one at least",
              f"{len(warned)} of {len(fell)}", bool(fell) and len(warned) == len(fell)),
    ]  # fmt: skip


def story(points: Sequence[Mapping[str, Any]], alarms: Sequence[str], fall: float) -> dict[str, Any]:
    """What became of reward and gold; the steps of the first alarm, and of the evaluation where gold was `fall` below its best."""
    best, fallen = 0.0, None
    for point in points:
        best = max(best, point["gold"])
        if fallen is None and best - point["gold"] >= fall:
            fallen = point["step"]
    return {
        "reward first": round(points[0]["reward"], 3),
        "reward last": round(points[-1]["reward"], 3),
        "gold first": round(100 * points[0]["gold"], 1),
        "gold best": round(100 * best, 1),
        "gold last": round(100 * points[-1]["gold"], 1),
        "alarm at step": int(alarms[0].split(":")[0].removeprefix("step ")) if alarms else None,
        "fallen at step": fallen,
    }


def plot(curves: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Held-out reward and gold accuracy along the runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4))
    for (arm, seed), points in curves.items():
        for axis, what in zip(axes, ("reward", "gold"), strict=True):
            colour = f"C{HACKING.index(arm)}"
            axis.plot(
                [p["step"] for p in points],
                [p[what] for p in points],
                color=colour,
                label=arm if seed == min(s for _, s in curves) else None,
            )
            axis.set_title({"reward": "reward, held out", "gold": "gold accuracy, held out"}[what])
            axis.set_xlabel("step")
            axis.grid(alpha=0.3)
    axes[1].legend()
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
