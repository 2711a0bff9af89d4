"""`vlrm synth`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .common import key, say


@dataclass
class Synth:
    """Makes problems, or step records with exact critiques, from the procedural worlds.

    `--what problems` writes a folder with problems.jsonl and images/, which `vlrm search` reads. `--what steps` writes a JSONL file of step
    records, which `vlrm train` reads: corrupted solutions and, with a policy, sampled ones, every step judged by the world."""

    output: str = key("folder of the problems, or JSONL file of the step records")
    what: Literal["problems", "steps"] = key("what to make", "problems")
    worlds: list[str] = key("names of worlds; all if none is given", [])
    split: str = key("train, dev or test; no picture occurs in two splits", "train")
    n: int = key("problems, shared evenly by the worlds", 1000)
    seed: int = key("problem i of a world, split and seed is always the same", 0)
    policy: str | None = key("steps: engine that solutions are sampled from, such as tiny-policy or transformers:PATH", None)
    samples: int = key("steps: sampled solutions for each problem, with a policy", 1)
    corruptions: int = key("steps: corrupted solutions for each problem", 1)
    temperature: float = key("steps: sampling temperature", 1.0)


def run_synth(settings: Synth) -> None:
    from ..data_synth import WORLDS, make_problems, make_step_records

    worlds = settings.worlds or list(WORLDS)
    common = (worlds, settings.split, settings.n, settings.seed, settings.output)
    if settings.what == "problems":
        say(f"{len(make_problems(*common))} problems in {settings.output}")
        return
    from ..serving import load_engine

    policy = load_engine(settings.policy) if settings.policy else None
    records = make_step_records(
        *common, policy=policy, samples=settings.samples, corruptions=settings.corruptions, temperature=settings.temperature
    )
    say(f"{len(records)} step records in {settings.output}")
