"""Preferences from published benchmarks, as they are published, and from any file of chosen and rejected answers.

vl_rewardbench         VL-RewardBench (arXiv 2411.17451): id, query, response (2), human_ranking ([0, 1]: the first is better), image.
                       Groups by id: general, hallucination, reasoning.
multimodal_rewardbench Multimodal RewardBench (arXiv 2502.14191): ID, Text, Image, Output1, Output2, Better, Category. Groups are the
                       categories. It draws for what it cannot read; the convention "half" is the mean of that.
preferences            see `preferences.py`; groups are the column group
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..types import InputError
from .datasets import Parsed, open_dataset
from .preferences import Preference, preference_from_row

# Parts of an id, in small letters, and the group that they mean; everything else is general.
_GROUPS = {"hallucination": ("rlaif", "rlhf", "povid", "hallucination"), "reasoning": ("mathverse", "mmmu")}


def read_pairs(
    source: Any,
    format: str = "auto",
    *,
    split: str | None = None,
    image_root: str | Path | None = None,
    limit: int | None = None,
) -> Sequence[Preference]:
    """The preferences of `source` (see `vlrm.rm.datasets.open_dataset`), each made when it is asked for. "auto" looks at the columns of the
    first row. Raises InputError that names the row."""
    if isinstance(source, Sequence) and not isinstance(source, str) and source and isinstance(source[0], Preference):
        return source[:limit]
    if format != "auto" and format not in FORMATS:
        raise InputError(f"unknown format {format!r}; choose auto, {', '.join(FORMATS)}")
    rows, name, folder = open_dataset(source, split, "preferences")
    if not len(rows):
        raise InputError(f"{name}: holds no preferences")
    parse = FORMATS[_format(rows[0]) if format == "auto" else format]
    root = Path(image_root) if image_root is not None else folder
    if limit is not None:
        rows = [rows[i] for i in range(min(limit, len(rows)))]
    items = Parsed(rows, name, lambda row, number: parse(row, f"row-{number}", root))
    items[0]  # missing columns are told before anything else is done
    return items


def vl_rewardbench_group(id: str) -> str:
    """general, hallucination or reasoning, as VL-RewardBench's own script sorts its ids."""
    small = id.casefold()
    return next((group for group, parts in _GROUPS.items() if any(part in small for part in parts)), "general")


def _vl_rewardbench(row: Mapping[str, Any], name: str, root: Path) -> Preference:
    responses, ranking = row.get("response"), row.get("human_ranking")
    if not isinstance(responses, list) or len(responses) != 2 or sorted(ranking or ()) != [0, 1]:
        raise InputError("columns response and human_ranking must hold two answers and their ranks, [0, 1] or [1, 0]")
    better = list(ranking).index(0)
    id = str(row.get("id") or name)
    made = {"id": id, "prompt": row.get("query"), "chosen": responses[better], "rejected": responses[1 - better], "image": row.get("image")}
    return preference_from_row({**made, "group": vl_rewardbench_group(id)}, name, root)


def _multimodal_rewardbench(row: Mapping[str, Any], name: str, root: Path) -> Preference:
    better = {"output1": 0, "output2": 1}.get(str(row.get("Better")).replace(" ", "").casefold())
    if better is None:
        raise InputError(f"column Better must be Output1 or Output2, got {row.get('Better')!r}")
    outputs = row.get("Output1"), row.get("Output2")
    made = {"id": row.get("ID"), "prompt": row.get("Text"), "chosen": outputs[better], "rejected": outputs[1 - better]}
    return preference_from_row({**made, "image": row.get("Image"), "group": row.get("Category")}, name, root)


def _format(row: Mapping[str, Any]) -> str:
    if {"human_ranking", "response"} <= row.keys():
        return "vl_rewardbench"
    return "multimodal_rewardbench" if {"Output1", "Output2", "Better"} <= row.keys() else "preferences"


FORMATS: dict[str, Callable[[Mapping[str, Any], str, Path], Preference]] = {
    "preferences": preference_from_row,
    "vl_rewardbench": _vl_rewardbench,
    "multimodal_rewardbench": _multimodal_rewardbench,
}
