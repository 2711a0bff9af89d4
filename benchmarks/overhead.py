"""What does the loop cost beside TRL's own? `python benchmarks/overhead.py --scorer runs/strategies/vl_prm`

The same GRPO steps three ways, in rounds, with equal seeds and so with equal completions: TRL's own trainer with the scorer as a plain
reward function (its step plus the scorer's own time), ours with the scorer in this process, and ours with the same scorer behind
`vlrm serve`, `--concurrency` requests at a time. The ratios of the summed step times to TRL's, with an interval over rounds and steps.
A VL-PRM reads its verdict tokens in one pass; a GM-PRM writes. Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from result import RESULTS, claim, write_result

from vlrm import load_scorer
from vlrm.data_synth import WORLDS, make_problems
from vlrm.policy.grpo_data import rows
from vlrm.policy.grpo_train import Recipe, trl_config
from vlrm.policy.rewards import Reward
from vlrm.serving.load import model_path
from vlrm.types import Sample, Score

GOALS = {"in process": 1.05, "http": 1.10}


class Timed:
    """A scorer that adds up the seconds it takes."""

    def __init__(self, scorer: Any):
        self.scorer, self.seconds = scorer, 0.0

    @property
    def usage(self) -> Any:
        return self.scorer.usage

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        started = time.perf_counter()
        try:
            return self.scorer(samples)
        finally:
            self.seconds += time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/overhead"))
    parser.add_argument("--scorer", type=Path, required=True)
    parser.add_argument("--policy", default="tiny-policy")
    parser.add_argument("--arms", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--steps", type=int, default=12, help="steps of a round; the first one, which warms up, does not count")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--completions", type=int, default=128)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=RESULTS)
    args = parser.parse_args()
    problems = make_problems(list(WORLDS), "train", 512, 7, args.run / "problems")
    local = load_scorer(args.scorer)
    seconds: dict[str, list[list[float]]] = {}
    tokens: dict[str, float] = {}
    shares: list[float] = []
    with served(args) if "http" in args.arms else nothing() as remote:
        for number in range(args.rounds):
            for arm, scorer in (("trl", local), ("in process", local), ("http", remote)):
                if arm != "trl" and arm not in args.arms:
                    continue
                timed = Timed(scorer)
                found, written = run(args, arm, timed, problems, number)
                seconds.setdefault(arm, []).append(found)
                tokens[arm] = tokens.get(arm, 0) + written
                total = sum(seconds[arm][-1])
                shares += [timed.seconds / total] if arm == "trl" else []
                print(f"round {number}, {arm}: {total:.1f} s, {timed.seconds:.1f} s of it in the scorer", flush=True)
    rows_, claims = [], []
    for arm, found in seconds.items():
        ratio, low, high = ratio_ci(found, seconds["trl"])
        steps = np.array(found)
        rows_.append({
            "arm": arm, "seconds a step": round(float(steps.mean()), 3), "ratio": round(ratio, 3), "ci95": [round(low, 3), round(high, 3)],
            "sampled tokens a second": round(tokens[arm] / float(steps.sum())),
        })  # fmt: skip
        if arm in GOALS:
            goal = f"<= {GOALS[arm]} times a plain TRL step and the scorer's own time"
            claims.append(claim(f"a step, {arm}", goal, f"{ratio:.3f} [{low:.3f}, {high:.3f}]", ratio <= GOALS[arm]))
    rows_.append({"arm": "the scorer's share of TRL's step", "ratio": round(float(np.mean(shares)), 3)})
    write_result(
        "overhead", "python benchmarks/overhead.py", list(range(args.rounds)), args.rounds * (args.steps - 1), rows_, claims, args.folder
    )
    for line in rows_ + claims:
        print(line)


def run(args: argparse.Namespace, arm: str, scorer: Timed, problems: Sequence[Any], seed: int) -> tuple[list[float], float]:
    """Seconds of each step after the first, and the tokens that the policy wrote in them."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback
    from trl import GRPOTrainer

    from vlrm.policy.grpo import RewardTrainer
    from vlrm.policy.rewards.adapter import reward_function
    from vlrm.serving.allocator import quicken_process

    quicken_process()
    base = model_path(args.policy)
    recipe = Recipe(
        batch_size=args.completions // 2, gradient_accumulation=2, max_tokens=140, max_steps=args.steps, learning_rate=1e-5, seed=seed,
        save_steps=10 * args.steps,
    )  # fmt: skip
    config = trl_config(recipe, args.run / "checkpoints")
    config.save_strategy = "no"
    processor = AutoProcessor.from_pretrained(base)
    common = {
        "model": AutoModelForImageTextToText.from_pretrained(base, dtype="float32"),
        "args": config,
        "train_dataset": rows(problems),
        "processing_class": processor,
    }
    if arm == "trl":
        function = reward_function(scorer, "prm")

        def bare(problem: Sequence[Any], completions: Sequence[Any], **_: Any) -> list[float | None]:
            return function(sample=[Sample(p, c[0]["content"]) for p, c in zip(problem, completions, strict=True)])

        trainer = GRPOTrainer(reward_funcs=[bare], **common)
    else:
        recipe_blind = {"blind_every": recipe.blind_every, "blind_samples": recipe.blind_samples}
        trainer = RewardTrainer(rewards=[Reward("prm", scorer)], **recipe_blind, **common)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    steps = [log for log in trainer.state.log_history if "step_time" in log][1:]
    return [log["step_time"] for log in steps], sum(log["completions/mean_length"] for log in steps) * args.completions


@contextmanager
def served(args: argparse.Namespace) -> Any:
    """The scorer behind `vlrm serve` in a process of its own, and its client."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ.setdefault("VLRM_TOKEN", secrets.token_hex(16))
    command = [sys.executable, "-m", "vlrm", "serve", "--scorer", str(args.scorer), "--port", str(port), "--log_level", "warning"]
    args.run.mkdir(parents=True, exist_ok=True)
    with (args.run / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            size = max(1, args.completions // args.concurrency)
            settings = {"concurrency": args.concurrency, "per_request": size, "connect": 300.0, "token": os.environ["VLRM_TOKEN"]}
            yield load_scorer(f"reward+http://127.0.0.1:{port}", **settings)
        finally:
            server.terminate()
            server.wait(60)


@contextmanager
def nothing() -> Any:
    yield None


def ratio_ci(found: Sequence[Sequence[float]], base: Sequence[Sequence[float]], resamples: int = 10_000) -> tuple[float, float, float]:
    """Ratio of summed step times, with its 95 % interval by bootstrap over the pairs of steps."""
    one, other = (np.array(times).ravel() for times in (found, base))
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(one), (resamples, len(one)))
    ratios = one[picks].sum(axis=1) / other[picks].sum(axis=1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(one.sum() / other.sum()), float(low), float(high)


if __name__ == "__main__":
    main()
