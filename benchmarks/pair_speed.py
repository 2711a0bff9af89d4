"""What do comparisons cost through vLLM? `python benchmarks/pair_speed.py --model tiny`

A pairwise judge compares N candidates with one reference for each question. The prompts put pictures, question and reference first, so that
vLLM's prefix cache should serve all N: counted are the tokens that it really read against the tokens of all prompts. The same prompts go to
vLLM directly, in turn, for the throughput; and an evaluation of --pairs pairs is watched for the memory that it holds above the model.
Writes benchmarks/results/pair_speed.json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from result import claim, write_result

from vlrm import Pair, Problem, Sample, load_engine
from vlrm.data_synth import make_problems
from vlrm.data_synth.problems import truth_of
from vlrm.data_synth.worlds.base import format_solution, right_solution
from vlrm.rm.judge import Judge
from vlrm.rm.pair_eval import evaluate_pair_file
from vlrm.rm.preferences import Preference
from vlrm.types import Score, Usage


def pairs_of(problems: list[Problem], candidates: int) -> list[Pair]:
    """For each problem a right solution as reference, against candidates that differ at their end."""
    made = []
    for problem in problems:
        world, scene = truth_of(problem)
        reference = format_solution(right_solution(world, scene))
        made += [Pair(problem, reference, f"{reference} {k}", 0) for k in range(candidates)]
    return made


def prefix_counts(engine: Any) -> dict[str, float]:
    """vLLM's own counters: tokens that were looked up in the prefix cache, and those found."""
    found = {metric.name: metric.value for metric in engine.llm.get_metrics() if hasattr(metric, "value")}
    return {name: found[f"vllm:prefix_cache_{name}"] for name in ("queries", "hits")}


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def direct(engine: Any, judge: Judge, pairs: list[Pair]) -> None:
    """The same prompts, given to vLLM as its own users would."""
    from vllm import SamplingParams

    from vlrm.serving.images import open_image

    prompts = []
    for pair in pairs:
        request = judge.request(pair)
        text = engine.prompter.processor.apply_chat_template(request.messages, tokenize=False, add_generation_prompt=True)
        images = [open_image(image) for image in request.images]
        prompts.append({"prompt": text, "multi_modal_data": {"image": images}})
    engine.llm.generate(prompts, SamplingParams(max_tokens=judge.max_tokens, temperature=0.0), use_tqdm=False)


class Picked:
    """A scorer that opens every picture, as any model's processor must, and costs nothing else."""

    def __init__(self) -> None:
        self.usage = Usage()

    def __call__(self, samples: list[Sample]) -> list[Score]:
        from vlrm.serving.images import open_images

        pictures = open_images([sample.problem.images for sample in samples])
        self.usage += Usage(calls=len(samples))
        return [Score(float(sum(picture.width for picture in group) + len(s.solution))) for s, group in zip(samples, pictures, strict=True)]


def memory_above(call: Callable[[], Any]) -> float:
    """GB that the process grows by while `call` runs, at its largest."""

    def now() -> float:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * 4096 / 1e9

    before, most, over = now(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            most[0] = max(most[0], now())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        call()
    finally:
        over.set()
        thread.join()
    return max(most[0], now()) - before


def evaluation(pairs: int, folder: Path, side: int) -> Callable[[], Any]:
    """`vlrm eval pairs` on that many pairs, each with a picture of its own."""
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
    preferences = []
    for i in range(pairs):
        path = folder / f"{i}.jpg"
        Image.fromarray(np.roll(noise, i, axis=0)).resize((side, side)).save(path)
        preferences.append(Preference(Problem(f"p{i}", "Which?", [str(path)]), f"good {i}", f"bad {i}"))
    return lambda: evaluate_pair_file(preferences, folder / "eval", Picked, settings={"scorer": "opens pictures"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--problems", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=1000)
    parser.add_argument("--side", type=int, default=1024, help="pixels of the pictures of the evaluation")
    parser.add_argument("--block", type=int, help="tokens in a block of vLLM's cache; else its own default")
    parser.add_argument("--folder", type=Path, help="folder for results/pair_speed.json; else the repository's")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        held = memory_above(evaluation(args.pairs, Path(folder), args.side))
        problems = make_problems(["bars"], "test", args.problems, 0, folder)
        more = {} if args.block is None else {"block_size": args.block}
        engine: Any = load_engine(f"vllm:{args.model}", disable_log_stats=False, **more)
        judge = Judge(engine, orders="given", max_tokens=args.max_tokens)
        pairs = pairs_of(problems, args.candidates)
        judge.compare(pairs)  # kernels are compiled, pictures are known
        ours, theirs = [], []
        for _ in range(args.repeats):
            for times, call in ((ours, lambda: judge.compare(pairs)), (theirs, lambda: direct(engine, judge, pairs))):
                engine.llm.reset_prefix_cache()
                times.append(timed(call))
        engine.llm.reset_prefix_cache()
        before = prefix_counts(engine)
        judge.compare(pairs)
        after = prefix_counts(engine)
        engine.close()
    naive, hits = (after[name] - before[name] for name in ("queries", "hits"))
    share, speed = (naive - hits) / naive, [b / a for a, b in zip(ours, theirs, strict=True)]
    rows = [
        {
            "model": args.model,
            "comparisons": len(pairs),
            "prompt tokens": int(naive),
            "prompt tokens read": int(naive - hits),
            "ours, comparisons/s": round(len(pairs) / statistics.median(ours), 2),
            "vLLM directly, comparisons/s": round(len(pairs) / statistics.median(theirs), 2),
            "GB above the model": round(held, 3),
        }
    ]
    middle = statistics.median(speed)
    spread = f"{middle:.3f} ({min(speed):.3f} to {max(speed):.3f}, {len(speed)} pairs)"
    claims = [
        claim(f"prefill tokens / naive count, {args.candidates} candidates to a reference", "<= 0.6", round(share, 3), share <= 0.6),
        claim("throughput / vLLM called directly", ">= 0.95", spread, middle >= 0.95),
        claim(f"GB that an evaluation of {args.pairs} pairs holds above the model", "<= 2", round(held, 3), held <= 2),
    ]
    command = f"python benchmarks/pair_speed.py --model {args.model} --problems {args.problems} --candidates {args.candidates}"
    command += f" --repeats {args.repeats}" + (f" --block {args.block}" if args.block else "")
    write_result("pair_speed", command, [0], len(pairs), rows, claims, **({} if args.folder is None else {"folder": args.folder}))
    for row in rows + claims:
        print(row)


if __name__ == "__main__":
    main()
