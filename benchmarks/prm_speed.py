"""What does it cost to score all steps at once, and to label with shared prefixes? `python benchmarks/prm_speed.py --model tiny`

`passes`: scores a 12-step solution in three ways, by turns in one run: our scorer (one forward pass, the prompt's rendering and tokenizing
included), one plain forward pass over the very same tokens, and one request a step. `prefill`: makes flat Monte-Carlo labels through vLLM
with its prefix cache and without, and takes the prefill tokens that vLLM says it has computed. `--parts` measures one of the two and
keeps what was measured of the other. Writes benchmarks/results/prm_speed.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from result import RESULTS, claim, commit, write_result

from vlrm import Sample, load_engine
from vlrm.data_synth import WORLDS, make_problems
from vlrm.data_synth.labels.flat import flat
from vlrm.data_synth.labels.rollouts import Rollouts, Solution, lockstep, sample_solutions
from vlrm.prm.sections import solution_steps
from vlrm.prm.vl_prm import VLPRM
from vlrm.serving.turns import render_turns, turn_by_turn

Part = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # rows and claims
LABELS = "MC labels through vLLM"


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


def passes(args: argparse.Namespace, folder: str) -> Part:
    """Our scorer, a plain forward pass and one request a step."""
    engine: Any = load_engine(args.model)
    scorer, rng = VLPRM(engine), random.Random(args.seed)
    rows, claims = [], []
    problems = make_problems(["bars"], "test", max(args.batches), args.seed, folder)
    body = "\n".join(f"Step {k}: The red bar is {k % 9 + 1}, so {k} + {k % 9 + 1} = {k + k % 9 + 1}." for k in range(1, args.steps + 1))
    for batch in args.batches:
        # A tail of its own for each sample, so that none of them is judged once for all.
        samples = [Sample(problem, f"{body}\nAnswer: {i}") for i, problem in enumerate(problems[:batch])]
        requests = [scorer.request(sample, solution_steps(sample.solution)) for sample in samples]
        ways: dict[str, Callable[[], Any]] = {
            "one pass (ours)": lambda samples=samples: scorer(samples),
            "plain forward": plain_forward(engine, scorer, samples),
            "one request a step": lambda requests=requests: turn_by_turn(engine, requests, scorer.style.words),
        }
        for call in ways.values():
            call()
        # What comes after the per-step requests finds the processor's caches cold, so the order is drawn anew every time.
        times = [{name: timed(ways[name]) for name in rng.sample(list(ways), len(ways))} for _ in range(args.repeats)]
        tokens = [score.details["lengths"][-1] for score in scorer(samples)]
        ratios = {name: [t[name] / t["plain forward"] for t in times] for name in ways}
        for name in ways:
            rows.append(
                {
                    "way": name,
                    "solutions": batch,
                    "tokens": max(tokens),
                    "milliseconds": round(1000 * statistics.median(t[name] for t in times), 2),
                    "times a plain forward": round(statistics.median(ratios[name]), 3),
                    "range": [round(min(ratios[name]), 3), round(max(ratios[name]), 3)],
                }
            )
        ratio = statistics.median(ratios["one pass (ours)"])
        claims.append(claim(f"one pass over {args.steps} steps / one forward, {batch} at once", "<= 1.3", round(ratio, 3), ratio <= 1.3))
        slow = statistics.median(t["one request a step"] / t["one pass (ours)"] for t in times)
        claims.append(claim(f"one request a step / one pass, {batch} at once", "> 1", round(slow, 2), slow > 1))
    return rows, claims


def prefill(args: argparse.Namespace, folder: str) -> Part:
    """Flat labels (k continuations of each prefix) of the same solutions through vLLM: without its prefix cache, and with it."""
    problems = make_problems(list(WORLDS), "test", -(-args.solutions // args.samples), args.seed, folder)
    sampler = Rollouts(load_engine(args.policy), seed=args.seed, max_tokens=160)
    pools, _ = sample_solutions(problems, sampler, args.samples)
    solutions = [solution for pool in pools for solution in pool]
    unshared, rows = labelled(args, solutions, enable_prefix_caching=False, block_size=args.block_sizes[0]), []
    ways = {"no prefix cache": unshared}
    ways |= {f"prefix cache, blocks of {size}": labelled(args, solutions, block_size=size) for size in args.block_sizes}
    for name, found in ways.items():
        rows.append(
            {
                "way": f"{LABELS}, {name}",
                "solutions": len(solutions),
                "continuations": found["rollouts"],
                "prompt tokens": found["total"],
                "prefill tokens computed": found["computed"],
                "times unshared": round(found["computed"] / unshared["computed"], 3),
                "steps labelled alike": round(agreeing(found["labels"], unshared["labels"]), 3),
                "seconds": round(found["seconds"], 1),
            }
        )
    first = rows[1]
    measured, n = first["times unshared"], len(solutions)
    name = f"{LABELS}, k = {args.k}: prefill tokens computed with shared prefixes / without (blocks of {args.block_sizes[0]})"
    return rows, [claim(name, "<= 0.5", measured, measured <= 0.5), claim(f"{LABELS}: solutions", ">= 50", n, n >= 50)]


def labelled(args: argparse.Namespace, solutions: Sequence[Solution], **options: Any) -> dict[str, Any]:
    """The labels of all solutions by an engine that is started for them, and vLLM's own counters of what that took. Kept in --work, because
    a start of vLLM takes a minute or more."""
    about = {"policy": args.policy, "k": args.k, "seed": args.seed, "solutions": [solution.id for solution in solutions], **options}
    path = args.work / f"prefill-{'-'.join(f'{name}-{value}' for name, value in options.items())}.json"
    if path.exists() and (found := json.loads(path.read_text()))["about"] == about:
        return found
    engine: Any = load_engine(f"vllm:{args.policy}", disable_log_stats=False, max_model_len=1024, **options)
    try:
        rollouts = Rollouts(engine, seed=args.seed, max_tokens=160)
        before, started = counters(engine), time.perf_counter()
        estimates = lockstep([flat(solution, args.k) for solution in solutions], rollouts)
        seconds, after = time.perf_counter() - started, counters(engine)
    finally:
        engine.close()
    spent = {name: after[name] - before.get(name, 0) for name in after}
    labels = [estimate.hard for estimate in estimates]
    found = {"about": about, **spent, "seconds": seconds, "rollouts": rollouts.counts["rollouts"], "labels": labels}
    args.work.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found))
    part.replace(path)
    return json.loads(path.read_text())


def counters(engine: Any) -> dict[str, int]:
    """Prompt tokens so far by vLLM's own count: all of them, and those that it has computed rather than read from its cache."""
    found = {"total": 0, "computed": 0}
    for metric in engine.llm.get_metrics():
        if metric.name == "vllm:prompt_tokens":
            found["total"] += metric.value
        if metric.name == "vllm:prompt_tokens_by_source" and metric.labels["source"] == "local_compute":
            found["computed"] += metric.value
    return found


