"""`vlrm quickstart`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from .common import key


@dataclass
class Quickstart:
    """The whole way on the built-in tiny models: data, training, search, report.

    From the shipped checkpoints: samples the policy, trains a GM-PRM, searches held-out problems with every arm and control, and
    writes results.json, accuracy.png and report.html into a folder. Run again with the same folder, it goes on where it stopped."""

    out: str = key("folder for all results")
    problems: int = key("held-out problems, over all worlds", 600)
    seed: int = key("seed of problems, sampling and training", 0)
    n: int = key("candidates for each problem", 8)
    temperature: float = key("sampling temperature of the policy", 0.6)
    policy: str = key("the policy: a built-in name, or a model folder", "tiny-policy")
    base: str = key("what the GM-PRM is trained from: a built-in name, or a model folder", "tiny")
    train_problems: int = key("problems that step records are made from", 13500)
    samples: int = key("sampled solutions for each training problem", 1)
    corruptions: int = key("corrupted solutions for each training problem", 2)
    replay: int = key("samples of the base's own training data that are mixed in", 1500)
    learning_rate: float = key("peak learning rate", 8e-4)
    correction_weight: float = key("weight of the loss at corrected steps", 3.0)
    batch_size: int = key("records in a training step", 32)
    max_tokens: int = key("longest solution, in tokens", 160)
    no_error: str = key("Refined Best-of-N where the critic finds no error: keep, resample or random_prefix", "keep")


def run_quickstart(settings: Quickstart) -> None:
    from ..policy.quickstart import run

    run(**asdict(settings))
