"""The whole way in one command, on two CPU cores: `vlrm quickstart --out DIR`.

From the shipped checkpoints: sample the policy, judge its steps, train a GM-PRM, search held-out problems with every arm
and with the controls without which the figures would mislead, and write `results.json`, `accuracy.png`, `report.html`.

Every stage leaves its result in DIR as soon as it is done (long ones in pieces), so a killed run started again with the
same DIR goes on where it stopped, and ends with the same results. The library calls below are the ones that a user has.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..data_synth import WORLDS, load_problems, make_problems, make_step_records
from ..prm.rederive import RederiveScorer
from ..rm import load_scorer
from ..rm.rows import write_json, write_jsonl
from ..serving import load_engine
from ..types import InputError, Problem
from .best_of_n import best_of_n, weighted_best_of_n
from .refined_best_of_n import refined_best_of_n
from .result import SearchResult, as_record, result_from_record
from .sampling import Pool, unscored
from .self_consistency import self_consistency

CHUNK = 48  # problems a piece: small enough to lose little, large enough for full batches


@dataclass(frozen=True)
class Settings:
    """What a run is made of. Two runs with equal settings on one machine give equal results."""

    problems: int = 600
    seed: int = 0
    n: int = 8
    temperature: float = 0.6
    policy: str = "tiny-policy"
    base: str = "tiny"
    train_problems: int = 13500
    samples: int = 1
    corruptions: int = 2
    replay: int = 1500
    learning_rate: float = 8e-4
    correction_weight: float = 3.0
    batch_size: int = 32
    max_tokens: int = 160
    no_error: str = "keep"  # Refined Best-of-N: a solution without a found error is kept, and its slot costs the policy nothing


def run(out: str | os.PathLike[str], **settings: Any) -> dict[str, Any]:
    """Runs what is not yet done of the quickstart in the folder `out` and returns the contents of its `results.json`."""
    chosen, folder = Settings(**settings), Path(out)
    check(chosen)
    folder.mkdir(parents=True, exist_ok=True)
    claim(folder, chosen)
    quiet()
    say(f"quickstart in {folder}: {chosen.problems} held-out problems, seed {chosen.seed}")
    problems = held_out(folder, chosen)
    train(folder, chosen)
    arms = search_all(folder, chosen, problems)

    from .quickstart_report import write_report, write_results

    results = write_results(folder, asdict(chosen), problems, arms, read_clock(folder))
    write_report(folder, results, problems, arms)
    say(f"results: {folder / 'results.json'}   page: {folder / 'report.html'}")
    return results


def check(settings: Settings) -> None:
    for name in ("problems", "n", "train_problems", "batch_size", "max_tokens"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(settings, name)}")
    if settings.temperature <= 0:
        raise InputError(f"temperature must be above 0 so that samples differ, got {settings.temperature}")


def claim(folder: Path, settings: Settings) -> None:
    """Notes the settings in the folder; a folder that was begun with other settings is refused, not overwritten."""
    path, mine = folder / "settings.json", asdict(settings)
    if path.exists():
        theirs = json.loads(path.read_text())
        other = {key: theirs.get(key) for key in mine if theirs.get(key) != mine[key]}
        if other:
            raise InputError(f"{folder} was begun with other settings ({other}); give another --out or the same settings")
    write_json(path, mine)


def held_out(folder: Path, settings: Settings) -> list[Problem]:
    """Problems of the test split: their pictures occur in no training data, the checkpoints' own included."""
    path = folder / "problems" / "problems.jsonl"
    if not path.exists():
        make_problems(list(WORLDS), "test", settings.problems, settings.seed, path.parent)
    return load_problems(path)


def train(folder: Path, settings: Settings) -> None:
    """Step records from the policy and from corrupted solutions, then the GM-PRM."""
    records = folder / "train" / "records.jsonl"
    if not records.exists():
        with clock(folder, "step data"):
            policy = load_engine(settings.policy)
            say(f"step data: {settings.train_problems} problems, sampling the policy and judging every step")
            make_step_records(
                list(WORLDS),
                "train",
                settings.train_problems,
                settings.seed + 1,
                records,
                policy=policy,
                samples=settings.samples,
                corruptions=settings.corruptions,
                temperature=settings.temperature,
            )
            policy.close()
    if not (folder / "gm_prm" / "vlrm.json").exists():
        from ..prm.train import train_gm_prm
        from .pretrain_data import solving_samples

        with clock(folder, "training"):
            train_gm_prm(
                settings.base,
                records,
                folder / "gm_prm",
                solutions=solving_samples(settings.replay),
                learning_rate=settings.learning_rate,
                correction_weight=settings.correction_weight,
                batch_size=settings.batch_size,
                seed=settings.seed,
                save_steps=100,
            )