def agreeing(ours: Sequence[Sequence[Any]], theirs: Sequence[Sequence[Any]]) -> float:
    """Share of steps with the same label."""
    return statistics.mean(a == b for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True))


PARTS: dict[str, Callable[[argparse.Namespace, str], Part]] = {"passes": passes, "prefill": prefill}


def kept(path: Path, parts: Sequence[str]) -> Part:
    """What an earlier run measured of the parts that are not measured now."""
    if not path.exists():
        return [], []
    old = json.loads(path.read_text())
    rows = [{"part": "passes", "commit": old["commit"], **row} for row in old["rows"]]
    claims = [row for row in old["claims"] if ("prefill" if row["name"].startswith(LABELS) else "passes") not in parts]
    return [row for row in rows if row["part"] not in parts], claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--policy", default="tiny-policy")
    parser.add_argument("--solutions", type=int, default=60)
    parser.add_argument("--samples", type=int, default=2, help="solutions of each problem")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--block_sizes", type=int, nargs="+", default=[32, 128], help="of vLLM's cache; on a CPU multiples of 32")
    parser.add_argument("--work", type=Path, default=Path("runs/prm_speed"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=RESULTS, help="folder for prm_speed.json; else the repository's")
    args = parser.parse_args()
    rows, claims = kept(args.folder / "prm_speed.json", args.parts)
    now = commit()
    for part in args.parts:
        with tempfile.TemporaryDirectory() as folder:
            found, made = PARTS[part](args, folder)
        rows, claims = rows + [{"part": part, "commit": now, **row} for row in found], claims + made
    write_result("prm_speed", f"python benchmarks/prm_speed.py --model {args.model}", [args.seed], args.repeats, rows, claims, args.folder)
    for row in rows + claims:
        print(row)


if __name__ == "__main__":
    main()
