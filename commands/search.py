"""`vlrm search`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..config import JSON
from ..types import InputError
from .common import fitting, folder_stamp, key, progress, say


@dataclass
class Search:
    """Searches a file of problems with a policy and a scorer.

    Problems: JSONL or parquet with the columns id, question, images (or image) and answer (null where it is unknown). One JSON line
    for each problem is written: the answer, every candidate with its steps, verdicts and correction, and the cost. With gold
    answers the accuracy is printed with its interval. Run again after an interruption, it goes on where it stopped."""

    problems: str = key("file of problems: .jsonl, .json or .parquet")
    policy: str = key("policy engine: transformers:PATH, vllm:PATH, http://host:port/v1, or tiny-policy")
    output: str = key("JSONL file for the results")
    scorer: str | None = key(
        "folder that vlrm train wrote, a URL, or reward+http://host:port of vlrm serve; self_consistency needs none", None
    )
    method: Literal[
        "self_consistency", "best_of_n", "weighted_best_of_n", "refined_best_of_n", "one_shot", "guided_greedy", "beam_search", "dvts"
    ] = key("search method", "refined_best_of_n")
    n: int = key("candidates for each problem", 8)
    seed: int = key("seed of all sampling", 0)
    temperature: float = key("sampling temperature", 0.8)
    top_p: float = key("nucleus sampling", 1.0)
    top_k: int = key("top-k sampling; 0 is off", 0)
    max_tokens: int = key("longest solution, in tokens", 1024)
    stop: list[str] = key("strings that end a solution", [])
    instruction: str = key("text put after every question, such as how to write the steps and the answer", "")
    no_error: Literal["resample", "keep", "random_prefix"] = key("refined: where no step is judged wrong", "resample")
    no_correction: Literal["resample", "resample_step"] = key("refined: where there is no usable correction", "resample")
    fix: bool = key("refined: false is the control that goes on from the same place without the correction", True)
    reuse_scores: bool = key("refined: keep the first critiques for the final choice", True)
    rounds: int = key("refined: how often a candidate may be corrected", 1)
    beam_width: int = key("beam_search, dvts: continuations of each kept partial solution; n is a multiple of it", 4)
    max_rounds: int | None = key("step searches: steps at most; if not said 40, for guided_greedy 100", None)
    rank: str = key("step searches: partial solutions are compared by last, mean, min, product, geometric_mean, or score", "last")
    step_stop: list[str] = key("step searches: strings that end a step; if none is given the next Step line, or a blank line", [])
    dedupe: bool = key("step searches: equal partial solutions count once", True)
    max_policy_tokens: int | None = key("step searches: tokens that the policy may write for one problem", None)
    scorer_engine: Literal["transformers", "vllm"] = key("engine for a scorer folder", "transformers")
    scorer_method: Literal["gm_prm", "vl_prm", "scalar", "judge", "yes_no"] = key("what a scorer that is a URL is", "gm_prm")
    scorer_settings: JSON = key('settings of the scorer, such as {"aggregation": "min"}', None)
    scorer_options: JSON = key('options of the scorer\'s engine, such as {"gpu_memory_utilization": 0.4}', None)
    policy_options: JSON = key("options of the policy's engine", None)
    policy_adapter: str | None = key("folder of a LoRA adapter for the policy", None)
    image_root: str | None = key("folder that image paths are relative to; else the problems file's", None)
    limit: int | None = key("only the first problems of the file", None)
    chunk: int = key("problems searched together, and saved together", 64)


# What a result does not depend on: these may change between an interrupted run and the one that goes on.
_NOT_IN_RESULTS = ("problems", "output", "image_root", "limit", "chunk")
_REFINED = ("no_error", "no_correction", "fix", "reuse_scores", "rounds")
_STEPS = ("rank", "step_stop", "dedupe", "max_policy_tokens", "max_rounds")
_OWN = {
    "refined_best_of_n": _REFINED,
    "guided_greedy": _STEPS,
    "beam_search": (*_STEPS, "beam_width"),
    "dvts": (*_STEPS, "beam_width"),
}
_SAMPLING = ("n", "seed", "temperature", "top_p", "top_k", "max_tokens", "stop", "instruction")


def run_search(settings: Search) -> None:
    from functools import cache, partial

    from ..policy import SEARCH
    from ..policy.search_file import report, search_file
    from ..rm import load_scorer
    from ..rm.problems import read_problems
    from ..serving import load_engine

    scored = settings.method != "self_consistency"
    if scored and not settings.scorer:
        raise InputError(f"{settings.method} needs --scorer, a folder that `vlrm train` wrote or a URL")
    names = _SAMPLING + _OWN.get(settings.method, ())
    chosen = {name: getattr(settings, name) for name in names}
    if chosen.get("max_rounds", 0) is None:
        del chosen["max_rounds"]
    method = partial(SEARCH[settings.method], **chosen)
    method([], None, None) if scored else method([], None)  # checks the settings before anything is loaded
    problems = read_problems(settings.problems, image_root=settings.image_root, limit=settings.limit)

    @cache
    def models() -> tuple[Any, ...]:
        with fitting("policy_options", settings.policy):
            policy = load_engine(settings.policy, adapter=settings.policy_adapter, **settings.policy_options)
        if not scored:
            return (policy,)
        with fitting("scorer_options", settings.scorer):
            named = {} if settings.scorer_method == "gm_prm" else {"method": settings.scorer_method}
            return policy, load_scorer(
                settings.scorer, settings.scorer_engine, settings.scorer_options, **named, **settings.scorer_settings
            )

    remembered = {name: value for name, value in asdict(settings).items() if name not in _NOT_IN_RESULTS}
    with progress(settings.method, len(problems)) as done:
        records = search_file(
            problems,
            lambda batch: method(batch, *models()),
            settings.output,
            settings={**remembered, "policy_files": folder_stamp(settings.policy), "scorer_files": folder_stamp(settings.scorer)},
            chunk=settings.chunk,
            progress=done,
        )
    print_report(settings.method, report(records))
    say(f"results in {settings.output}")


def print_report(method: str, figures: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    def percent(*values: float) -> str:
        return " to ".join(f"{100 * value:.1f}" for value in values) + " %"

    say(f"{method}: {figures['problems']} problems, {figures['with_gold']} with a gold answer")
    table = Table(show_header=False)
    table.add_column()
    table.add_column(justify="right")
    if figures["with_gold"]:
        table.add_row("accuracy", percent(figures["accuracy"]))
        table.add_row("95 % interval", percent(*figures["ci95"]))
        table.add_row("any candidate right", percent(figures["oracle"]))
    for name in ("policy_tokens", "scorer_tokens", "calls", "unscored"):
        table.add_row(name.replace("_", " "), f"{figures[name]:,}")
    table.add_row("seconds", f"{figures['seconds']:.1f}")
    Console().print(table)
