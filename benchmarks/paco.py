"""Does PaCo-Reward rank by consistency? `python benchmarks/paco.py --run runs/paco`

On the consistency world, for each seed: trains the tiny model on pairs in three ways (the paper's weighted likelihood; the same without the
verdict's weight; a placebo whose pictures were swapped among pairs) and measures each on held-out grids beside the untrained base, the
similarity of pixels, the base's own embeddings, and the trained model with another story's reference. ConsistencyRank's metrics, agreement
by dimension, paired bootstrap over stories. Every stage leaves its result in the folder; started again it goes on. Writes
benchmarks/results/paco.json.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from result import claim, write_result

from vlrm import Sample, load_engine, load_scorer
from vlrm.data_synth.consistency_pairs import make_consistency
from vlrm.data_synth.consistency_world import DIMENSIONS
from vlrm.rm.paco import PaCo
from vlrm.rm.pairs import PairRecord, read_pairs
from vlrm.rm.rank_eval import compare, instance_figures, summarize
from vlrm.rm.rank_metrics import METRICS, chance
from vlrm.rm.ranks import RankItem, read_ranks
from vlrm.rm.scoring import score_samples
from vlrm.rm.similarity import EmbeddingSimilarity, PixelSimilarity
from vlrm.rm.stats import cluster_bootstrap

STYLE = {"ending": "", "marks": ("", ""), "words": ("+", "-")}  # the tiny model needs no more words, and knows + from its dialogues
TRAINED = {"PaCo-Reward": {"alpha": 0.1}, "no verdict weight": {"alpha": None}, "swapped pairs": {"alpha": 0.1}}
MEASURED = (*TRAINED, "another reference", "untrained base", "pixels", "embeddings")


@dataclass(frozen=True)
class Outcome:
    """What one scorer did on one seed's held-out data: its rankings' figures, and for each pair that asks for a dimension whether P(Yes)
    lies on the right side of one half (half a point at one half)."""

    figures: list[dict[str, float]]
    groups: list[str]
    right: dict[str, list[float]]
    right_groups: dict[str, list[str]]
    order_gap: float | None
    tokens: int
    seconds: float


def swapped(records: Sequence[PairRecord], seed: int) -> list[PairRecord]:
    """The same questions, labels and reasons, on the pictures of other pairs."""
    pictures = [record.images for record in records]
    random.Random(f"swap {seed}").shuffle(pictures)
    return [replace(record, images=images) for record, images in zip(records, pictures, strict=True)]


def other_references(items: Sequence[RankItem]) -> list[RankItem]:
    """Each instance with the reference of an instance of another story."""
    shifted = [
        next(other.reference for other in [*items[k + 1 :], *items[:k]] if other.group != item.group) for k, item in enumerate(items)
    ]
    return [replace(item, reference=reference) for item, reference in zip(items, shifted, strict=True)]


def train_arm(args: argparse.Namespace, seed: int, arm: str, home: Path) -> tuple[Path, float]:
    """The trained scorer's folder and the seconds that the training took."""
    from vlrm.rm.train_paco import train_paco

    records = read_pairs(home / "train" / "pairs.jsonl")
    if arm == "swapped pairs":
        records = swapped(records, seed)
    out = home / arm.replace(" ", "_")
    recipe = {"learning_rate": args.learning_rate, "batch_size": args.batch_size, "epochs": args.epochs, "max_steps": args.max_steps}
    summary = train_paco(
        args.base, records, out, seed=seed, freeze_vision=False, save_steps=200, workers=args.workers, **TRAINED[arm], **STYLE, **recipe
    )
    return out, summary["seconds"]


