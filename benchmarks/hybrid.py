"""Are hybrid labels better to train on than Monte-Carlo labels? `python benchmarks/hybrid.py --judge runs/quickstart/gm_prm`

For each seed solutions of the tiny policy are labelled once by flat Monte-Carlo and once by VL-PRM's hybrid table (judge and
Monte-Carlo); a VL-PRM is trained on each at the same number of kept solutions, and one on the exact labels. On held-out solutions of the
policy their first-error accuracy is measured against the exact truth, beside the untrained base, random and always-right verdicts. Every
stage leaves its result in --run; started again it goes on. Writes benchmarks/results/hybrid.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from labels import by_problem
from result import claim, write_result

from vlrm import Completion, Problem, Request, Sample, Usage, load_engine, load_scorer
from vlrm.data_synth import WORLDS, judge_steps, make_problems
from vlrm.data_synth.labels.file import label_file, model_stamp
from vlrm.data_synth.labels.judge import judge_solutions, open_judge
from vlrm.data_synth.labels.label import Labelled, label_problems
from vlrm.data_synth.labels.rollouts import Rollouts, sample_solutions
from vlrm.data_synth.labels.tell import tell
from vlrm.prm.record_files import read_records
from vlrm.prm.records import StepRecord
from vlrm.prm.truth import step_truth
from vlrm.prm.vl_prm import VLPRM
from vlrm.rm.rows import read_rows, write_jsonl
from vlrm.rm.stats import bootstrap_ci, mcnemar, paired_bootstrap
from vlrm.rm.step_eval import expected_counts
from vlrm.rm.step_metrics import Judged, first_error_accuracy, kind_recall, process_f1

KINDS: dict[str, dict[str, str]] = {
    # A chat ends with the first wrong step, so rollouts beyond it would be wasted.
    "mc": {"method": "flat", "rule": "hard", "stop_at_zero": True},
    "hybrid": {"method": "flat", "rule": "hybrid", "stop_at_zero": True},
    "consensus": {"method": "flat", "rule": "consensus", "stop_at_zero": True},
    "judge": {"method": "judge", "rule": "judge"},
}
FORM = {"system": "", "headers": False}  # the tiny model's context is short
NOT_IN_RESULTS = ("run", "folder", "seeds", "batch")


class Once:
    """An engine that is asked the same request once for as long as this lives: the kinds of labels share solutions and rollouts."""

    def __init__(self, engine: Any):
        self.engine, self.name, self.usage, self.known = engine, engine.name, Usage(), {}

    def generate(self, requests: Sequence[Request]) -> list[list[Completion]]:
        keys = [repr(request) for request in requests]
        fresh = {key: request for key, request in zip(keys, requests, strict=True) if key not in self.known}
        if fresh:
            self.known.update(zip(fresh, self.engine.generate(list(fresh.values())), strict=True))
        return [self.known[key] for key in keys]


def label_all(args: argparse.Namespace, problems: Sequence[Problem], seed: int, path: Path) -> Counter[str]:
    """Labels of all kinds in one file, each record's id with its kind in front; the counts likewise."""
    spec, options, asked = open_judge(args.judge, args.judge_style)
    load = cache(lambda name: load_engine(args.policy) if name == "policy" else load_engine(spec, **options))
    settings = {name: value for name, value in vars(args).items() if name not in NOT_IN_RESULTS}

    def label(batch: Sequence[Problem], wrap: Callable[..., Any]) -> Labelled:
        policy, critic = Once(wrap(partial(load, "policy"), args.policy)), Once(wrap(partial(load, "judge"), spec))
        sampling = {"temperature": args.temperature, "max_tokens": 160, "seed": seed, "samples": args.samples, "k": args.k}
        records, counts = [], Counter[str]()
        for kind in args.kinds:
            done = label_problems(batch, policy, judge=partial(judge_solutions, engine=critic, **asked), **KINDS[kind], **sampling)
            records += [replace(record, id=f"{kind}/{record.id}") for record in done.records]
            counts.update({f"{kind}: {name}": number for name, number in done.counts.items()})
            # Without the kind, so that the balance of labels is told as it runs.
            counts.update({name: number for name, number in done.counts.items() if name.startswith("labels_")})
        return Labelled(tuple(records), counts)

    report = label_file(
        problems, label, path, settings={**settings, "seed": seed}, chunk=args.chunk, batch=args.batch, progress=tell((1, 1), say)
    )
    return Counter(report["counts"])


