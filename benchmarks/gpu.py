"""What vlrm does on a GPU: `benchmarks/gpu`. Builds a model, checks the engines against one another, times them, prints a short table.

Nothing is downloaded: the checks run the shipped `tiny-policy`, the timings an Idefics3 of about a billion random weights in bfloat16
(`--layers`, `--hidden`). vLLM and TRL are timed where they can be imported; what fails is a row that says why. Writes
benchmarks/results/gpu.json. `--device cpu --layers 2 --hidden 128 --problems 8` tries the script without a GPU (and writes nothing).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engines import direct_call, our_call
from result import claim, write_result

from vlrm.data_synth import WORLDS, make_problems, make_step_records
from vlrm.policy.sampling import policy_messages
from vlrm.policy.tiny import build_tiny
from vlrm.serving import load_engine
from vlrm.serving.engine import Engine, Request

WORDS = (" Correct", " Incorrect")
Row = dict[str, Any]


def attempt(rows: list[Row], name: str, work: Callable[[], Row]) -> None:
    """A row of what `work` found and its seconds, or of why it failed: one failure does not lose the others."""
    started = time.perf_counter()
    try:
        row = work()
    except Exception as error:
        row = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    rows.append({"what": name, **row, "seconds": round(time.perf_counter() - started, 1)})
    print(rows[-1], flush=True)
    free_memory()


def free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def agreement(one: Engine, other: Engine, requests: Sequence[Request]) -> Row:
    """Greedy texts that are equal, and the mean difference of the verdict words' probabilities."""
    import numpy as np

    pairs = zip(one.generate(requests), other.generate(requests), strict=True)
    same = sum(a[0].text == b[0].text for a, b in pairs) / len(requests)
    probes = [dataclasses.replace(request, prefix="Step 1 Verdict:") for request in requests]
    sides = [np.array([[np.exp(row[word]) for word in WORDS] for row in engine.choice_logprobs(probes, WORDS)]) for engine in (one, other)]
    return {"greedy equal": round(same, 4), "mean |dp|": float(f"{np.abs(sides[0] - sides[1]).mean():.2g}")}


def speed(call: Callable[[], int]) -> Row:
    """Tokens a second of the second call; the first one warms up."""
    call()
    started = time.perf_counter()
    return {"tokens/s": round(call() / (time.perf_counter() - started))}


def training(model: Path, records: Path, out: Path, steps: int, lora: bool) -> Row:
    import torch

    from vlrm.prm.train import train_gm_prm

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    summary = train_gm_prm(
        model, records, out, max_steps=steps, batch_size=8, lora=lora, bf16=torch.cuda.is_available(), progress=False, freeze_vision=False
    )
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"samples/s": summary["samples_per_second"], "peak GiB": peak and round(peak, 1), "loss": summary["metrics"].get("train_loss")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--steps", type=int, default=20, help="training steps that are timed")
    args = parser.parse_args()
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is in sight of torch; --device cpu tries the script without one")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        measure(args, Path(scratch), rows)
    if args.device == "cuda":
        command = f"benchmarks/gpu --hidden {args.hidden} --layers {args.layers} --problems {args.problems}"
        failed = [row["what"] for row in rows if "failed" in row]
        done = claim("everything ran", "yes", ", ".join(failed) or "yes", not failed)
        write_result("gpu", command, [0], args.problems, rows, [done])


def measure(args: argparse.Namespace, scratch: Path, rows: list[Row]) -> None:
    problems = make_problems(list(WORLDS), "test", args.problems, 0, scratch / "problems")
    make_step_records(list(WORLDS), "train", 8 * args.steps, 0, scratch / "records.jsonl")
    requests = [Request(policy_messages(problem), problem.images, max_tokens=128) for problem in problems]
    size = {
        "hidden": args.hidden,
        "layers": args.layers,
        "vision_hidden": max(96, args.hidden // 4),
        "vision_layers": max(2, args.layers // 2),
    }
    big = build_tiny(scratch / "big", **size)
    vllm = importlib.util.find_spec("vllm") is not None

    def engines_agree(spec: str, **options: Any) -> Row:
        one, other = load_engine("tiny-policy", device="cpu"), load_engine(spec, **options)
        try:
            return agreement(one, other, requests)
        finally:
            other.close()

    attempt(rows, "transformers against CPU, tiny, float32", lambda: engines_agree("tiny-policy", device=args.device, dtype="float32"))
    attempt(rows, "transformers against CPU, tiny, bfloat16", lambda: engines_agree("tiny-policy", device=args.device, dtype="bfloat16"))
    if vllm:
        attempt(rows, "vLLM against CPU, tiny, float32", lambda: engines_agree("vllm:tiny-policy", dtype="float32", **memory(args, 0.1)))

    def transformers_speed() -> Row:
        engine = load_engine(str(big), device=args.device, dtype="bfloat16")
        return {"million weights": sum(p.numel() for p in engine.model.parameters()) // 10**6} | speed(our_call(engine, requests))

    def vllm_speed() -> Row:
        engine: Any = load_engine(f"vllm:{big}", dtype="bfloat16", max_model_len=1024, **memory(args, 0.5))
        try:
            ours, direct = speed(our_call(engine, requests)), speed(direct_call(engine, requests))
            return ours | {"of vLLM called directly": round(ours["tokens/s"] / direct["tokens/s"], 3)}
        finally:
            engine.close()

    attempt(rows, "transformers, generate", transformers_speed)
    if vllm:
        attempt(rows, "vLLM, generate", vllm_speed)
    for name, lora in (("full", False), ("LoRA", True)):
        attempt(
            rows,
            f"train GM-PRM, {name}",
            lambda lora=lora: training(big, scratch / "records.jsonl", scratch / f"prm-{lora}", args.steps, lora),
        )


def memory(args: argparse.Namespace, share: float) -> dict[str, float]:
    return {"gpu_memory_utilization": share} if args.device == "cuda" else {}


if __name__ == "__main__":
    main()