def measure(
    items: Sequence[RankItem], pairs: Sequence[PairRecord], scorer: Callable[[], Any], file: Path, settings: dict[str, Any], seed: int
) -> Outcome:
    samples = [sample for item in items for sample in item.samples()]
    asked = [Sample(pair_problem(pair), "") for pair in pairs]
    rows = score_samples([*samples, *asked], scorer, file, settings=settings, chunk=256)
    if unscored := [row["error"] for row in rows if row["value"] is None]:
        raise RuntimeError(f"{file}: {len(unscored)} of {len(rows)} pairs have no score: {unscored[0]}")
    values, figures, start = [row["value"] for row in rows], [], 0
    for item in items:
        figures.append(instance_figures(item, values[start : start + len(item.candidates)], seed=seed))
        start += len(item.candidates)
    right: dict[str, list[float]] = {dimension: [] for dimension in DIMENSIONS}
    groups: dict[str, list[str]] = {dimension: [] for dimension in DIMENSIONS}
    for pair, value in zip(pairs, values[start:], strict=True):
        right[pair.meta["dimension"]].append(0.5 if value == 0.5 else float((value > 0.5) == pair.label))
        groups[pair.meta["dimension"]].append(f"{seed}/{pair.group}")
    spent = [row["usage"] for row in rows if "usage" in row]
    gaps = [row["details"]["order_gap"] for row in rows if "order_gap" in (row["details"] or {})]
    return Outcome(
        figures,
        [f"{seed}/{item.group}" for item in items],
        right,
        groups,
        statistics.fmean(gaps) if gaps else None,
        sum(usage[0] for usage in spent),
        sum(usage[3] for usage in spent),
    )


def pair_problem(pair: PairRecord) -> Any:
    from vlrm import Problem

    return Problem(pair.id, pair.question, pair.images, meta={"task": pair.task})


def measured(args: argparse.Namespace) -> list[str]:
    left_out = {arm for arm in TRAINED if arm not in args.arms}
    return [arm for arm in MEASURED if arm not in left_out]


def one_seed(args: argparse.Namespace, seed: int) -> tuple[dict[str, Outcome], dict[str, float]]:
    """Every scorer of a seed, and the seconds of each training."""
    home = args.run / f"seed{seed}"
    data = {"instances": args.instances, "criteria": args.criteria}
    held, sizes = home / args.split, {"stories": args.stories, "test_stories": args.test_stories, "rankings": args.rankings, **data}
    if not (home / "train" / "pairs.jsonl").exists():
        make_consistency(home / "train", "train", args.stories, seed, ranks=0, **data)
    if not (held / "ranks.jsonl").exists():
        make_consistency(held, args.split, args.test_stories, seed, ranks=args.rankings, instances=0, criteria=args.criteria)
    items, pairs = read_ranks(held / "ranks.jsonl"), read_pairs(held / "pairs.jsonl")
    outcomes, seconds = {}, {}
    for arm in measured(args):
        shown, trained = items, "PaCo-Reward" if arm == "another reference" else arm
        if arm == "another reference":
            shown = other_references(items)
        if trained in TRAINED:
            folder, took = train_arm(args, seed, trained, home)
            if arm in TRAINED:
                seconds[arm] = took

            def scorer(folder: Path = folder) -> Any:
                return load_scorer(folder)
        elif arm == "pixels":
            scorer = PixelSimilarity
        elif arm == "embeddings":

            def scorer() -> Any:
                return EmbeddingSimilarity(load_engine(args.base))
        else:

            def scorer() -> Any:
                return PaCo(load_engine(args.base), **STYLE)

        settings = {"arm": arm, "base": args.base, "epochs": args.epochs, "max_steps": args.max_steps, "lr": args.learning_rate, **sizes}
        outcomes[arm] = measure(shown, pairs, scorer, held / f"{arm.replace(' ', '_')}.scores.jsonl", settings, seed)
        tau = statistics.fmean(row["kendall"] for row in outcomes[arm].figures)
        print(f"{time.strftime('%H:%M:%S')} seed {seed}, {arm}: Kendall {tau:.3f}", flush=True)
    return outcomes, seconds


def joined(outcomes: Sequence[Outcome]) -> Outcome:
    gaps = [o.order_gap for o in outcomes if o.order_gap is not None]
    return Outcome(
        [row for o in outcomes for row in o.figures],
        [group for o in outcomes for group in o.groups],
        {d: [value for o in outcomes for value in o.right[d]] for d in DIMENSIONS},
        {d: [group for o in outcomes for group in o.right_groups[d]] for d in DIMENSIONS},
        statistics.fmean(gaps) if gaps else None,
        sum(o.tokens for o in outcomes),
        sum(o.seconds for o in outcomes),
    )


