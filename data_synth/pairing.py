"""Automated sub-figure pairing (PaCo-RL, arXiv 2512.04784): from grids of sub-figures to ranking instances, from rankings to pairs.

A prompt is painted several times, each time as one grid. Each of its sub-figures in turn is the reference, and the sub-figures of each
*other* grid of the prompt are candidates to be ranked: 4 grids of 4 make 16 x 3 = 48 instances, 708 prompts 33,984, as the paper counts.
(That the reference comes from all grids and the candidates from one other is inferred from that count.)

How rankings become Yes/No pairs the paper does not say: `RULES` are the readings that fit its totals.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..rm.paco_sets import split_grid
from ..rm.pairs import PairRecord
from ..rm.ranks import RankItem
from ..rm.rows import read_rows
from ..types import InputError

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


@dataclass(frozen=True)
class Grid:
    """The sub-figures that were painted together for a prompt. `group` names the prompt: grids of one group are paired."""

    id: str
    group: str
    figures: Sequence[Any]
    prompt: str = ""
    meta: Mapping[str, Any] = field(default_factory=dict)


def pair_subfigures(grids: Sequence[Grid], counts: Counter[str] | None = None) -> Iterator[RankItem]:
    """Every ranking instance, its order not known: (grid of the reference, sub-figure, other grid of the same prompt). A reference is never
    ranked with its own grid. Groups with one grid alone are counted."""
    groups: dict[str, list[Grid]] = {}
    for grid in grids:
        groups.setdefault(grid.group, []).append(grid)
    for name, own in groups.items():
        if counts is not None:
            counts["prompts"] += 1
            counts["dropped: prompt with one grid only"] += len(own) < 2
        for mine in own:
            for index, figure in enumerate(mine.figures):
                for other in own:
                    if other is not mine:
                        meta = {key: value for key, value in {"prompt": mine.prompt, **mine.meta}.items() if value}
                        yield RankItem(f"{mine.id}.{index}-{other.id}", figure, other.figures, group=name, meta=meta)


def read_grids(source: str | os.PathLike[str], output: str | os.PathLike[str], layout: str = "2x2") -> list[Grid]:
    """Grids from a folder or a file, their sub-figures written as PNG files into the folder `output` (what is there is not made again).

    A file (JSONL, JSON, parquet) has the columns image and prompt, and if need be id, group, layout, criteria. A folder has a folder for
    each prompt with its grids in it, or files named PROMPT_SEED.png. A column `images` instead of `image` holds sub-figures already apart.
    """
    rows = list(_folder_rows(Path(source)) if Path(source).is_dir() else _file_rows(Path(source)))
    if not rows:
        raise InputError(
            f"{source}: holds no grid pictures; give a folder with a folder of grids for each prompt, or files PROMPT_SEED.png"
        )
    if repeated := [name for name, count in Counter(str(row["id"]) for row in rows).items() if count > 1]:
        raise InputError(f"{source}: {repeated[0]!r} is the id of several grids; give every grid its own id")
    grids = []
    for row in rows:
        figures = row.get("images") or cut_grid(row["image"], str(row["id"]), output, row.get("layout") or layout)
        meta = {"criteria": row["criteria"]} if row.get("criteria") else {}
        grids.append(Grid(str(row["id"]), str(row["group"]), figures, row.get("prompt") or "", meta))
    return grids


def cut_grid(image: Any, name: str, output: str | os.PathLike[str], layout: str) -> list[str]:
    """Writes the sub-figures of a grid picture as `output/NAME.INDEX.png`; returns their paths."""
    folder, safe = Path(output), name.replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    parts = split_grid(image, layout)
    paths = [folder / f"{safe}.{index}.png" for index in range(len(parts))]
    for path, part in zip(paths, parts, strict=True):
        if not path.exists():
            temporary = path.with_suffix(".tmp")
            part.save(temporary, format="PNG")
            os.replace(temporary, path)
    return [str(path) for path in paths]


def _folder_rows(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            for inner in sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES):
                yield {"id": f"{path.name}_{inner.stem}", "group": path.name, "image": str(inner)}
        elif path.suffix.lower() in PICTURES:
            yield {"id": path.stem, "group": path.stem.rpartition("_")[0] or path.stem, "image": str(path)}


def _file_rows(path: Path) -> Iterator[dict[str, Any]]:
    for line, row in read_rows(path, "grids"):
        found = row.get("image", row.get("images"))
        group = row.get("group") or row.get("prompt")
        if found is None or not group:
            raise InputError(f"{path}, line {line}: a grid has the columns image (or images) and prompt (or group)")

        def place(image: Any) -> Any:
            image = (image.get("bytes") or image.get("path")) if isinstance(image, Mapping) else image
            return image if isinstance(image, bytes) else str(path.parent / str(image))

        pictures = {"images": [place(image) for image in found]} if isinstance(found, (list, tuple)) else {"image": place(found)}
        yield {**row, "id": row.get("id") or f"grid-{line}", "group": group, **pictures}


def by_score(item: RankItem, scores: Sequence[float]) -> RankItem | None:
    """The instance ordered by the candidates' scores, best first; None where two are equal, so that it cannot be ranked."""
    if len(set(scores)) < len(scores):
        return None
    return replace(item, order=tuple(sorted(range(len(scores)), key=lambda k: -scores[k])))


def _extremes(order: Sequence[int]) -> dict[int, bool]:
    return {order[0]: True, order[-1]: False}


def _halves(order: Sequence[int]) -> dict[int, bool]:
    half = len(order) // 2
    return {**dict.fromkeys(order[:half], True), **dict.fromkeys(order[len(order) - half :], False)}


# name: from an order to {candidate: consistent}; candidates that it leaves out make no pair
RULES: dict[str, Callable[[Sequence[int]], dict[int, bool]]] = {
    "extremes": _extremes,  # the first is consistent, the last is not
    "halves": _halves,  # the upper half is, the lower half is not; the middle one of an odd number makes no pair
}


def pairs_from_ranks(items: Iterable[RankItem], rule: str = "halves", counts: Counter[str] | None = None) -> Iterator[PairRecord]:
    """Yes/No pairs of the reference with its candidates. Instances without an order are counted."""
    if rule not in RULES:
        raise InputError(f"unknown rule {rule!r}; there are {', '.join(RULES)}")
    counts = Counter() if counts is None else counts
    for item in items:
        if item.order is None:
            counts["dropped: instance without an order"] += 1
            continue
        for candidate, consistent in sorted(RULES[rule](item.order).items()):
            counts["pairs"] += 1
            counts["consistent"] += consistent
            pictures = [item.reference, item.candidates[candidate]]
            yield PairRecord(f"{item.id}.{candidate}", pictures, consistent, item.question, item.task, group=item.group)


def majority(records: Iterable[PairRecord], counts: Counter[str] | None = None) -> list[PairRecord]:
    """One pair where several annotators judged the same two pictures (in either order) on the same question: the verdict of most, with the
    first such record's text. Ties are thrown away and counted, as in the paper."""
    counts = Counter() if counts is None else counts
    votes: dict[Any, list[PairRecord]] = {}
    for record in records:
        votes.setdefault((frozenset(map(str, record.images)), record.task, record.question), []).append(record)
    kept = []
    for same in votes.values():
        yes = sum(record.label for record in same)
        if 2 * yes == len(same):
            counts["dropped: tied votes"] += 1
            continue
        kept.append(next(record for record in same if record.label == (2 * yes > len(same))))
        counts["merged"] += len(same) - 1
    return kept