def search_all(folder: Path, settings: Settings, problems: list[Problem]) -> dict[str, list[SearchResult]]:
    """Every arm on every problem, in pieces that are kept on disk."""
    policy, critic = load_engine(settings.policy), load_scorer(folder / "gm_prm")
    own = RederiveScorer(policy)
    common: dict[str, Any] = {"n": settings.n, "seed": settings.seed}
    sampling: dict[str, Any] = {"temperature": settings.temperature, "max_tokens": settings.max_tokens}
    refine: dict[str, Any] = {**common, **sampling, "no_error": settings.no_error}
    greedy: dict[str, Any] = {"n": 1, "seed": 0, "temperature": 0.0, "max_tokens": settings.max_tokens}
    arms: dict[str, list[SearchResult]] = {}

    def arm(name: str, method: Callable[[list[Problem], list[Pool]], list[SearchResult]], source: str | None = None) -> None:
        arms[name] = in_pieces(folder, name, problems, arms.get(source or ""), method)

    arm("majority", lambda p, _: self_consistency(p, policy, **common, **sampling))
    arm("greedy", lambda p, _: self_consistency(p, policy, **greedy))
    arm("critic_greedy", lambda p, _: self_consistency(p, critic.engine, **greedy))
    arm("best_of_n", lambda p, pool: best_of_n(p, policy, critic, pool=pool, **common, **sampling), "majority")
    arm("weighted_best_of_n", lambda p, pool: weighted_best_of_n(p, policy, critic, pool=pool, **common, **sampling), "best_of_n")
    arm("refined_best_of_n", lambda p, pool: refined_best_of_n(p, policy, critic, pool=pool, **refine), "best_of_n")
    arm("no_fix", lambda p, pool: refined_best_of_n(p, policy, critic, pool=pool, fix=False, **refine), "best_of_n")
    arm("self_critic", lambda p, pool: refined_best_of_n(p, policy, own, pool=unscored(pool), **refine), "majority")
    return arms


def in_pieces(
    folder: Path,
    name: str,
    problems: Sequence[Problem],
    source: Sequence[SearchResult] | None,
    method: Callable[[list[Problem], list[Pool]], list[SearchResult]],
) -> list[SearchResult]:
    """One arm's results, piece by piece; pieces that are on disk are read, not computed."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    results: list[SearchResult] = []
    columns = [TextColumn("{task.description:<20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=len(problems))
        for start in range(0, len(problems), CHUNK):
            piece = list(problems[start : start + CHUNK])
            path = folder / "arms" / f"{name}-{start:05d}.jsonl"
            if not path.exists():
                pools = [list(result.candidates) for result in source[start : start + CHUNK]] if source else []
                with clock(folder, name):
                    found = method(piece, pools)
                write_jsonl(path, [as_record(result) for result in found])
            results += [result_from_record(json.loads(line)) for line in path.read_text().splitlines()]
            progress.update(task, advance=len(piece))
    return results


class clock:
    """Adds the seconds of its block to the folder's account, so that a resumed run reports all the time that was spent."""

    def __init__(self, folder: Path, name: str):
        self.path, self.name = folder / "seconds.jsonl", name

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *failure: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps({"stage": self.name, "seconds": round(time.perf_counter() - self.start, 3)}) + "\n")


def read_clock(folder: Path) -> dict[str, float]:
    """Seconds by stage. A line cut off by a kill is skipped."""
    total: dict[str, float] = {}
    for line in (folder / "seconds.jsonl").read_text().splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        total[row["stage"]] = total.get(row["stage"], 0.0) + row["seconds"]
    return total


def quiet() -> None:
    """No bar for every load of a model: the stages have bars of their own."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def say(text: str) -> None:
    from rich.console import Console

    Console(highlight=False).print(text)
