"""What the benchmarks of reinforcement learning share: problems, arms that resume, and a policy's accuracy with its kinds of error."""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from strategies import train_scorer

from vlrm import Problem, Sample, Score, Usage, load_engine, load_scorer
from vlrm.data_synth import WORLDS, make_problems
from vlrm.data_synth.problems import truth_of
from vlrm.policy import sample_pool
from vlrm.policy.grpo_train import train_grpo
from vlrm.policy.rewards import Reward
from vlrm.rm.answers import same_answer
from vlrm.rm.stats import paired_bootstrap


def rl_options(parser: argparse.ArgumentParser, steps: int) -> None:
    """Sizes: an optimizer step sees `--completions` of them."""
    parser.add_argument("--run", type=Path, default=Path("runs/rl"))
    parser.add_argument("--policy", default="tiny-policy")
    parser.add_argument("--gm_prm", type=Path, required=True, help="a folder that vlrm train --method gm_prm wrote, such as a quickstart's")
    parser.add_argument("--vl_prm", type=Path, help="a folder that vlrm train --method vl_prm wrote; else one is trained")
    parser.add_argument("--prm_problems", type=int, default=11000, help="problems that the VL-PRM is trained on")
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS))
    parser.add_argument("--train_problems", type=int, default=2000)
    parser.add_argument("--dev_problems", type=int, default=600)
    parser.add_argument("--problems", type=int, default=300, help="held-out problems for each seed")
    parser.add_argument("--samples", type=int, default=4, help="samples of a policy for each held-out problem")
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--completions", type=int, default=256)
    parser.add_argument("--group_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--lora_rank", type=int, default=16)
    parser.add_argument("--max_tokens", type=int, default=140)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def problems_of(args: argparse.Namespace, seed: int, worlds: str) -> tuple[list[Problem], list[Problem], list[Problem]]:
    """Problems of the `worlds` (names with "-" between them) to train on, to watch, and to measure on; no picture occurs in two of them."""
    folder = args.run / f"seed{seed}" / worlds
    sizes = {"train": args.train_problems, "dev": args.dev_problems, "test": args.problems}
    return tuple(make_problems(worlds.split("-"), split, n, 300 + seed, folder / split) for split, n in sizes.items())  # type: ignore[return-value]


def train_arm(
    args: argparse.Namespace,
    arm: str,
    seed: int,
    problems: Sequence[Problem],
    rewards: Sequence[Reward],
    scorers: Mapping[str, Path | None],
    watch: Sequence[Problem] = (),
    **recipe: Any,
) -> Path:
    """The folder of the trained policy; a finished run is not repeated, an interrupted one goes on. `scorers`: the files it hangs on."""
    folder = args.run / f"seed{seed}" / arm
    settings: dict[str, Any] = {
        "max_steps": args.steps, "batch_size": args.completions // 4, "gradient_accumulation": 4, "group_size": args.group_size,
        "learning_rate": args.learning_rate, "lora": {"r": args.lora_rank}, "max_tokens": args.max_tokens, "seed": seed, "keep": "last",
        "save_steps": 10, **recipe,
    }  # fmt: skip
    said = {name: json.loads((path / "vlrm.json").read_text())["training"]["run"] for name, path in scorers.items() if path}
    stamp = hashlib.blake2b(json.dumps([arm, said], sort_keys=True).encode(), digest_size=8).hexdigest()
    train_grpo(args.policy, problems, folder, rewards=rewards, eval_problems=watch, identity={"arm": stamp}, **settings)
    return folder


class Shuffled:
    """The placebo: a scorer's scores dealt out at random among the completions of each problem. The same texts get the same deal."""

    def __init__(self, scorer: Any, seed: int):
        self.scorer, self.seed = scorer, seed

    @property
    def usage(self) -> Usage:
        return self.scorer.usage

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        scores = self.scorer(samples)
        places: dict[str, list[int]] = {}
        for place, sample in enumerate(samples):
            places.setdefault(sample.problem.id, []).append(place)
        dealt = list(scores)
        for name, own in places.items():
            order = list(own)
            random.Random(f"{self.seed} {name} {[samples[k].solution for k in own]}").shuffle(order)
            for to, source in zip(own, order, strict=True):
                dealt[to] = replace(scores[source])
        return dealt


def measure(args: argparse.Namespace, policy: str | Path, folder: Path, problems: Sequence[Problem], seed: int) -> list[dict[str, Any]]:
    """For each problem the share of right samples, and of samples whose first wrong step is a misreading, a wrong inference, or unreadable.
    Kept in `folder/measured.json`."""
    path = folder / "measured.json"
    key = [args.samples, args.max_tokens, len(problems), str(policy)]
    if path.exists() and (kept := json.loads(path.read_text()))["key"] == key:
        return kept["problems"]
    engine = load_engine(str(policy))
    pools = sample_pool(problems, engine, n=args.samples, seed=1000 + seed, temperature=1.0, max_tokens=args.max_tokens)
    found = []
    for problem, pool in zip(problems, pools, strict=True):
        kinds = Counter(first_error_kind(problem, [step.text for step in candidate.steps]) for candidate in pool)
        right = sum(same_answer(candidate.answer, problem.answer) for candidate in pool)
        found.append({
            "id": problem.id, "right": right / len(pool),
            **{kind: kinds[kind] / len(pool) for kind in ("perception", "reasoning", "unreadable")},
            "tokens": sum(candidate.policy_usage.completion_tokens for candidate in pool) / len(pool),
        })  # fmt: skip
    engine.close()
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"key": key, "problems": found}))
    return found


def first_error_kind(problem: Problem, steps: Sequence[str]) -> str | None:
    """Of the first wrong step: perception, reasoning, or unreadable; None where no step is wrong. A text without steps is unreadable."""
    world, scene = truth_of(problem)
    if not steps:
        return "unreadable"
    for truth in world.check(scene, steps):
        if not truth.readable:
            return "unreadable"
        if truth.error is not None:
            return truth.error
    return None


def against(one: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], what: str = "right") -> tuple[float, float, float]:
    """Difference in points of the same problems, with its interval (bootstrap over problems and seeds)."""
    values = paired_bootstrap([row[what] for row in one], [row[what] for row in other])
    return tuple(round(100 * value, 2) for value in values)  # type: ignore[return-value]


def mean(rows: Sequence[Mapping[str, Any]], what: str) -> float:
    return round(100 * sum(row[what] for row in rows) / len(rows), 2)


def curve(folder: Path) -> list[dict[str, Any]]:
    """The held-out evaluations of a run: step, reward, gold."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{"step": row["step"], "reward": row["eval_reward"], "gold": row["eval_gold"]} for row in rows if "eval_gold" in row]


def scorer_of(path: Path, **settings: Any) -> Any:
    """In bfloat16 where the machine is quick at it."""
    return load_scorer(path, engine_options={"dtype": "fast"}, **settings)


def vl_prm_of(args: argparse.Namespace) -> Path:
    """The VL-PRM named, or one trained on exact labels."""
    sizes = {"train_problems": args.prm_problems, "learning_rate": 8e-4, "batch_size": 32, "base": "tiny-checker"}
    return args.vl_prm or train_scorer(argparse.Namespace(run=args.run / "vl_prm", **sizes), load_engine(args.policy))
