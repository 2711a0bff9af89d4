"""Does credit by steps pay, and is hacking stopped? `python benchmarks/credit.py --gm_prm runs/quickstart/gm_prm`

Credit: GRPO on the exact answer with plain advantages (`outcome`, the arm `answer` of benchmarks/rl.py, which is not run again where the
folder holds it) against `step_advantage` and `first_error` by a GM-PRM's step scores, at equal rollouts: accuracy and the share of samples
whose first error is a misreading. A null is reported as one.

Hacking: the mean step score of a VL-PRM alone is the reward (`raw`), against PS-GRPO with the same VL-PRM. Both are watched on held-out
problems: a reward that is exploited runs away from gold accuracy, and the alarm must come before gold has fallen 5 points below its best.
Every stage is kept, so a stopped run goes on. Writes benchmarks/results/credit.json and credit.png.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from result import RESULTS, claim, write_result
from rl_common import against, curve, mean, measure, problems_of, rl_options, scorer_of, train_arm, vl_prm_of

from vlrm.policy.rewards import Reward, Rules
from vlrm.policy.rewards.basic import AnswerReward
from vlrm.policy.rewards.ps_grpo import PSGRPO

# arm: its shapers
CREDIT: dict[str, dict[str, Any]] = {
    "answer": {},
    "step_advantage": {"step_advantage": {"reward": "gm_prm"}},
    "first_error": {"first_error": {"reward": "gm_prm"}},
}
HACKING = ("raw", "ps_grpo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rl_options(parser, 50)
    parser.add_argument("--parts", nargs="+", choices=("credit", "hacking"), default=["credit", "hacking"])
    parser.add_argument("--arms", nargs="+", choices=CREDIT, default=list(CREDIT), help="of credit; the plain one is always run")
    parser.add_argument("--hack_worlds", nargs="+", default=["ladder"])
    parser.add_argument("--hack_steps", type=int, default=30)
    parser.add_argument("--eval_steps", type=int, default=5)
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
    arms = dict.fromkeys(["answer", *args.arms])
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in arms}
    start: list[dict[str, Any]] = []
    for seed in args.seeds:
        worlds = "-".join(args.worlds)
        train, _, test = problems_of(args, seed, worlds)
        start += measure(args, args.policy, args.run / f"seed{seed}" / worlds, test, seed)
        for arm in arms:
            shapers = CREDIT[arm]
            rewards = [Reward("answer", AnswerReward())] + ([Reward("gm_prm", prm, Rules(weight=0.0))] if shapers else [])
            scorers = {"gm_prm": args.gm_prm} if shapers else {"answer": None}
            folder = train_arm(args, arm, seed, train, rewards, scorers, shapers=shapers)
            found[arm] += measure(args, folder, folder, test, seed)
            print(f"seed {seed}, {arm}: {mean(found[arm], 'right')}", flush=True)
    found = {"outcome" if arm == "answer" else arm: rows for arm, rows in found.items()}
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
    path = vl_prm_of(args)
    prm = scorer_of(path, aggregation="mean")
    rows: list[dict[str, Any]] = []
    curves: dict[tuple[str, int], list[dict[str, Any]]] = {}
    start: list[dict[str, Any]] = []
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in HACKING}
    for seed in args.seeds:
        worlds = "-".join(args.hack_worlds)
        train, dev, test = problems_of(args, seed, worlds)
        start += measure(args, args.policy, args.run / f"seed{seed}" / worlds, test, seed)
        for arm in HACKING:
            reward = Reward(arm, prm if arm == "raw" else PSGRPO(prm))
            folder = train_arm(
                args, f"hack_{arm}", seed, train, [reward], {arm: path}, dev, max_steps=args.hack_steps, eval_steps=args.eval_steps,
                schedule="constant_with_warmup",
            )  # fmt: skip
            found[arm] += measure(args, folder, folder, test, seed)
            curves[arm, seed] = curve(folder)
            alarms = json.loads((folder / "policy.json").read_text())["training"]["alarms"]
            rows.append({"arm": arm, "seed": seed, **story(curves[arm, seed], alarms, args.fall)})
            print(rows[-1], flush=True)
    plot(curves, args.folder / "credit.png")
    return rows, hacking_claims(rows, found, start, args.fall)


def hacking_claims(
    rows: Sequence[Mapping[str, Any]], found: Mapping[str, Sequence[Mapping[str, Any]]], start: Sequence[Mapping[str, Any]], fall: float
) -> list[dict[str, Any]]:
    raw, guarded = ([row for row in rows if row["arm"] == arm] for arm in HACKING)
    up = [row for row in raw if row["reward last"] > row["reward first"]]
    ran, kept = ([row["reward ran ahead of gold"] for row in own] for own in (raw, guarded))
    fell = [row for row in raw if row["fallen at step"] is not None]
    late = [row for row in fell if row["alarm at step"] is None or row["alarm at step"] >= row["fallen at step"]]
    warned = [row for row in raw if row["alarm at step"] is not None]
    gain, low, high = against(found["raw"], start)
    more, least, most = against(found["ps_grpo"], found["raw"])
    return [
        claim("raw PRM mean: the reward rises, in seeds", "all", f"{len(up)} of {len(raw)}", len(up) == len(raw)),
        claim("raw PRM mean against the starting policy, gold, points", "stalls or falls: the interval does not lie above 0",
              f"{gain:+} [{low}, {high}]", low <= 0),
        claim("PS-GRPO against the raw PRM mean, gold, points", "interval above 0", f"{more:+} [{least}, {most}]", least > 0),
        claim("rise of the reward beyond that of gold, points, raw and PS-GRPO", "larger for raw in every seed", f"{ran} and {kept}",
              all(one > other for one, other in zip(ran, kept, strict=True))),
        claim(f"raw PRM mean: seeds whose gold fell {100 * fall:g} points before the alarm", "none, and an alarm in every seed",
              f"{len(late)} of {len(fell)} that fell so; an alarm in {len(warned)} of {len(raw)}", not late and len(warned) == len(raw)),
    ]  # fmt: skip


def story(points: Sequence[Mapping[str, Any]], alarms: Sequence[str], fall: float) -> dict[str, Any]:
    """What became of reward and gold; the first alarm, and the evaluation where gold was `fall` below its best."""
    best, falls = 0.0, {}
    for point in points:
        best = max(best, point["gold"])
        falls[point["step"]] = best - point["gold"]
    alarm = int(alarms[0].split(":")[0].removeprefix("step ")) if alarms else None
    return {
        "reward first": round(points[0]["reward"], 3),
        "reward last": round(points[-1]["reward"], 3),
        "gold first": round(100 * points[0]["gold"], 1),
        "gold best": round(100 * best, 1),
        "gold last": round(100 * points[-1]["gold"], 1),
        "reward ran ahead of gold": round(100 * (points[-1]["reward"] - points[0]["reward"] - points[-1]["gold"] + points[0]["gold"]), 1),
        "alarm at step": alarm,
        "gold below its best at the alarm": None if alarm is None else round(100 * falls[alarm], 1),
        "fallen at step": next((step for step, fallen in falls.items() if fallen >= fall), None),
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