def training_sets(args: argparse.Namespace, problems: Sequence[Problem], seed: int, path: Path) -> dict[str, list[StepRecord]]:
    """The same number of solutions for every arm, drawn in one order, so that the arms share what both kept."""
    found: dict[str, list[StepRecord]] = {kind: [] for kind in args.kinds}
    for record in read_records(path):
        kind, _, solution = record.id.partition("/")
        found[kind].append(replace(record, id=solution))
    world = {problem.id: problem for problem in problems}
    found["exact"] = [
        replace(record, labels=tuple(float(truth.right) for truth in judge_steps(world[record.meta["problem"]], record.steps)))
        for record in found["mc"]
    ]
    size = min(map(len, found.values()))
    if not size:
        raise SystemExit(f"no solution was kept of some kind of labels: { {kind: len(kept) for kind, kept in found.items()} }")
    return {kind: sorted(kept, key=lambda r: random.Random(f"{seed} {r.id}").random())[:size] for kind, kept in found.items()}


def label_quality(records: Sequence[StepRecord], problems: Sequence[Problem]) -> float:
    """First-error accuracy of the labels themselves."""
    world = {problem.id: problem for problem in problems}
    judged = []
    for record in records:
        truths = [truth.right for truth in judge_steps(world[record.meta["problem"]], record.steps)]
        judged.append(Judged(step_truth(record), truths))
    return first_error_accuracy(judged)


def held_out(args: argparse.Namespace, seed: int, home: Path) -> tuple[list[Sample], list[Judged]]:
    """Solutions that the policy writes for problems of the test split, with the truth about their steps; `predicted` is filled in later."""
    problems = make_problems(list(WORLDS), "test", args.problems, 1000 + seed, home / "problems")
    path = home / "held_out.jsonl"
    if not path.exists():
        rollouts = Rollouts(load_engine(args.policy), seed=seed, temperature=args.temperature, max_tokens=160)
        pools, _ = sample_solutions(problems, rollouts, args.held_out_samples)
        write_jsonl(path, [{"problem": solution.problem.id, "text": solution.text} for pool in pools for solution in pool])
    world = {problem.id: problem for problem in problems}
    samples = [Sample(world[row["problem"]], row["text"]) for _, row in read_rows(path)]
    return samples, [true_of(sample) for sample in samples]


def true_of(sample: Sample) -> Judged:
    from vlrm.prm.sections import solution_steps

    truths = judge_steps(sample.problem, [step.text for step in solution_steps(sample.solution)])
    return Judged((None,) * len(truths), [truth.right for truth in truths], [truth.error for truth in truths])


def predicted(scorer: Any, samples: Sequence[Sample]) -> list[list[bool | None]]:
    return [[verdict.correct for verdict in score.verdicts] for score in scorer(samples)]


