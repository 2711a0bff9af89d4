"""What do labels of the perception section give? `python benchmarks/perception.py --run runs/perception`

Trains two VL-PRMs for each seed on exact labels of the worlds whose solutions read the picture first and reason then: one on all labels,
one on those of the reasoning section alone (there an error of perception shows in the first reasoning step), both on the same number
of tokens. Measures the F1 of finding perception errors and Best-of-8 on held-out problems. Every stage leaves its result in the
folder; started again it goes on. Writes benchmarks/results/perception.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from result import claim, write_result

from vlrm import Sample, load_engine, load_scorer
from vlrm.data_synth import get_world, judge_steps, make_problems, make_step_records
from vlrm.policy import SearchResult, best_of_n, self_consistency
from vlrm.policy.result import result_from_record
from vlrm.policy.search_file import search_file
from vlrm.prm.record_files import read_records
from vlrm.prm.records import StepRecord
from vlrm.prm.steps import split_steps
from vlrm.rm.answers import same_answer
from vlrm.rm.stats import accuracy_ci, mcnemar
from vlrm.rm.step_metrics import f1, first_error

SECTION_ENDS = {"bars": 3, "grid": 2}  # perception steps come first in these worlds; the ladder's steps are both at once
ARMS = {"all labels": ("perception", "reasoning"), "reasoning labels only": ("reasoning",)}


def kinds(world: str, steps: int) -> tuple[str, ...]:
    return tuple("perception" if k < SECTION_ENDS[get_world(world).name] else "reasoning" for k in range(steps))


def with_kinds(record: StepRecord) -> StepRecord:
    """The record's exact verdicts as labels, with the section of each step; critiques are not needed here."""
    judged = tuple(critique.ok for critique in record.critiques)
    return replace(
        record, kinds=kinds(record.source.split("/")[0], len(record.steps)), judge=judged, critiques=None, first_error=None, correction=None
    )


def same_tokens(model: str, records: Sequence[StepRecord], settings: dict[str, Any]) -> dict[str, tuple[list[StepRecord], int]]:
    """For each arm the first records whose chats come to the same number of tokens, and that number."""
    from transformers import AutoProcessor

    from vlrm.prm.train_vl_prm import VerdictCollator, Verdicts
    from vlrm.prm.verdicts import TargetRule, VerdictStyle
    from vlrm.serving.load import model_path

    processor = AutoProcessor.from_pretrained(model_path(model))
    usable, lengths = {}, {}
    for arm, sections in ARMS.items():
        rule = TargetRule(kinds=sections)
        usable[arm] = [record for record in records if any(value is not None for value in rule.values(record))]
        form = Verdicts(VerdictStyle(system=settings["system"], headers=settings["headers"]), rule)
        lengths[arm] = list(VerdictCollator(processor, usable[arm], form).lengths(range(len(usable[arm]))))
    budget = min(map(sum, lengths.values()))
    chosen = {}
    for arm in ARMS:
        spent, kept = 0, 0
        while kept < len(lengths[arm]) and spent + lengths[arm][kept] <= budget:
            spent, kept = spent + lengths[arm][kept], kept + 1
        chosen[arm] = (usable[arm][:kept], spent)
    return chosen


def perception_f1(scorer: Any, samples: Sequence[Sample]) -> tuple[float, int]:
    """F1 of the class "wrong" on perception steps, up to the first error (after it a verifier calls everything wrong); and their number."""
    said, true = [], []
    for sample, score in zip(samples, scorer(samples), strict=True):
        steps = [step.text for step in split_steps(sample.solution)]
        truths = [truth.right for truth in judge_steps(sample.problem, steps)]
        error = first_error(truths)
        last = min(len(steps), SECTION_ENDS[sample.problem.meta["world"]]) if error is None else error + 1
        for k in range(min(last, SECTION_ENDS[sample.problem.meta["world"]])):
            said.append(score.verdicts[k].correct is False)
            true.append(not truths[k])
    return f1(said, true), sum(true)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/perception"))
    parser.add_argument("--base", default="tiny-checker")
    parser.add_argument("--policy", default="tiny-policy")
    parser.add_argument("--train_problems", type=int, default=2000)
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning_rate", type=float, default=8e-4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="folder for the result; else the repository's")
    args = parser.parse_args()
    policy = load_engine(args.policy)
    outcomes = [outcome for seed in args.seeds for outcome in one_seed(args, policy, seed)]
    rows = []
    for arm in ARMS:
        own = [o for o in outcomes if o["arm"] == arm]
        accuracy, low, high = accuracy_ci([right for o in own for right in o["right"]])
        scores = [o["perception_f1"] for o in own]
        rows.append(
            {
                "arm": arm,
                "perception F1": round(100 * statistics.mean(scores), 1),
                "F1 by seed": [round(100 * score, 1) for score in scores],
                f"best of {args.n}": round(100 * accuracy, 1),
                "ci95": [round(100 * low, 1), round(100 * high, 1)],
                "majority": round(100 * statistics.mean(statistics.mean(o["majority"]) for o in own), 1),
                "random": round(100 * statistics.mean(statistics.mean(o["random"]) for o in own), 1),
                "oracle": round(100 * statistics.mean(statistics.mean(o["oracle"]) for o in own), 1),
                "training tokens": sum(o["tokens"] for o in own),
                "policy tokens": sum(o["policy_tokens"] for o in own),
                "scorer tokens": sum(o["scorer_tokens"] for o in own),
                "seconds of training": round(sum(o["seconds"] for o in own)),
            }
        )
    with_labels, without = ([right for o in outcomes if o["arm"] == arm for right in o["right"]] for arm in ARMS)
    gain = rows[0]["perception F1"] - rows[1]["perception F1"]
    change, p = 100 * (statistics.mean(with_labels) - statistics.mean(without)), mcnemar(with_labels, without)
    claims = [
        claim("perception-error F1, points gained by perception labels", ">= 10", round(gain, 1), gain >= 10),
        claim(
            f"Best-of-{args.n} accuracy, points changed (McNemar p = {p:.2g})",
            ">= 0, or p >= 0.05",
            round(change, 1),
            change >= 0 or p >= 0.05,
        ),
        claim("perception errors measured, over all seeds", ">= 100", *_enough(outcomes)),
    ]
    options = {} if args.folder is None else {"folder": args.folder}
    write_result("perception", "python benchmarks/perception.py", args.seeds, args.problems * len(args.seeds), rows, claims, **options)
    for row in rows + claims:
        print(row)


