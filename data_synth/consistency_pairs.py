"""Data of the consistency world: grids on the disk, ranking instances with their true order, pairs with exact labels and reasons.

    vlrm synth pairs --n 400 --output runs/pairs

Grids are painted, cut and paired by the same functions that a user's own grids go through (`pairing.py`).
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..rm.paco_prompt import PAIR
from ..rm.pairs import PairRecord
from ..rm.ranks import RankItem
from ..types import InputError
from .consistency_world import CRITERIA, DIMENSIONS, LAYOUT, Story, SubFigure, agreement, consistency, draw_grid, make_story, reasons
from .pairing import Grid, by_score, cut_grid, pair_subfigures, pairs_from_ranks

# wording: the question of a whole pair, and for each dimension (question, task). One word is enough for a model that knows nothing else.
WORDINGS = {
    "paper": (PAIR, {dimension: (text, "criterion") for dimension, text in CRITERIA.items()}),
    "short": ("consistent?", {dimension: (f"{dimension}?", "ask") for dimension in DIMENSIONS}),
}


def story_grids(story: Story, folder: Path) -> tuple[list[Grid], dict[str, SubFigure]]:
    """The story's grids in files (`grids/`, cut into `figures/`), and what each sub-figure's file shows."""
    grids, shown = [], {}
    (folder / "grids").mkdir(parents=True, exist_ok=True)
    for number, figures in enumerate(story.grids):
        name = f"{story.id}_{number}"
        path = folder / "grids" / f"{name}.png"
        if not path.exists():
            draw_grid(figures, random.Random(f"draw {name}")).save(path.with_suffix(".tmp"), format="PNG")
            os.replace(path.with_suffix(".tmp"), path)
        parts = cut_grid(str(path), name, folder / "figures", "{}x{}".format(*LAYOUT))
        shown |= dict(zip(parts, figures, strict=True))
        criteria = {dimension: {"same": text} for dimension, text in CRITERIA.items()}
        grids.append(Grid(name, story.id, parts, story.prompt, {"criteria": criteria}))
    return grids, shown


def story_ranks(story: Story, folder: Path, wording: str = "short") -> tuple[list[RankItem], dict[str, SubFigure]]:
    """All ranking instances of a story with their true order, and in `meta["agreement"]` where each candidate agrees with the reference."""
    grids, shown = story_grids(story, folder)
    items = []
    for item in pair_subfigures(grids):
        mine, others = shown[item.reference], [shown[path] for path in item.candidates]
        ranked = by_score(item, [consistency(mine, other) for other in others])
        assert ranked is not None, "the four ways in which a grid's sub-figures stray are distinct"
        items.append(
            replace(ranked, question=WORDINGS[wording][0], meta={**item.meta, "agreement": [agreement(mine, other) for other in others]})
        )
    return items, shown


def story_pairs(
    items: Sequence[RankItem],
    shown: dict[str, SubFigure],
    rng: random.Random,
    *,
    rule: str = "halves",
    instances: int = 4,
    criteria: int = 18,
    wording: str = "short",
) -> Iterator[PairRecord]:
    """Pairs of some of a story's instances: those of the rule with reasons, and pairs that ask for one dimension, balanced in each."""
    chosen = rng.sample(list(items), min(instances, len(items)))
    for record in pairs_from_ranks(chosen, rule):
        yield replace(record, reasons=reasons(shown[record.images[0]], shown[record.images[1]]))
    every = [(item, k) for item in items for k in range(len(item.candidates))]
    for number in range(criteria):
        dimension, wanted = DIMENSIONS[number % len(DIMENSIONS)], number // len(DIMENSIONS) % 2 == 0
        item, k = rng.choice([(i, k) for i, k in every if i.meta["agreement"][k][dimension] == wanted])
        pictures = [item.reference, item.candidates[k]]
        said = reasons(*(shown[path] for path in pictures))
        name = f"{item.id}.{k}-{dimension}-{number}"
        question, task = WORDINGS[wording][1][dimension]
        yield PairRecord(name, pictures, wanted, question, task, said, item.group, {"dimension": dimension})


def make_consistency(
    output: str | os.PathLike[str],
    split: str = "train",
    n: int = 100,
    seed: int = 0,
    *,
    grids: int = 4,
    rule: str = "halves",
    instances: int = 4,
    criteria: int = 18,
    ranks: int = 48,
    wording: str = "short",
    progress: Any = lambda done: None,
) -> dict[str, Any]:
    """Writes `n` stories to the folder `output`: `pairs.jsonl` (for each story the rule's pairs of `instances` instances, and `criteria`
    pairs that ask for one dimension) and `ranks.jsonl` (`ranks` instances of each), with `grids/` and `figures/`. Returns the counts.

    Story i of a split and seed is always the same, so a longer set begins with a shorter one; a killed run paints no picture twice.
    """
    from ..rm.pairs import write_pairs
    from ..rm.ranks import write_ranks

    for name, value, least in (("n", n, 1), ("instances", instances, 0), ("criteria", criteria, 0), ("ranks", ranks, 0)):
        if value < least:
            raise InputError(f"{name} must be at least {least}, got {value}")
    if wording not in WORDINGS:
        raise InputError(f"wording must be one of {', '.join(WORDINGS)}, got {wording!r}")
    folder, pairs, ranked = Path(output), [], []
    for number in range(n):
        story = make_story(number, split, seed, grids)
        items, shown = story_ranks(story, folder, wording)
        rng = random.Random(f"pairs {story.id}")
        pairs += story_pairs(items, shown, rng, rule=rule, instances=instances, criteria=criteria, wording=wording)
        ranked += rng.sample(items, min(ranks, len(items)))
        progress(number + 1)
    counts = Counter({"stories": n, "pairs": len(pairs), "consistent": sum(pair.label for pair in pairs), "rankings": len(ranked)})
    if pairs:
        write_pairs(folder / "pairs.jsonl", pairs)
    if ranked:
        write_ranks(folder / "ranks.jsonl", ranked)
    return dict(counts)
