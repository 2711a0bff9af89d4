"""`vlrm eval steps`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from ..config import JSON
from .common import fitting, key, progress, say, scorer_identity


@dataclass
class EvalSteps:
    """Measures how well a scorer judges steps, on solutions whose step labels are known.

    Data: any format that `vlrm convert` reads. Prints and writes every step metric with its interval beside the random, always-right and
    step-length baselines; the output folder gets results.json, reliability.png, report.html with the worst cases, and scores.jsonl. Run
    again after an interruption, it goes on where it stopped. `--scorer none` measures the baselines alone."""

    data: str = key("file of solutions with step labels: .jsonl, .json or .parquet")
    scorer: str = key("folder that vlrm train wrote, a URL, reward+http://host:port of vlrm serve, or none")
    output: str = key("folder for the results")
    format: str = key("format of the data: auto, or a name from prm/importers.py", "auto")
    scorer_engine: Literal["transformers", "vllm"] = key("engine for a scorer folder", "transformers")
    scorer_settings: JSON = key('settings of the scorer, such as {"max_tokens": 4096}', None)
    scorer_options: JSON = key("options of the scorer's engine", None)
    neutral: Literal["null", "right", "wrong"] = key("what a person's neutral rating becomes; null leaves the step out", "null")
    threshold: float | None = key("a step counts as judged right from this score on; else as the scorer's own verdict says", None)
    truth_threshold: float = key("a numeric label or Monte-Carlo score above this is right", 0.0)
    image_root: str | None = key("folder that image paths are relative to; else the data file's", None)
    limit: int | None = key("only the first rows of the file", None)
    chunk: int = key("solutions scored together, and saved together", 32)
    resamples: int = key("bootstrap resamples of solutions", 1000)
    seed: int = key("seed of the resampling and the folds", 0)
    worst: int = key("worst cases on the page", 30)


def run_eval_steps(settings: EvalSteps) -> None:
    from ..prm.evaluate import evaluate_steps

    remembered: dict[str, Any] = {}
    make = None
    if settings.scorer != "none":
        from ..rm import load_scorer

        remembered = scorer_identity(settings)

        def make() -> Any:
            with fitting("scorer_options", settings.scorer):
                return load_scorer(settings.scorer, settings.scorer_engine, settings.scorer_options, **settings.scorer_settings)

    names = ("format", "neutral", "threshold", "truth_threshold", "image_root", "limit", "chunk", "resamples", "seed", "worst")
    with progress("solutions", None) as done:
        results = evaluate_steps(
            settings.data,
            settings.output,
            make,
            **{name: getattr(settings, name) for name in names},
            settings=remembered,
            progress=done,
            loaded=lambda total: done(0, total),
        )
    print_step_figures(results)
    say(f"results and report.html in {settings.output}")


def print_step_figures(results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..prm.evaluate_report import metric_head, metric_rows, summary

    for line in summary(results):
        say(line)
    for title, metrics in (("", results["metrics"]), ("what was not scored counts as unreadable", results.get("all"))):
        if metrics:
            table = Table(title=title or None, title_justify="left")
            for index, column in enumerate(metric_head(metrics)):
                table.add_column(column, justify="right" if index else "left")
            for row in metric_rows(metrics):
                table.add_row(*row)
            Console().print(table)
