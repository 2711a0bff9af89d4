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


@dataclass
class SynthPreferences:
    """Makes preferences from the procedural worlds: a right solution and a wrong one of the same problem, of nearly the same length; or
    true statements about a picture and wrong ones.

    Writes a folder with preferences.jsonl, which `vlrm train --method bradley_terry` and `vlrm eval pairs` read, problems.jsonl and
    images/. The error's kind and place are columns. Run again after an interruption, it goes on where it stopped."""

    output: str = key("folder of the preferences")
    of: Literal["solutions", "statements"] = key("what is preferred", "solutions")
    statements: int = key("pairs of statements about each picture", 4)
    worlds: list[str] = key("names of worlds; all if none is given", [])
    split: str = key("train, dev or test; no picture occurs in two splits", "train")
    n: int = key("problems, shared evenly by the worlds", 1000)
    seed: int = key("problem i of a world, split and seed is always the same", 0)
    policy: str | None = key("engine that solutions are sampled from; without one, wrong solutions are corrupted right ones", None)
    samples: int = key("sampled solutions for each problem, with a policy", 4)
    heavy: float = key("share of corrupted solutions with many errors", 0.5)
    length_gap: int = key("words by which the two may differ", 2)
    temperature: float = key("sampling temperature", 1.0)


def run_synth_preferences(settings: SynthPreferences) -> None:
    from ..data_synth import WORLDS
    from ..data_synth.preferences import make_preferences
    from ..serving import load_engine

    policy = load_engine(settings.policy) if settings.policy else None
    counts = make_preferences(
        settings.worlds or list(WORLDS), settings.split, settings.n, settings.seed, settings.output, of=settings.of,
        statements=settings.statements, policy=policy, samples=settings.samples, heavy=settings.heavy, length_gap=settings.length_gap,
        temperature=settings.temperature,
    )  # fmt: skip
    say("; ".join(f"{name} {count:,}" for name, count in counts.items()) + f"; in {settings.output}")


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