def one_seed(args: argparse.Namespace, seed: int) -> dict[str, dict[str, Any]]:
    """Each arm of a seed with what it said of the held-out solutions; what is done is taken from its file."""
    home = args.run / f"seed{seed}"
    train = make_problems(list(WORLDS), "train", args.train_problems, seed, home / "train")
    counts = label_all(args, train, seed, home / "labels.jsonl")
    chosen = training_sets(args, train, seed, home / "labels.jsonl")
    samples, truths = held_out(args, seed, home)
    arms: dict[str, dict[str, Any]] = {}
    for arm, records in [*chosen.items(), ("untrained base", [])]:
        path = home / f"{arm.replace(' ', '_')}.json"
        if not path.exists():
            seconds, trained_on = 0.0, {}
            if records:
                from vlrm.prm.train_vl_prm import train_vl_prm

                recipe = {"learning_rate": args.learning_rate, "batch_size": args.batch_size, "epochs": args.epochs}
                summary = train_vl_prm(args.base, records, home / arm, seed=seed, save_steps=200, **FORM, **recipe)
                seconds, trained_on = summary["seconds"], summary["counts"]
            scorer = load_scorer(home / arm) if records else VLPRM(load_engine(args.base), **FORM)
            outcome = {"predicted": predicted(scorer, samples), "seconds": seconds, "steps": trained_on.get("steps trained on", 0)}
            outcome |= {"solutions": len(records), "labels": label_quality(records, train) if records else None}
            part = path.with_suffix(".part")
            part.write_text(json.dumps(outcome))
            part.replace(path)
        arms[arm] = json.loads(path.read_text())
        arms[arm]["judged"] = [replace(truth, predicted=flags) for truth, flags in zip(truths, arms[arm]["predicted"], strict=True)]
        arms[arm]["problems"] = [sample.problem.id for sample in samples]
        arms[arm] |= {name: counts[f"{arm}: {name}"] for name in ("records", "tokens", "judge_tokens")}
        arms[arm]["offered"] = counts["mc: solutions"]
        say(f"{time.strftime('%H:%M:%S')} seed {seed}, {arm}: first-error accuracy {first_error_accuracy(arms[arm]['judged']):.3f}")
    return arms


def figures(judged: Sequence[Judged]) -> list[float]:
    """Whether each solution's first error is named rightly, as 0 or 1."""
    return [float(first_error_accuracy([item])) for item in judged]


