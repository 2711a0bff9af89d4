"""Which way of searching with a step verifier pays? `python benchmarks/strategies.py --run runs/strategies [--gm_prm DIR]`

Trains one VL-PRM on exact labels of the worlds (or takes `--scorer DIR`), then searches held-out problems with every strategy at several
budgets, for each seed. Refined Best-of-N needs a critic that corrects: it is run where `--gm_prm` names one. Every arm is saved as
it runs, so a stopped run goes on. Writes benchmarks/results/strategies.json and strategies.png.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from result import RESULTS, claim, write_result

from vlrm import load_engine, load_scorer
from vlrm.data_synth import WORLDS, make_problems, make_step_records
from vlrm.policy import SEARCH, SearchResult
from vlrm.policy.result import result_from_record
from vlrm.policy.search_file import search_file
from vlrm.rm.answers import same_answer
from vlrm.rm.stats import accuracy_ci, bootstrap_ci, mcnemar

SAMPLING = {"temperature": 0.6, "max_tokens": 160}
# arm: (method, settings of the method, settings of the scorer, which scorer); the first ones choose among the same samples.
ARMS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "majority": ("self_consistency", {}, {}, ""),
    "one-shot": ("one_shot", {}, {}, "vl_prm"),
    "best of n (mean)": ("best_of_n", {}, {"aggregation": "mean"}, "vl_prm"),
    "best of n (min)": ("best_of_n", {}, {"aggregation": "min"}, "vl_prm"),
    "best of n (last)": ("best_of_n", {}, {"aggregation": "last"}, "vl_prm"),
    "best of n, GM-PRM": ("best_of_n", {}, {}, "gm_prm"),
    "refined best of n, GM-PRM": ("refined_best_of_n", {"no_error": "keep"}, {}, "gm_prm"),
    "guided greedy": ("guided_greedy", {}, {"aggregation": "min"}, "vl_prm"),
    "beam search": ("beam_search", {}, {"aggregation": "min"}, "vl_prm"),
    "dvts": ("dvts", {}, {"aggregation": "min"}, "vl_prm"),
    "beam search, rank min": ("beam_search", {"rank": "min"}, {"aggregation": "min"}, "vl_prm"),
    "dvts, rank min": ("dvts", {"rank": "min"}, {"aggregation": "min"}, "vl_prm"),
}
POOLED = ("self_consistency", "best_of_n", "one_shot", "refined_best_of_n")


def train_scorer(args: argparse.Namespace, policy: Any) -> Path:
    from vlrm.prm.train_vl_prm import train_vl_prm

    records = args.run / "train" / "records.jsonl"
    if not records.exists():
        make_step_records(list(WORLDS), "train", args.train_problems, 1, records, policy=policy, corruptions=2)
    if not (args.run / "vl_prm" / "vlrm.json").exists():
        train_vl_prm(
            args.base, records, args.run / "vl_prm", system="", learning_rate=args.learning_rate, batch_size=args.batch_size, save_steps=200
        )
    return args.run / "vl_prm"


def run_arm(
    args: argparse.Namespace, arm: str, n: int, seed: int, problems: Sequence[Any], pools: list[Any], policy: Any, scorers: dict[str, Any]
) -> list[SearchResult] | None:
    """The results of an arm, from its file where it has been run; None where its scorer is missing."""
    method, settings, scorer_settings, which = ARMS[arm]
    if which and scorers.get(which) is None:
        return None
    if method in ("beam_search", "dvts"):
        settings = {**settings, "beam_width": min(4, max(2, n // 2))}
    options: dict[str, Any] = {"n": n, "seed": seed, **SAMPLING, **settings}
    scorer = None
    if which:
        path, engine = scorers[which]
        scorer = load_scorer(path, engine, **scorer_settings)

    def search(batch: Sequence[Any]) -> list[SearchResult]:
        at = {problem.id: pool for problem, pool in zip(problems, pools, strict=False)}
        given = {"pool": [at[problem.id][:n] for problem in batch]} if method in POOLED and at else {}
        call: Callable[..., list[SearchResult]] = partial(SEARCH[method], batch, policy, **({"scorer": scorer} if which else {}))
        return call(**options, **given)

    name = arm.replace(" ", "_").replace(",", "").replace("(", "").replace(")", "")
    rows = search_file(
        problems, search, args.run / f"seed{seed}" / f"{name}-{n}.jsonl", settings={"arm": arm, **options, **scorer_settings}
    )
    return read(rows)


def read(rows: Sequence[dict[str, Any]]) -> list[SearchResult]:
    return [result_from_record({item.name: row[item.name] for item in fields(SearchResult)}) for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/strategies"))
    parser.add_argument("--scorer", type=Path, help="a folder that vlrm train --method vl_prm wrote; else one is trained")
    parser.add_argument("--gm_prm", type=Path, help="a folder that vlrm train --method gm_prm wrote, such as a quickstart's")
    parser.add_argument("--base", default="tiny-checker")
    parser.add_argument("--policy", default="tiny-policy")
    parser.add_argument("--train_problems", type=int, default=4000)
    parser.add_argument("--learning_rate", type=float, default=8e-4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--n", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder for the result and the plot")
    args = parser.parse_args()
    policy = load_engine(args.policy)
    vl_prm = args.scorer or train_scorer(args, policy)
    scorers = {"vl_prm": (vl_prm, load_scorer(vl_prm).engine)}
    if args.gm_prm:
        scorers["gm_prm"] = (args.gm_prm, load_scorer(args.gm_prm).engine)
    right: dict[tuple[str, int], list[bool]] = {}
    cost: dict[tuple[str, int], list[tuple[int, int, int, float]]] = {}
    lines: dict[int, list[tuple[float, bool]]] = {}
    for seed in args.seeds:
        problems = make_problems(list(WORLDS), "test", args.problems, 200 + seed, args.run / f"seed{seed}" / "problems")
        whole = run_arm(args, "majority", max(args.n), seed, problems, [], policy, scorers) or []
        pools = [list(result.candidates) for result in whole]
        for n in args.n:
            for problem, pool in zip(problems, pools, strict=True):
                hits = [same_answer(candidate.answer, problem.answer) for candidate in pool[:n]]
                lines.setdefault(n, []).append((sum(hits) / n, any(hits)))
            for arm in ARMS:
                results = run_arm(args, arm, n, seed, problems, pools, policy, scorers)
                if results is None:
                    continue
                pairs = zip(results, problems, strict=True)
                right.setdefault((arm, n), []).extend(same_answer(result.answer, problem.answer) for result, problem in pairs)
                cost.setdefault((arm, n), []).extend(
                    (
                        result.cost.policy.completion_tokens,
                        result.cost.scorer.prompt_tokens,
                        result.cost.scorer.completion_tokens,
                        result.cost.policy.seconds + result.cost.scorer.seconds,
                    )
                    for result in results
                )
                print(f"seed {seed}, {arm}, n = {n}: {sum(right[arm, n]) / len(right[arm, n]):.3f} so far", flush=True)
    rows = [row(arm, n, right[arm, n], cost[arm, n]) for arm, n in sorted(right, key=lambda key: (list(ARMS).index(key[0]), key[1]))]
    for n in args.n:
        for name, values in (("random", [share for share, _ in lines[n]]), ("oracle", [float(any_) for _, any_ in lines[n]])):
            low, high = bootstrap_ci(values)
            mean = sum(values) / len(values)
            rows.append({"strategy": name, "n": n, "accuracy": round(100 * mean, 1), "ci95": [round(100 * low, 1), round(100 * high, 1)]})
    at = 8 if 8 in args.n else max(args.n)
    claims = []
    for arm in ARMS:
        if arm != "majority" and (arm, at) in right:
            gain = 100 * (sum(right[arm, at]) - sum(right["majority", at])) / len(right[arm, at])
            p = mcnemar(right[arm, at], right["majority", at])
            claims.append(
                claim(
                    f"{arm} against majority at n = {at}, points (McNemar p = {p:.1e})",
                    "> 0, p < 0.05",
                    round(gain, 1),
                    gain > 0 and p < 0.05,
                )
            )
    command = "python benchmarks/strategies.py" + (" --gm_prm DIR" if args.gm_prm else "")
    write_result("strategies", command, args.seeds, args.problems * len(args.seeds), rows, claims, folder=args.folder)
    plot(rows, args.folder / "strategies.png")
    for line in rows + claims:
        print(line)


def row(arm: str, n: int, right: Sequence[bool], cost: Sequence[tuple[int, int, int, float]]) -> dict[str, Any]:
    """One line of the table; tokens are for one problem."""
    accuracy, low, high = accuracy_ci(right)
    policy, read, written, seconds = (sum(column) / len(cost) for column in zip(*cost, strict=True))
    return {
        "strategy": arm,
        "n": n,
        "accuracy": round(100 * accuracy, 1),
        "ci95": [round(100 * low, 1), round(100 * high, 1)],
        "policy tokens": round(policy, 1),
        "scorer tokens read": round(read, 1),
        "scorer tokens written": round(written, 1),
        "milliseconds": round(1000 * seconds, 1),
    }


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Accuracy with its interval against policy tokens, and against scorer tokens, read and written, of one problem."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(13, 5.2), sharey=True)
    for number, arm in enumerate(ARMS):
        own = [line for line in rows if line["strategy"] == arm]
        for axis, cost in zip(
            axes, (lambda line: line["policy tokens"], lambda line: line["scorer tokens read"] + line["scorer tokens written"]), strict=True
        ):
            points = [(cost(line), line["accuracy"], line["ci95"]) for line in own if cost(line) > 0]
            if points:
                x, y, ci = zip(*points, strict=True)
                spans = [
                    [mid - low for mid, (low, _) in zip(y, ci, strict=True)],
                    [high - mid for mid, (_, high) in zip(y, ci, strict=True)],
                ]
                axis.errorbar(
                    x, y, yerr=spans, marker="os^"[number // 10], markersize=4, capsize=2, linewidth=1.2, label=arm, color=f"C{number % 10}"
                )
    for axis, label in zip(axes, ("policy tokens a problem", "scorer tokens a problem"), strict=True):
        axis.set_xscale("log")
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy, % (95 % interval)")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=8, loc="center right")
    figure.tight_layout(rect=(0, 0, 0.84, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
