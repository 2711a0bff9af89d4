"""Do the three engines agree, and what do they cost? `python benchmarks/engines.py --scorer runs/quickstart/gm_prm`

Needs vLLM. Scores sampled solutions with one trained GM-PRM through transformers, vLLM in process and `vllm serve`; then
times scoring through our vLLM engine against vLLM called directly with the same prepared requests, alternately in one
run, and against scoring one solution at a time with `model.generate`. Writes benchmarks/results/engines.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from result import claim, write_result
from scipy.stats import spearmanr

from vlrm import Sample, load_engine, load_scorer
from vlrm.data_synth import WORLDS, make_problems
from vlrm.policy import sample_pool
from vlrm.policy.sampling import policy_messages
from vlrm.rm.load import read_card
from vlrm.serving.engine import Engine, Request


@contextlib.contextmanager
def vllm_server(model: Path) -> Iterator[str]:
    """`vllm serve` on a free loopback port, ended with its children when the block is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # What `vllm serve` runs; the command itself looks for a package named vllm, which the CPU build is not.
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        str(model),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024"]
    env = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    server = subprocess.Popen([*command, *options], env=env, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            if server.poll() is not None:
                raise SystemExit("vllm serve ended before it was ready; its log is above")
            time.sleep(1)
        yield f"{url}/v1"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 15)
        server.wait(timeout=60)


def step_scores(scorer: Any, samples: Sequence[Sample]) -> tuple[list[tuple[float, ...]], float]:
    started = time.perf_counter()
    scores = [score.steps for score in scorer(samples)]
    return scores, time.perf_counter() - started


def agreement(first: Sequence[tuple[float, ...]], second: Sequence[tuple[float, ...]]) -> tuple[float, float]:
    """Spearman's rho and mean absolute difference over all steps."""
    a, b = np.concatenate([np.array(x) for x in first]), np.concatenate([np.array(x) for x in second])
    return float(spearmanr(a, b).statistic), float(np.abs(a - b).mean())


def greedy_answers(engine: Engine, problems: Sequence[Any]) -> list[str]:
    requests = [Request(policy_messages(problem), problem.images, max_tokens=160) for problem in problems]
    return [completions[0].text for completions in engine.generate(requests)]


def direct_call(engine: Any, requests: Sequence[Request]) -> Callable[[], int]:
    """vLLM called with the engine's own prepared prompts and parameters; returns the number of tokens written."""
    from vlrm.serving.images import open_images

    pictures = open_images([request.images for request in requests])
    prompts = [
        {"prompt_token_ids": engine.prompter.ids(engine.prompter.text(request)), "multi_modal_data": {"image": images}}
        for request, images in zip(requests, pictures, strict=True)
    ]
    params = [engine._params(request, engine.prompter.track_ids(request.track)) for request in requests]

    def call() -> int:
        outputs = engine.llm.generate(prompts, params, use_tqdm=False)
        return sum(len(choice.token_ids) for output in outputs for choice in output.outputs)

    return call


def our_call(engine: Any, requests: Sequence[Request]) -> Callable[[], int]:
    return lambda: sum(c.completion_tokens for completions in engine.generate(requests) for c in completions)


def timed(call: Callable[[], int]) -> float:
    """Tokens per second."""
    started = time.perf_counter()
    return call() / (time.perf_counter() - started)


def ratio(ours: Callable[[], int], direct: Callable[[], int], turned: bool) -> float:
    """Our tokens per second over theirs, one right after the other; `turned` lets theirs go first."""
    if turned:
        other = timed(direct)
        return timed(ours) / other
    return timed(ours) / timed(direct)


def one_at_a_time(path: Path, requests: Sequence[Request]) -> float:
    """Solutions per second with `model.generate`, one solution in each call, as a notebook would do it."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from vlrm.serving.images import open_images

    processor = AutoProcessor.from_pretrained(path)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    started = time.perf_counter()
    for request in requests:
        text = processor.apply_chat_template(list(request.messages), add_generation_prompt=True)
        inputs = processor(text=[text], images=open_images([request.images]), return_tensors="pt")
        with torch.inference_mode():
            model.generate(**inputs, max_new_tokens=request.max_tokens, do_sample=False)
    return len(requests) / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scorer", type=Path, default=Path("runs/quickstart/gm_prm"))
    parser.add_argument("--solutions", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seed", type=int, default=11)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        problems = make_problems(list(WORLDS), "test", args.solutions, args.seed, folder)
        pools = sample_pool(problems, load_engine("tiny-policy"), n=1, seed=args.seed, temperature=0.6, max_tokens=160)
        samples = [Sample(problem, pool[0].text) for problem, pool in zip(problems, pools, strict=True)]
        rows, claims = measure(args, problems, samples)
    write_result("engines", "python benchmarks/engines.py --scorer DIR", [args.seed], len(samples), rows, claims)
    for row in claims:
        print(row)


def measure(
    args: argparse.Namespace, problems: Sequence[Any], samples: Sequence[Sample]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    scores, answers, seconds = {}, {}, {}
    here = load_scorer(args.scorer)
    requests = [here._request(sample) for sample in samples]
    scores["transformers"], seconds["transformers"] = step_scores(here, samples)
    answers["transformers"] = greedy_answers(here.engine, problems)
    here.engine.close()

    engine: Any = load_engine(f"vllm:{args.scorer}", max_model_len=1024)
    scorer = load_scorer(args.scorer, engine=engine)
    step_scores(scorer, samples)  # compiles kernels, fills caches
    scores["vllm"], seconds["vllm"] = step_scores(scorer, samples)
    answers["vllm"] = greedy_answers(engine, problems)
    ours, direct = our_call(engine, requests), direct_call(engine, requests)
    ratios = [ratio(ours, direct, turned=bool(i % 2)) for i in range(args.repeats)]
    engine.close()

    with vllm_server(args.scorer) as url:
        remote = load_scorer(url, **read_card(args.scorer)["settings"])
        step_scores(remote, samples)
        scores["http"], seconds["http"] = step_scores(remote, samples)
        answers["http"] = greedy_answers(remote.engine, problems)
    single = one_at_a_time(args.scorer, requests[: max(8, len(requests) // 10)])

    rows, claims = [], []
    for name in scores:
        rho, difference = agreement(scores["transformers"], scores[name])
        same = sum(a == b for a, b in zip(answers["transformers"], answers[name], strict=True)) / len(problems)
        rows.append(
            {
                "engine": name,
                "solutions/s": round(len(samples) / seconds[name], 1),
                "Spearman": round(rho, 4),
                "mean absolute difference": round(difference, 5),
                "greedy answers equal": round(same, 4),
            }
        )
        if name != "transformers":
            claims.append(claim(f"{name}: Spearman of step probabilities", ">= 0.99", round(rho, 4), rho >= 0.99))
            claims.append(claim(f"{name}: mean absolute difference", "<= 0.02", round(difference, 5), difference <= 0.02))
            claims.append(claim(f"{name}: greedy generations equal", ">= 0.95", round(same, 4), same >= 0.95))
    rows.append({"engine": "model.generate, one at a time", "solutions/s": round(single, 2)})
    middle = statistics.median(ratios)
    spread = f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {len(ratios)} pairs)"
    claims.append(claim("our vLLM engine / vLLM called directly, tokens per second", ">= 0.95", spread, middle >= 0.95))
    speedup = len(samples) / seconds["vllm"] / single
    claims.append(claim("our vLLM engine / one at a time, solutions per second", ">= 5", round(speedup, 1), speedup >= 5))
    return rows, claims


if __name__ == "__main__":
    main()
