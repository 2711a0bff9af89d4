"""The main job's table: `python benchmarks/main_job.py --run DIR` after (or as) `vlrm quickstart --out DIR`.

Reads a finished quickstart, or runs it first, and writes benchmarks/results/main_job.json with the claims of the README.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from result import claim, write_result


def claims(results: dict[str, Any]) -> list[dict[str, Any]]:
    arms, tests, steps, worlds = results["arms"], results["tests"], results["steps"], results["worlds"]

    def gain(test: str, goal: float) -> dict[str, Any]:
        measured, p = tests[test]["difference"], tests[test]["mcnemar_p"]
        name = f"{test}, points (McNemar p = {p:.1e})"
        return claim(name, f">= {goal}, p < 0.01", round(100 * measured, 1), 100 * measured >= goal and p < 0.01)

    def at_least(name: str, value: float | None, goal: float) -> dict[str, Any]:
        return claim(name, f">= {goal}", None if value is None else round(value, 4), value is not None and value >= goal)

    share = arms["refined_best_of_n"]["policy_tokens"] / arms["best_of_n"]["policy_tokens"]
    checked = [
        name
        for name, world in worlds.items()
        if min(world["accuracy"]["best_of_n"], world["accuracy"]["refined_best_of_n"]) > world["accuracy"]["critic_greedy"]
    ]
    return [
        claim("held-out problems", ">= 600", results["problems"], results["problems"] >= 600),
        gain("best_of_n vs majority", 8),
        gain("refined_best_of_n vs best_of_n", 10),
        gain("refined_best_of_n vs no_fix", 8),
        claim("refined_best_of_n policy tokens / best_of_n policy tokens", "<= 0.8", round(share, 3), share <= 0.8),
        at_least("macro-F1 of steps", steps["macro_f1"], 0.90),
        at_least("first-error accuracy", steps["first_error_accuracy"], 0.85),
        at_least("recall of perception errors", steps["perception_recall"], 0.85),
        at_least("recall of reasoning errors", steps["reasoning_recall"], 0.90),
        at_least("image and logic verdicts both right where located", steps["verdict_accuracy"], 0.90),
        at_least("corrections right where located", steps["correction_accuracy"], 0.90),
        claim("parse failures", "< 0.01", round(results["parse_failure_rate"], 4), results["parse_failure_rate"] < 0.01),
        claim(
            "worlds where Best-of-N and Refined Best-of-N both beat the critic's greedy answer", ">= 1", ", ".join(checked), bool(checked)
        ),
        claim("seconds", "<= 900", results["seconds"], results["seconds"] <= 900),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if not (args.run / "results.json").exists():
        from vlrm.policy.quickstart import run

        run(args.run, seed=args.seed)
    results = json.loads((args.run / "results.json").read_text())
    rows = []
    for name, arm in results["arms"].items():
        own = {world: round(100 * row["accuracy"][name], 1) for world, row in results["worlds"].items()}
        interval = [round(100 * bound, 1) for bound in arm["ci95"]]
        spent = {key: arm[key] for key in ("policy_tokens", "scorer_tokens", "seconds")}
        rows.append({"arm": name, "accuracy": round(100 * arm["accuracy"], 1), "ci95": interval, **own, **spent})
    command = f"vlrm quickstart --out DIR --seed {results['seed']}"
    write_result("main_job", command, [results["seed"]], results["problems"], rows, claims(results))
    steps = [{"world": "all", **results["steps"], "parse_failure_rate": results["parse_failure_rate"]}]
    steps += [{"world": n, **w["steps"], "parse_failure_rate": w["parse_failure_rate"]} for n, w in results["worlds"].items()]
    write_result("main_job_steps", command, [results["seed"]], results["problems"], steps, [])


if __name__ == "__main__":
    main()
