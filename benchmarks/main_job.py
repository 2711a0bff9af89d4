"""The main job's tables: `python benchmarks/main_job.py --run DIR [DIR ...]`, each DIR made by `vlrm quickstart --out DIR --seed S`.

Pools the finished quickstarts (a folder that does not exist yet is run first, with `--seed`) and writes benchmarks/results/...:
main_job (every arm, all seeds' problems together, and the claims of the README), main_job_steps (the critic's steps against the
truth), main_job_seeds (the key figures of each seed), and main_job_held (what the critic's verdicts give beyond its own solving).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from result import claim, write_result

from vlrm.data_synth import load_problems
from vlrm.policy.quickstart_results import arm_costs, outcomes, steps_of
from vlrm.policy.result import SearchResult, result_from_record
from vlrm.rm.stats import bootstrap_ci, mcnemar, paired_bootstrap

Run = tuple[dict[str, Any], list[Any], dict[str, list[SearchResult]]]


def load_run(folder: Path) -> Run:
    """results.json, the problems, and each arm's results in the problems' order."""
    problems = load_problems(folder / "problems" / "problems.jsonl")
    arms: dict[str, list[SearchResult]] = {}
    for path in sorted((folder / "arms").glob("*.jsonl")):
        results = [result_from_record(json.loads(line)) for line in path.read_text().splitlines()]
        arms.setdefault(path.stem.rsplit("-", 1)[0], []).extend(results)
    return json.loads((folder / "results.json").read_text()), problems, arms


def pooled(tables: Sequence[Mapping[str, Sequence[Any]]]) -> dict[str, list[Any]]:
    return {name: [value for table in tables for value in table[name]] for name in tables[0]}


def percent(value: float) -> float:
    return round(100 * value, 1)


def interval(values: Sequence[float]) -> list[float]:
    return [percent(bound) for bound in bootstrap_ci(values)]


def gain(table: Mapping[str, Sequence[float]], better: str, base: str) -> tuple[float, float, float, float]:
    """Difference of two arms with its interval, in points, and McNemar's p."""
    difference, low, high = paired_bootstrap(table[better], table[base])
    p = mcnemar([value > 0 for value in table[better]], [value > 0 for value in table[base]])
    return percent(difference), percent(low), percent(high), p


