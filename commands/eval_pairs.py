"""`vlrm eval pairs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..config import JSON
from .common import fitting, key, print_tables, progress, say, scorer_identity


@dataclass
class EvalPairs:
    """Measures how well a scorer tells the better of two answers, on pairs whose better answer is known.

    Data: VL-RewardBench and Multimodal RewardBench as they are published, or any preferences with the columns prompt, chosen, rejected and
    images. Any kind of scorer: a scalar head, a judge, P(Yes), a process reward model. Prints and writes every accuracy with its interval,
    in the published convention and the strict one, beside what can be had blind, by length and by place; the output folder gets
    results.json, pairs.png, report.html with the worst cases, and the comparisons. Run again after an interruption, it goes on where it
    stopped."""

    data: str = key("preferences: .jsonl, .json or .parquet file, folder that datasets saved, or hub id")
    scorer: str = key("folder that vlrm train wrote, a URL, or any model as transformers:PATH or vllm:PATH")
    output: str = key("folder for the results")
    format: Literal["auto", "preferences", "vl_rewardbench", "multimodal_rewardbench"] = key("columns of the data", "auto")
    split: str | None = key("split of a data set that has several", None)
    scorer_engine: str = key("engine for a scorer folder: transformers, vllm, or the URL of a server that serves it", "transformers")
    scorer_method: str = key("what a URL or a model as it comes is: judge, yes_no, gm_prm, vl_prm; a folder says so itself", "judge")
    scorer_settings: JSON = key('settings of the scorer, such as {"votes": 9, "temperature": 0.2, "orders": "random"}', None)
    scorer_options: JSON = key("options of the scorer's engine", None)
    blind: list[str] = key("blind controls: removed, other, or none; each costs as much as the evaluation", ["removed", "other"])
    image_root: str | None = key("folder that image paths are relative to; else the data file's", None)
    limit: int | None = key("only the first rows", None)
    chunk: int = key("pairs compared together, and saved together", 32)
    resamples: int = key("bootstrap resamples of pairs", 1000)
    seed: int = key("seed of the resampling, the places and the blind pictures", 0)
    worst: int = key("worst cases on the page", 30)
    card: bool = key("put the figures into the README.md of a scorer folder", True)


def run_eval_pairs(settings: EvalPairs) -> None:
    from ..rm import load_scorer
    from ..rm.card import add_measurement
    from ..rm.pair_eval import evaluate_pair_file
    from ..rm.pair_report import card_table

    remembered = scorer_identity(settings, "scorer_method")

    def make() -> Any:
        with fitting("scorer_options", settings.scorer):
            engine = (settings.scorer_engine, settings.scorer_options)
            return load_scorer(settings.scorer, *engine, method=settings.scorer_method, **settings.scorer_settings)

    names = ("format", "split", "image_root", "limit", "chunk", "resamples", "seed", "worst")
    with progress("pairs", None) as done:
        results = evaluate_pair_file(
            settings.data,
            settings.output,
            make,
            **{name: getattr(settings, name) for name in names},
            blind=[how for how in settings.blind if how != "none"],
            settings=remembered,
            progress=done,
            loaded=lambda total: done(0, total),
        )
    print_pair_figures(results)
    if settings.card and add_measurement(settings.scorer, f"Pairs of {settings.data}", card_table(results)):
        say(f"the figures are also in {settings.scorer}/README.md")
    say(f"results and report.html in {settings.output}")


def print_pair_figures(results: dict[str, Any]) -> None:
    from ..rm.pair_report import GROUP_HEAD, group_rows, metric_head, metric_rows, summary

    for line in summary(results):
        say(line)
    tables = [(metric_head(results), metric_rows(results))]
    if results["metrics"]["groups"]:
        tables.append((GROUP_HEAD, group_rows(results)))
    print_tables(tables)