def _enough(outcomes: Sequence[dict[str, Any]]) -> tuple[int, bool]:
    count = sum(o["errors"] for o in outcomes) // len(ARMS)
    return count, count >= 100


def one_seed(args: argparse.Namespace, policy: Any, seed: int) -> list[dict[str, Any]]:
    """Both arms of a seed: data, training, measuring; what is done is taken from its file."""
    home = args.run / f"seed{seed}"
    settings = {"system": "", "headers": False, "learning_rate": args.learning_rate, "batch_size": args.batch_size, "epochs": args.epochs}
    path = home / "train" / "records.jsonl"
    if not path.exists():
        make_step_records(list(SECTION_ENDS), "train", args.train_problems, seed + 1, path, policy=policy, corruptions=2)
    problems = make_problems(list(SECTION_ENDS), "test", args.problems, 100 + seed, home / "problems")
    sampling = {"temperature": 0.6, "max_tokens": 160}
    pooled = search_file(
        problems,
        lambda batch: self_consistency(batch, policy, n=args.n, seed=seed, **sampling),
        home / "pool.jsonl",
        settings={"n": args.n},
    )
    results = [result_from_record({name: row[name] for name in [item.name for item in fields(SearchResult)]}) for row in pooled]
    pools = [list(result.candidates) for result in results]
    base = {
        "majority": [row["right"] for row in pooled],
        "random": [statistics.mean(same_answer(c.answer, p.answer) for c in pool) for p, pool in zip(problems, pools, strict=True)],
        "oracle": [any(same_answer(c.answer, p.answer) for c in pool) for p, pool in zip(problems, pools, strict=True)],
    }
    chosen, outcomes = None, []
    for arm, sections in ARMS.items():
        out = home / arm.replace(" ", "_")
        done = out.with_suffix(".json")
        if not done.exists():
            chosen = chosen or same_tokens(args.base, [with_kinds(record) for record in read_records(path)], settings)
            records, tokens = chosen[arm]
            from vlrm.prm.train_vl_prm import train_vl_prm

            summary = train_vl_prm(args.base, records, out, label_kinds=sections, seed=seed, save_steps=200, **settings)
            scorer = load_scorer(out)
            samples = [Sample(problem, candidate.text) for problem, pool in zip(problems, pools, strict=True) for candidate in pool]
            score, errors = perception_f1(scorer, samples)
            found = best_of_n(problems, policy, scorer, n=args.n, seed=seed, pool=pools, **sampling)
            outcome = {
                "arm": arm,
                "seed": seed,
                "tokens": tokens,
                "seconds": summary["seconds"],
                "perception_f1": score,
                "errors": errors,
                "right": [same_answer(result.answer, problem.answer) for result, problem in zip(found, problems, strict=True)],
                "policy_tokens": sum(result.cost.policy.completion_tokens for result in found),
                "scorer_tokens": sum(result.cost.scorer.prompt_tokens for result in found),
                **base,
            }
            part = done.with_suffix(".part")
            part.write_text(json.dumps(outcome))
            os.replace(part, done)
        outcomes.append(json.loads(done.read_text()))
        print(f"{time.strftime('%H:%M:%S')} seed {seed}, {arm}: perception F1 {outcomes[-1]['perception_f1']:.3f}", flush=True)
    return outcomes


if __name__ == "__main__":
    main()
