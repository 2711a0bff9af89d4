"""What does it cost to score all steps at once? `python benchmarks/prm_speed.py --model tiny`

Scores a 12-step solution in three ways, in turn in one run: our scorer (one forward pass, the prompt's rendering and tokenizing
included), one plain forward pass over the very same tokens, and one request a step. Writes benchmarks/results/prm_speed.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from result import claim, write_result

from vlrm import Sample, load_engine
from vlrm.data_synth import make_problems
from vlrm.prm.sections import solution_steps
from vlrm.prm.vl_prm import VLPRM
from vlrm.serving.turns import render_turns, turn_by_turn


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def plain_forward(engine: Any, scorer: VLPRM, samples: list[Sample]) -> Callable[[], None]:
    """The model over the same prompts, made anew by its processor as any program would; logits of the last place alone."""
    import torch

    requests = [scorer.request(sample, solution_steps(sample.solution)) for sample in samples]
    texts = [render_turns(engine.prompter, request).text for request in requests]

    def call() -> None:
        inputs = engine._inputs(texts, requests, padding_side="right")
        with torch.inference_mode():
            engine.model(**inputs, use_cache=False, logits_to_keep=1)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="folder for results/prm_speed.json; else the repository's")
    args = parser.parse_args()
    engine: Any = load_engine(args.model)
    scorer = VLPRM(engine)
    rows, claims = [], []
    with tempfile.TemporaryDirectory() as folder:
        problems = make_problems(["bars"], "test", max(args.batches), args.seed, folder)
        body = "\n".join(f"Step {k}: The red bar is {k % 9 + 1}, so {k} + {k % 9 + 1} = {k + k % 9 + 1}." for k in range(1, args.steps + 1))
        for batch in args.batches:
            # A tail of its own for each sample, so that none of them is judged once for all.
            samples = [Sample(problem, f"{body}\nAnswer: {i}") for i, problem in enumerate(problems[:batch])]
            requests = [scorer.request(sample, solution_steps(sample.solution)) for sample in samples]
            plain = plain_forward(engine, scorer, samples)
            ways: dict[str, Callable[[], Any]] = {
                "one pass (ours)": lambda samples=samples: scorer(samples),
                "plain forward": plain,
                "one request a step": lambda requests=requests: turn_by_turn(engine, requests, scorer.style.words),
            }
            for call in ways.values():
                call()
            times = [{name: timed(call) for name, call in ways.items()} for _ in range(args.repeats)]
            tokens = [score.details["lengths"][-1] for score in scorer(samples)]
            ratios = {name: [t[name] / t["plain forward"] for t in times] for name in ways}
            for name in ways:
                middle = statistics.median(ratios[name])
                rows.append(
                    {
                        "way": name,
                        "solutions": batch,
                        "tokens": max(tokens),
                        "milliseconds": round(1000 * statistics.median(t[name] for t in times), 2),
                        "times a plain forward": round(middle, 3),
                        "range": [round(min(ratios[name]), 3), round(max(ratios[name]), 3)],
                    }
                )
            ratio = statistics.median(ratios["one pass (ours)"])
            claims.append(
                claim(f"one pass over {args.steps} steps / one forward, {batch} at once", "<= 1.3", round(ratio, 3), ratio <= 1.3)
            )
            slow = statistics.median(t["one request a step"] / t["one pass (ours)"] for t in times)
            claims.append(claim(f"one request a step / one pass, {batch} at once", "> 1", round(slow, 2), slow > 1))
    command = f"python benchmarks/prm_speed.py --model {args.model}"
    write_result("prm_speed", command, [args.seed], args.repeats, rows, claims, **({} if args.folder is None else {"folder": args.folder}))
    for row in rows + claims:
        print(row)


if __name__ == "__main__":
    main()