def arm_rows(table: Mapping[str, Sequence[float]], worlds: Sequence[str], costs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for name, values in table.items():
        own = {}
        for world in sorted(set(worlds)):
            mine = [value for value, at in zip(values, worlds, strict=True) if at == world]
            own[world] = percent(sum(mine) / len(mine))
        spent = {
            key: round(sum(cost[name][key] for cost in costs) / len(costs), 1) for key in ("policy_tokens", "scorer_tokens", "seconds")
        }
        spent |= {key: round(spent[key]) for key in ("policy_tokens", "scorer_tokens")}
        rows.append({"arm": name, "accuracy": percent(sum(values) / len(values)), "ci95": interval(values), **own, **spent})
    return rows


def blind_row(runs: Sequence[Run]) -> dict[str, Any]:
    """The text-only baseline: the commonest training answer to each question."""
    names = sorted(runs[0][0]["worlds"])
    own = {world: percent(sum(results["worlds"][world]["blind"] for results, _, _ in runs) / len(runs)) for world in names}
    right = sum(world["blind"] * world["problems"] for results, _, _ in runs for world in results["worlds"].values())
    return {"arm": "text only", "accuracy": percent(right / sum(results["problems"] for results, _, _ in runs)), **own}


def held_rows(table: Mapping[str, Sequence[float]], worlds: Sequence[str]) -> list[dict[str, Any]]:
    """What is left of the gain over the critic's own greedy answers, and what the arms do where those are wrong."""
    rows = []
    for world in ["all", *sorted(set(worlds))]:
        mine = {name: [v for v, at in zip(values, worlds, strict=True) if world in ("all", at)] for name, values in table.items()}
        lost = [i for i, value in enumerate(mine["critic_greedy"]) if not value]
        row: dict[str, Any] = {"world": world, "problems": len(mine["greedy"])}
        row |= {
            name: percent(sum(mine[name]) / len(mine[name]))
            for name in ("greedy", "critic_greedy", "majority", "best_of_n", "refined_best_of_n")
        }
        for name in ("best_of_n", "refined_best_of_n"):
            difference, low, high, _ = gain(mine, name, "critic_greedy")
            row[f"{name} - critic_greedy"] = f"{difference:+.1f} ({low:+.1f} to {high:+.1f})"
        row["critic_greedy wrong"] = len(lost)
        for name in ("majority", "best_of_n", "refined_best_of_n"):
            row[f"{name} there"] = percent(sum(mine[name][i] for i in lost) / len(lost)) if lost else None
        rows.append(row)
    return rows


def claims(
    table: Mapping[str, Sequence[float]],
    worlds: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    steps: Mapping[str, Any],
    failed: float,
    runs: Sequence[Run],
) -> list[dict[str, Any]]:
    spent = {row["arm"]: row["policy_tokens"] for row in rows}

    def beats(better: str, base: str, goal: float) -> dict[str, Any]:
        difference, low, high, p = gain(table, better, base)
        name = f"{better} vs {base}, points (interval {low} to {high}, McNemar p = {p:.1e})"
        return claim(name, f">= {goal}, p < 0.01", difference, difference >= goal and p < 0.01)

    def at_least(name: str, value: float | None, goal: float) -> dict[str, Any]:
        return claim(name, f">= {goal}", None if value is None else round(value, 4), value is not None and value >= goal)

    share = spent["refined_best_of_n"] / spent["best_of_n"]
    least = min(results["problems"] for results, _, _ in runs)
    slowest = max(results["seconds"] for results, _, _ in runs)
    checked = []
    for world in sorted(set(worlds)):
        mine = {name: [v for v, at in zip(values, worlds, strict=True) if at == world] for name, values in table.items()}
        if all(gain(mine, name, "critic_greedy")[1] > 0 for name in ("best_of_n", "refined_best_of_n")):
            checked.append(world)
    return [
        claim("held-out problems of each seed", ">= 600", least, least >= 600),
        beats("best_of_n", "majority", 8),
        beats("refined_best_of_n", "best_of_n", 10),
        beats("refined_best_of_n", "no_fix", 8),
        claim("refined_best_of_n policy tokens / best_of_n policy tokens", "<= 0.8", round(share, 3), share <= 0.8),
        at_least("macro-F1 of steps", steps["macro_f1"], 0.90),
        at_least("first-error accuracy", steps["first_error_accuracy"], 0.85),
        at_least("recall of perception errors", steps["perception_recall"], 0.85),
        at_least("recall of reasoning errors", steps["reasoning_recall"], 0.90),
        at_least("image and logic verdicts both right where located", steps["verdict_accuracy"], 0.90),
        at_least("corrections right where located", steps["correction_accuracy"], 0.90),
        claim("parse failures", "< 0.01", round(failed, 4), failed < 0.01),
        claim(
            "worlds where Best-of-N and Refined Best-of-N both beat the critic's greedy answer (intervals above 0)",
            ">= 1",
            ", ".join(checked),
            bool(checked),
        ),
        claim("seconds of the slowest run", "<= 900", slowest, slowest <= 900),
    ]


def seed_row(run: Run) -> dict[str, Any]:
    results, _, _ = run
    names = ("single", "greedy", "majority", "best_of_n", "refined_best_of_n", "no_fix", "critic_greedy", "oracle")
    steps = ("macro_f1", "first_error_accuracy", "perception_recall", "reasoning_recall", "verdict_accuracy", "correction_accuracy")
    row = {"seed": results["seed"], **{name: percent(results["arms"][name]["accuracy"]) for name in names}}
    row |= {name: results["steps"][name] and round(results["steps"][name], 3) for name in steps}
    spent = results["arms"]["refined_best_of_n"]["policy_tokens"] / results["arms"]["best_of_n"]["policy_tokens"]
    return row | {"parse_failure_rate": results["parse_failure_rate"], "token ratio": round(spent, 3), "seconds": results["seconds"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, nargs="+", default=[Path("runs/quickstart")])
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for folder in args.run:
        if not (folder / "results.json").exists():
            from vlrm.policy.quickstart import run

            run(folder, seed=args.seed)
    runs = [load_run(folder) for folder in args.run]
    seeds = [results["seed"] for results, _, _ in runs]
    table = pooled([outcomes(problems, arms, results["seed"]) for results, problems, arms in runs])
    problems, scored = [p for _, own, _ in runs for p in own], [r for _, _, arms in runs for r in arms["best_of_n"]]
    worlds = [problem.meta["world"] for problem in problems]
    rows = arm_rows(table, worlds, [arm_costs(arms, results["settings"]["n"]) for results, _, arms in runs])
    step_rows = []
    for world in ["all", *sorted(set(worlds))]:
        mine = [i for i, at in enumerate(worlds) if world in ("all", at)]
        steps, failed = steps_of([problems[i] for i in mine], [scored[i] for i in mine])
        step_rows.append({"world": world, **steps, "parse_failure_rate": failed})
    command = f"vlrm quickstart --out DIR --seed {'|'.join(map(str, seeds))}"
    judged = claims(table, worlds, rows, step_rows[0], step_rows[0]["parse_failure_rate"], runs)
    write_result("main_job", command, seeds, len(problems), [*rows, blind_row(runs)], judged)
    write_result("main_job_steps", command, seeds, len(problems), step_rows)
    write_result("main_job_seeds", command, seeds, len(problems), [seed_row(run) for run in runs])
    write_result("main_job_held", command, seeds, len(problems), held_rows(table, worlds))
    for row in judged:
        print(row)


if __name__ == "__main__":
    main()
