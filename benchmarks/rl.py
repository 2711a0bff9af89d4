"""Does a policy learn from a learned reward? `python benchmarks/rl.py --gm_prm runs/quickstart/gm_prm`

GRPO from the tiny policy with one reward each: a trained GM-PRM, a trained VL-PRM by its worst step (`--vl_prm`, else trained here), the
exact answer, and the placebo, GM-PRM's scores shuffled inside each group. Equal rollouts, the last policy of every run (no choice by gold
answers), exact accuracy on held-out problems against the starting policy. The one-pass verdicts of this VL-PRM see misread bars and no
wrong sums, so its policy is trained and measured on that world alone (`--vl_worlds`). Every stage is kept, so a stopped run goes on. Writes
benchmarks/results/rl.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from result import RESULTS, claim, write_result
from rl_common import Shuffled, against, mean, measure, problems_of, rl_options, scorer_of, train_arm, vl_prm_of

from vlrm.policy.rewards import Reward
from vlrm.policy.rewards.basic import AnswerReward

# arm: settings of its own. Where a VL-PRM sees no difference, its scores still differ a little inside a group; scaled to unit spread that
# noise would count as much as what it does see.
ARMS: dict[str, dict[str, Any]] = {"gm_prm": {}, "answer": {}, "placebo": {}, "vl_prm": {"scale_rewards": "none"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rl_options(parser, 50)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--vl_worlds", nargs="+", default=["bars"], help="worlds that the VL-PRM's policy is trained and measured on")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    args = parser.parse_args()
    vl_prm = vl_prm_of(args) if "vl_prm" in args.arms else None
    paths: dict[str, Path | None] = {"gm_prm": args.gm_prm, "vl_prm": vl_prm, "answer": None, "placebo": args.gm_prm}
    loaded: dict[str, Any] = {name: scorer_of(args.gm_prm) for name in ("gm_prm", "placebo") if name in args.arms}
    if vl_prm:
        loaded["vl_prm"] = scorer_of(vl_prm, aggregation="min")  # its mean is easily exploited: benchmarks/credit.py
    start: dict[str, list[dict[str, Any]]] = {}
    found: dict[str, list[dict[str, Any]]] = {arm: [] for arm in args.arms}
    for seed in args.seeds:
        for arm in args.arms:
            worlds = worlds_of(args, arm)
            train, _, test = problems_of(args, seed, worlds)
            if len(start.setdefault(worlds, [])) == len(found[arm]):
                start[worlds] += measure(args, args.policy, args.run / f"seed{seed}" / worlds, test, seed)
            scorer = AnswerReward() if arm == "answer" else loaded[arm]
            if arm == "placebo":
                scorer = Shuffled(scorer, seed)
            folder = train_arm(args, arm, seed, train, [Reward(arm, scorer)], {arm: paths[arm]}, **ARMS[arm])
            found[arm] += measure(args, folder, folder, test, seed)
            gained = against(found[arm], start[worlds])
            print(f"seed {seed}, {arm}: {mean(found[arm], 'right')}, gained {gained} so far", flush=True)
    base = {arm: start[worlds_of(args, arm)] for arm in args.arms}
    rows = [row("none (start)", worlds, own, own, args) for worlds, own in start.items()]
    rows += [row(arm, worlds_of(args, arm), found[arm], base[arm], args) for arm in args.arms]
    claims = []
    for arm in args.arms:
        difference, low, high = against(found[arm], base[arm])
        measured = f"{difference:+} [{low}, {high}]"
        what = f"{arm} as the only reward against the starting policy, {worlds_of(args, arm)}, points"
        if arm == "placebo":
            claims.append(claim(what, "no gain: the interval does not lie above 0", measured, low <= 0))
        else:
            claims.append(claim(what, "interval above 0", measured, low > 0))
    if {"gm_prm", "placebo"} <= set(args.arms):
        difference, low, high = against(found["gm_prm"], found["placebo"])
        claims.append(claim("gm_prm against the placebo, points", "interval above 0", f"{difference:+} [{low}, {high}]", low > 0))
    write_result("rl", "python benchmarks/rl.py", args.seeds, args.problems * len(args.seeds), rows, claims, folder=args.folder)
    for line in rows + claims:
        print(line)


def worlds_of(args: argparse.Namespace, arm: str) -> str:
    return "-".join(args.vl_worlds if arm == "vl_prm" else args.worlds)


def row(name: str, worlds: str, found: list[dict[str, Any]], start: list[dict[str, Any]], args: argparse.Namespace) -> dict[str, Any]:
    """One line of the table: accuracy, what it gained with its interval, each seed's gain, the kinds of first errors, tokens."""
    size = args.problems
    seeds = [against(found[i : i + size], start[i : i + size])[0] for i in range(0, len(found), size)]
    difference, low, high = against(found, start)
    return {
        "reward": name,
        "worlds": worlds,
        "accuracy": mean(found, "right"),
        "gain": difference,
        "ci95": [low, high],
        "gain of each seed": seeds,
        "first error perception": mean(found, "perception"),
        "first error reasoning": mean(found, "reasoning"),
        "unreadable": mean(found, "unreadable"),
        "tokens": round(sum(line["tokens"] for line in found) / len(found), 1),
    }


if __name__ == "__main__":
    main()
