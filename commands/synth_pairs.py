"""`vlrm synth pairs`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .common import key, progress, say


@dataclass
class SynthPairs:
    """Makes ranking instances and Yes/No pairs of pictures, from the consistency world or from grids of your own.

    Without `--grids` it paints the consistency world: the output folder gets pairs.jsonl, which `vlrm train --method paco` reads,
    ranks.jsonl, which `vlrm eval ranks` reads, and the pictures. With `--grids` it cuts your grid pictures into sub-figures and pairs
    each with those of the other grids of its prompt (ranks.jsonl, the order left open). With `--ranks` it makes pairs.jsonl of a file of
    rankings whose orders are known."""

    output: str = key("folder for pairs.jsonl, ranks.jsonl and pictures")
    grids: str | None = key(
        "your grids: a folder with a folder for each prompt, files PROMPT_SEED.png, or a file of image and prompt", None
    )
    ranks: str | None = key("rankings to make pairs of: ConsistencyRank's file, or a filled-in ranks.jsonl", None)
    layout: str = key("rows and columns of your grids", "2x2")
    rule: Literal["halves", "extremes"] = key("how rankings become pairs: upper half against lower half, or first against last", "halves")
    split: str = key("world: train, dev or test; no picture occurs in two splits", "train")
    n: int = key("world: stories, each painted in four grids", 400)
    seed: int = key("world: story i of a split and seed is always the same", 0)
    instances: int = key("world: rankings of each story that become pairs, of 48", 4)
    criteria: int = key("world: pairs of each story that ask for one dimension", 18)
    rankings: int = key("world: rankings of each story in ranks.jsonl", 48)
    wording: Literal["short", "paper"] = key("world: questions of one word, for the tiny model, or PaCo's", "short")


def run_synth_pairs(settings: SynthPairs) -> None:
    from collections import Counter
    from pathlib import Path

    from ..types import InputError

    if settings.grids and settings.ranks:
        raise InputError("give grids or ranks, not both: grids are cut and paired, ranks become pairs")
    counts: Counter[str] = Counter()
    folder = Path(settings.output)
    if settings.grids:
        from ..data_synth.pairing import pair_subfigures, read_grids
        from ..rm.ranks import write_ranks

        grids = read_grids(settings.grids, folder / "figures", settings.layout)
        counts["rankings"] = write_ranks(folder / "ranks.jsonl", pair_subfigures(grids, counts))
    elif settings.ranks:
        from ..data_synth.pairing import pairs_from_ranks
        from ..rm.pairs import write_pairs
        from ..rm.ranks import read_ranks

        write_pairs(folder / "pairs.jsonl", pairs_from_ranks(read_ranks(settings.ranks), settings.rule, counts))
    else:
        from ..data_synth.consistency_pairs import make_consistency

        with progress("stories", settings.n) as done:
            counts |= make_consistency(
                folder,
                settings.split,
                settings.n,
                settings.seed,
                rule=settings.rule,
                instances=settings.instances,
                criteria=settings.criteria,
                ranks=settings.rankings,
                wording=settings.wording,
                progress=done,
            )
    say(f"{', '.join(f'{count} {name}' for name, count in counts.items() if count)} in {folder}")