def row(name: str, arms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one arm over all seeds; intervals are over problems."""
    judged = [item for arm in arms for item in arm["judged"]]
    right = by_problem([pair for arm in arms for pair in zip(arm["problems"], figures(arm["judged"]), strict=True)])
    kept, recalls = sum(arm["records"] for arm in arms), {kind: kind_recall(judged, kind) for kind in ("perception", "reasoning")}
    quality = [arm["labels"] for arm in arms if arm["labels"] is not None]
    return {
        "trained on": name,
        "solutions": sum(arm["solutions"] for arm in arms),
        "steps": sum(arm["steps"] for arm in arms),
        "first-error accuracy": round(100 * statistics.mean(right), 1),
        "ci95": [round(100 * value, 1) for value in bootstrap_ci(right)],
        "by seed": [round(100 * first_error_accuracy(arm["judged"]), 1) for arm in arms],
        "process F1": round(100 * process_f1(judged), 1),
        **{f"{kind} recall": None if value is None else round(100 * value, 1) for kind, value in recalls.items()},
        "first-error accuracy of the labels": round(100 * statistics.mean(quality), 1) if quality else None,
        "share kept": round(kept / sum(arm["offered"] for arm in arms), 3) if kept else None,
        "policy tokens a kept solution": round(sum(arm["tokens"] for arm in arms) / kept, 1) if kept else None,
        "judge tokens a kept solution": round(sum(arm["judge_tokens"] for arm in arms) / kept, 1) if kept else None,
        "seconds of training": round(sum(arm["seconds"] for arm in arms)),
    }


def baselines(arms: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Always right, and random: every step called right with the probability of a right step, as an exact expectation."""
    judged = [item for arm in arms for item in arm["judged"]]
    problems = [problem for arm in arms for problem in arm["problems"]]
    rate = statistics.mean(flag for item in judged for flag in item.truth)
    always = figures([replace(item, predicted=[True] * len(item.truth)) for item in judged])
    chance = [counts["located"] + counts["cleared"] for counts in (expected_counts(item, rate) for item in judged)]
    rows = []
    for name, values in (("nothing: always right", always), (f"nothing: random, right with {rate:.3f}", chance)):
        means = by_problem(list(zip(problems, values, strict=True)))
        interval = [round(100 * value, 1) for value in bootstrap_ci(means)]
        rows.append({"trained on": name, "first-error accuracy": round(100 * statistics.mean(means), 1), "ci95": interval})
    return rows


def claims(args: argparse.Namespace, runs: Sequence[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    pairs = {
        kind: by_problem([pair for run in runs for pair in zip(run[kind]["problems"], figures(run[kind]["judged"]), strict=True)])
        for kind in ("hybrid", "mc")
    }
    gain, low, high = (100 * value for value in paired_bootstrap(pairs["hybrid"], pairs["mc"]))
    # A problem's solutions are alike: McNemar's test counts problems, those where one arm is oftener right than the other.
    both = list(zip(pairs["hybrid"], pairs["mc"], strict=True))
    p = mcnemar([h > m for h, m in both], [m > h for h, m in both])
    interval = f"interval {low:.1f} to {high:.1f}, McNemar over problems p = {p:.2g}"
    name = f"hybrid - mc, first-error accuracy at the same number of kept solutions, points ({interval})"
    return [
        claim("held-out problems of each seed", ">= 300", args.problems, args.problems >= 300),
        claim("seeds", ">= 3", len(runs), len(runs) >= 3),
        claim(name, "> 0, p < 0.05", round(gain, 1), low > 0 and p < 0.05),
    ]


def same_settings(args: argparse.Namespace) -> None:
    """Ends the run where its folder holds results of other settings."""
    now = {name: value for name, value in vars(args).items() if name not in NOT_IN_RESULTS}
    now |= {f"{name}_files": model_stamp(now[name]) for name in ("base", "policy", "judge")}
    args.run.mkdir(parents=True, exist_ok=True)
    path = args.run / "settings.json"
    was = json.loads(path.read_text()) if path.exists() else now
    if changed := [f"{name} was {was.get(name)}, is {now[name]}" for name in now if was.get(name) != now[name]]:
        raise SystemExit(f"{args.run} holds results of other settings ({'; '.join(changed)}); choose another --run")
    path.write_text(json.dumps(now, indent=1))


def say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/hybrid"))
    parser.add_argument("--judge", required=True, help="folder of a trained GM-PRM, or an engine")
    parser.add_argument("--judge_style", default="analysis", choices=["analysis", "critique"], help="of an engine; a folder has its own")
    parser.add_argument("--base", default="tiny-checker")
    parser.add_argument("--policy", default="tiny-policy")
    parser.add_argument("--kinds", nargs="+", default=["mc", "hybrid"], choices=list(KINDS), help="labels to train on; exact ones always")
    parser.add_argument("--train_problems", type=int, default=750)
    parser.add_argument("--samples", type=int, default=2, help="solutions of each training problem")
    parser.add_argument("--k", type=int, default=8, help="continuations of each prefix")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--problems", type=int, default=300, help="held-out problems of each seed")
    parser.add_argument("--held_out_samples", type=int, default=4, help="solutions of each held-out problem")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning_rate", type=float, default=8e-4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--chunk", type=int, default=48, help="problems labelled together, and saved together")
    parser.add_argument("--batch", type=int, default=1024, help="most sequences in one call of an engine; each call is saved")
    parser.add_argument("--folder", type=Path, help="folder for the result; else the repository's")
    args = parser.parse_args()
    args.kinds = list(dict.fromkeys(["mc", "hybrid", *args.kinds]))
    same_settings(args)
    runs = [one_seed(args, seed) for seed in args.seeds]
    rows = [row(arm, [run[arm] for run in runs]) for arm in runs[0]] + baselines([run["mc"] for run in runs])
    made = claims(args, runs)
    options = {} if args.folder is None else {"folder": args.folder}
    write_result("hybrid", "python benchmarks/hybrid.py --judge DIR", args.seeds, args.problems * len(args.seeds), rows, made, **options)
    for line in rows + made:
        say(str(line))


if __name__ == "__main__":
    main()
