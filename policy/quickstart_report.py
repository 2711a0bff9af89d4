"""What a quickstart leaves for the eye: `results.json`, `accuracy.png` and the self-contained page `report.html`."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data_synth import get_world
from ..rm.page import percent, table, write_page
from ..rm.rows import write_json
from ..types import Problem
from .quickstart_results import Arms, right, summarise
from .result import Candidate, SearchResult

EXAMPLES = 36
LABELS = {
    "single": "one sample",
    "greedy": "greedy",
    "majority": "majority of N",
    "random": "random pick of N",
    "best_of_n": "Best-of-N",
    "weighted_best_of_n": "weighted Best-of-N",
    "refined_best_of_n": "Refined Best-of-N",
    "no_fix": "control: resampled step, no correction",
    "self_critic": "control: the policy as its own critic",
    "critic_greedy": "control: the critic's own greedy answer",
    "oracle": "oracle (any of N right)",
}


def write_results(
    folder: Path, settings: Mapping[str, Any], problems: Sequence[Problem], arms: Arms, clock: Mapping[str, float]
) -> dict[str, Any]:
    results = summarise(problems, arms, settings, clock)
    write_json(folder / "results.json", results)
    return results


def write_report(folder: Path, results: Mapping[str, Any], problems: Sequence[Problem], arms: Arms) -> None:
    """The plot and the page. Nothing on the page is fetched from anywhere."""
    draw_accuracy(results, folder / "accuracy.png")
    plot = base64.b64encode((folder / "accuracy.png").read_bytes()).decode()
    parts = [
        "<h1>vlrm quickstart</h1>",
        f"<p>{results['problems']} held-out problems, seed {results['seed']}, N = {results['settings']['n']}, ",
        f"{results['seconds']:.0f} seconds in all. ",
        "A policy samples solutions; a GM-PRM trained in this run judges every step, chooses, and rewrites the first wrong step.</p>",
        arms_table(results),
        f"<img alt='accuracy of every arm' style='max-width:100%' src='data:image/png;base64,{plot}'>",
        "<h2>Paired tests</h2>",
        tests_table(results),
        "<h2>Steps of sampled solutions, against the truth</h2>",
        steps_table(results),
        "<h2>Refined Best-of-N, problem by problem</h2>",
        "<p>Steps are coloured by the critic's verdict: <span class='good'>right</span>, <span class='bad'>wrong</span>; ",
        "<span class='fix'>blue</span> is a corrected step from which the policy went on. The chosen candidate has a blue frame.</p>",
        *[problem_block(p, r, o) for p, r, o in examples(problems, arms)],
    ]
    write_page(folder / "report.html", "vlrm quickstart", parts)


def draw_accuracy(results: Mapping[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    arms = results["arms"]
    names = [name for name in LABELS if name in arms][::-1]
    values = [100 * arms[name]["accuracy"] for name in names]
    bounds = [[100 * abs(arms[n]["accuracy"] - arms[n]["ci95"][side]) for n in names] for side in (0, 1)]
    colours = ["#1a56c4" if n == "refined_best_of_n" else "#6b93d6" if "best_of_n" in n else "#b9b9b9" for n in names]
    figure, axes = pyplot.subplots(figsize=(9, 4.6))
    axes.barh([LABELS[n] for n in names], values, xerr=bounds, color=colours, error_kw={"elinewidth": 1, "capsize": 3})
    for y, (value, high) in enumerate(zip(values, bounds[1], strict=True)):
        axes.text(value + high + 1, y, f"{value:.1f}", va="center", fontsize=9)
    axes.set_xlim(0, 108)
    axes.set_xlabel(f"accuracy in %, {results['problems']} problems, 95 % bootstrap interval")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    part = path.with_suffix(".part")
    figure.savefig(part, dpi=150, format="png")
    pyplot.close(figure)
    os.replace(part, path)


def arms_table(results: Mapping[str, Any]) -> str:
    worlds = results["worlds"]
    rows = []
    for name, label in LABELS.items():
        arm = results["arms"][name]
        interval = f"{percent(arm['ci95'][0])} to {percent(arm['ci95'][1])}"
        own = [percent(world["accuracy"][name]) for world in worlds.values()]
        rows.append([label, percent(arm["accuracy"]), interval, *own, arm["policy_tokens"], arm["scorer_tokens"], arm["seconds"]])
    blind = [percent(world["blind"]) for world in worlds.values()]
    rows.append(["text only: the commonest answer to the question", "-", "-", *blind, 0, 0, 0])
    return table(["arm", "accuracy %", "95 % interval", *worlds, "policy tokens", "scorer tokens", "seconds"], rows)


def tests_table(results: Mapping[str, Any]) -> str:
    rows = []
    for name, test in results["tests"].items():
        low, high = test["ci95"]
        rows.append([name, f"{100 * test['difference']:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}", f"{test['mcnemar_p']:.2g}"])
    return table(["comparison", "difference, points", "95 % interval", "McNemar p"], rows)


def steps_table(results: Mapping[str, Any]) -> str:
    keys = ["macro_f1", "first_error_accuracy", "perception_recall", "reasoning_recall", "verdict_accuracy", "correction_accuracy"]
    rows = []
    for name, steps, failed in [
        ("all worlds", results["steps"], results["parse_failure_rate"]),
        *[(name, world["steps"], world["parse_failure_rate"]) for name, world in results["worlds"].items()],
    ]:
        rows.append([name, *[percent(steps[key]) for key in keys], percent(failed), steps["count"]])
    return table(["world", *[key.replace("_", " ") for key in keys], "parse failures", "solutions"], rows)


def examples(problems: Sequence[Problem], arms: Arms) -> list[tuple[Problem, SearchResult, SearchResult]]:
    """A few dozen problems, spread evenly over the run."""
    step = max(1, len(problems) // EXAMPLES)
    rows = list(zip(problems, arms["refined_best_of_n"], arms["best_of_n"], strict=True))
    # A stride that the number of worlds divides would show one world only.
    return rows[:: step + (step % 3 == 0)][:EXAMPLES]


def problem_block(problem: Problem, result: SearchResult, plain: SearchResult) -> str:
    picture = base64.b64encode(Path(problem.images[0]).read_bytes()).decode()
    rules = get_world(problem.meta["world"]).rules
    pool = "".join(candidate_block(problem, c, i, i == result.chosen) for i, c in enumerate(result.candidates))
    return (
        f"<div class='problem'><img alt='' src='data:image/png;base64,{picture}'><b>{html.escape(problem.question)}</b> "
        f"<span class='note'>{html.escape(rules)}</span><br>gold answer <b>{html.escape(problem.answer or '')}</b>; "
        f"Best-of-N {marked(problem, plain.answer)}; Refined Best-of-N {marked(problem, result.answer)}"
        f"<div class='pool'>{pool}</div></div>"
    )


def marked(problem: Problem, answer: str | None) -> str:
    good = right(problem, answer)
    return f"<span class='{'right' if good else 'wrong'}'>{html.escape(str(answer))} {'✓' if good else '✗'}</span>"


def candidate_block(problem: Problem, candidate: Candidate, index: int, chosen: bool) -> str:
    origin = candidate.origin if candidate.parent is None else f"{candidate.origin} from {candidate.parent + 1}"
    value = "unscored" if candidate.value is None else f"{candidate.value:.2f}"
    verdicts = candidate.score.verdicts if candidate.score else ()
    lines = []
    for step in candidate.steps:
        verdict = verdicts[step.index] if step.index < len(verdicts) else None
        kind = "unread" if verdict is None or verdict.correct is None else "good" if verdict.correct else "bad"
        if candidate.origin == "refined" and step.index == candidate.step:
            kind += " fix"
        title = html.escape(verdict.analysis) if verdict else ""
        lines.append(f"<div class='step {kind}' title='{title}'>{step.index + 1}. {html.escape(step.text)}</div>")
    if candidate.score and candidate.score.correction:
        lines.append(
            f"<div class='step fix'>step {candidate.score.first_error + 1} should be: {html.escape(candidate.score.correction)}</div>"
        )
    head = f"<b>{index + 1}</b> {origin}, score {value}, {marked(problem, candidate.answer)}"
    return f"<div class='candidate{' chosen' if chosen else ''}'>{head}{''.join(lines)}</div>"