def table(seeds: dict[int, dict[str, Outcome]], whole: dict[str, Outcome]) -> list[dict[str, Any]]:
    rows = []
    for arm, outcome in whole.items():
        figures = summarize(outcome.figures, outcome.groups)
        row: dict[str, Any] = {"scorer": arm}
        row |= {name: round(figures[name]["value"], 3) for name in METRICS}
        row["kendall ci95"] = [round(value, 3) for value in figures["kendall"]["ci95"]]
        row["kendall by seed"] = [round(statistics.fmean(r["kendall"] for r in own[arm].figures), 3) for own in seeds.values()]
        probabilities = arm not in ("pixels", "embeddings")  # a similarity has no side of one half
        row |= {d: round(100 * statistics.fmean(outcome.right[d]), 1) if probabilities else None for d in DIMENSIONS}
        row["order gap"] = None if outcome.order_gap is None else round(outcome.order_gap, 3)
        rows.append({**row, "scorer tokens": outcome.tokens, "seconds": round(outcome.seconds, 1)})
    return [*rows, {"scorer": "chance", **{name: round(value, 3) for name, value in chance(4).items()}, **dict.fromkeys(DIMENSIONS, 50.0)}]


def claims(whole: dict[str, Outcome], seeds: int) -> list[dict[str, Any]]:
    ours, found = whole["PaCo-Reward"], []
    per_seed = len(ours.figures) // seeds
    found.append(claim("held-out rankings of each seed", ">= 300", per_seed, per_seed >= 300))
    for arm in [arm for arm in whole if arm not in ("PaCo-Reward", "no verdict weight")]:
        gaps = compare(ours.figures, whole[arm].figures, ours.groups)
        for metric in ("accuracy", "kendall", "kendall_list"):
            gap = gaps[metric]
            name = f"{metric}: PaCo-Reward - {arm} (interval {gap['ci95'][0]:.3f} to {gap['ci95'][1]:.3f}, bootstrap p = {gap['p']:.1g})"
            found.append(claim(name, "> 0, p < 0.01", round(gap["difference"], 3), gap["difference"] > 0 and gap["p"] < 0.01))
    if plain := whole.get("no verdict weight"):
        gap = compare(ours.figures, plain.figures, ours.groups)["kendall"]
        clear = gap["difference"] > 0 and gap["p"] < 0.01
        doubt = f"interval {gap['ci95'][0]:.3f} to {gap['ci95'][1]:.3f}, bootstrap p = {gap['p']:.1g}"
        name = f"kendall: PaCo-Reward - no verdict weight ({doubt})"
        found.append(claim(name + ("" if clear else ": null"), "> 0, p < 0.01, or reported as null", round(gap["difference"], 3), True))
    for dimension in DIMENSIONS:
        mean, low, high, _ = cluster_bootstrap(ours.right[dimension], ours.right_groups[dimension])
        name = f"agreement in {dimension}, % (interval {100 * low:.1f} to {100 * high:.1f})"
        found.append(claim(name, "interval above 50", round(100 * mean, 1), low > 0.5))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/paco"))
    parser.add_argument("--base", default="tiny-pairs")
    parser.add_argument("--stories", type=int, default=500, help="training stories; each makes 4 x instances + criteria pairs")
    parser.add_argument("--instances", type=int, default=8)
    parser.add_argument("--criteria", type=int, default=12)
    parser.add_argument("--test_stories", type=int, default=60)
    parser.add_argument("--rankings", type=int, default=6, help="rankings of each held-out story")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--split", default="test", help="dev to choose settings on")
    parser.add_argument("--arms", nargs="+", default=list(TRAINED), choices=list(TRAINED), help="PaCo-Reward must be among them")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--max_steps", type=int)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="folder for the result; else the repository's")
    args = parser.parse_args()
    if "PaCo-Reward" not in args.arms:
        parser.error("--arms must name PaCo-Reward: all others are compared with it")
    seeds, seconds = {}, {}
    for seed in args.seeds:
        seeds[seed], seconds[seed] = one_seed(args, seed)
    whole = {arm: joined([own[arm] for own in seeds.values()]) for arm in measured(args)}
    rows = table(seeds, whole)
    for row in rows:
        if row["scorer"] in TRAINED:
            row["seconds of training"] = round(sum(took[row["scorer"]] for took in seconds.values()))
    found = claims(whole, len(args.seeds))
    options = {} if args.folder is None else {"folder": args.folder}
    n = len(whole["PaCo-Reward"].figures)
    write_result("paco", "python benchmarks/paco.py", args.seeds, n, rows, found, **options)
    (args.run / "outcomes.json").write_text(json.dumps({str(s): {arm: asdict(o) for arm, o in own.items()} for s, own in seeds.items()}))
    for row in rows + found:
        print(row)


if __name__ == "__main__":
    main()
