"""`vlrm eval ranks`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..config import JSON
from .common import fitting, key, print_tables, progress, say, scorer_identity


@dataclass
class EvalRanks:
    """Measures how well a scorer ranks pictures by their consistency with a reference picture.

    Data: ConsistencyRank's consistency_full_rank.jsonl, EditReward-Bench (two edits of a picture), or rows of reference, candidates and
    order as vlrm synth pairs writes them.
    Prints and writes accuracy, Kendall, Spearman (in the published convention and the standard one), T1B1 and footrule, each with its
    interval, beside chance and the similarity of the pixels, for EditReward-Bench also its accuracies by task type; the output folder gets
    results.json, scores.jsonl, and report.html with the worst rankings. Run again after an interruption, it goes on where it stopped.
    `--scorer none` measures the baselines alone."""

    data: str = key("rankings: .jsonl, .json or .parquet file, folder that datasets saved, or hub id")
    scorer: str = key("folder that vlrm train wrote, a URL, an untrained model as transformers:PATH, or none")
    output: str = key("folder for the results")
    scorer_engine: Literal["transformers", "vllm"] = key("engine for a scorer folder", "transformers")
    scorer_settings: JSON = key('settings of the scorer, such as {"both_orders": false}', None)
    scorer_options: JSON = key("options of the scorer's engine", None)
    instruction: Literal["own", "ask", "theme", "criteria"] = key(
        "what is asked: the file's own question, the plain one, that of the prompt, or the given criteria", "own"
    )
    ties: Literal["random", "file"] = key("order of equal scores: by lot, or as in the file", "random")
    image_root: str | None = key("folder that image paths are relative to; else as the data's form has it", None)
    split: str | None = key("split of a data set that has several", None)
    limit: int | None = key("only the first rows", None)
    chunk: int = key("pairs scored together, and saved together", 256)
    resamples: int = key("bootstrap resamples of groups", 10000)
    seed: int = key("seed of the resampling and of tied scores", 0)
    worst: int = key("worst rankings on the page", 30)


def run_eval_ranks(settings: EvalRanks) -> None:
    from ..rm.rank_eval import evaluate_ranks

    remembered: dict[str, Any] = {}
    make = None
    if settings.scorer != "none":
        remembered = scorer_identity(settings)

        def make() -> Any:
            with fitting("scorer_options", settings.scorer):
                return pair_scorer(settings.scorer, settings.scorer_engine, settings.scorer_options, settings.scorer_settings)

    names = ("instruction", "ties", "image_root", "limit", "split", "chunk", "resamples", "seed", "worst")
    with progress("pairs", None) as done:
        results = evaluate_ranks(
            settings.data,
            settings.output,
            make,
            **{name: getattr(settings, name) for name in names},
            settings=remembered,
            progress=done,
            loaded=lambda total: done(0, total),
        )
    print_rank_figures(results)
    say(f"results and report.html in {settings.output}")


def pair_scorer(scorer: str, engine: str, options: dict[str, Any], settings: dict[str, Any]) -> Any:
    """A trained folder, a PaCo-Reward behind a URL, or a model that was not trained for it."""
    from pathlib import Path

    from ..rm import load_scorer

    if scorer.startswith(("http://", "https://")):
        return load_scorer(scorer, engine, options, method="paco", **settings)
    if ":" not in scorer and (Path(scorer).is_dir() and not (Path(scorer) / "config.json").is_file()):
        return load_scorer(scorer, engine, options, **settings)  # says what is wrong with the folder
    if (Path(scorer) / "vlrm.json").is_file():
        return load_scorer(scorer, engine, options, **settings)
    from ..rm.load import METHODS, check_settings, resolve
    from ..serving import load_engine

    paco = resolve(METHODS["paco"])
    check_settings(paco, settings, "scorer_settings")
    return paco(load_engine(scorer if ":" in scorer else f"{engine}:{scorer}", **options), **settings)


def print_rank_figures(results: dict[str, Any]) -> None:
    from ..rm.rank_report import edit_rows, figure_rows

    said = f"{results['instances']} instances of {results['groups']} groups"
    for name, count in {**results["counts"], **results.get("unscored", {})}.items():
        said += f"; {name}: {count}"
    say(said)
    if results.get("order_gap") is not None:
        say(
            f"the two orders of a pair differ by {results['order_gap']:.3f} on average; "
            f"{results['tied_instances']} instances have equal scores"
        )
    if not results["metrics"]:
        return
    tables = [figure_rows(results["metrics"])]
    if results.get("edits"):
        tables.append(edit_rows(results["edits"]))
    print_tables(tables)
