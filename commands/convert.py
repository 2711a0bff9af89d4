"""`vlrm convert`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from .common import key, progress, say


@dataclass
class Convert:
    """Step data from one format to another: what others publish in, what other trainers read out.

    In: step records, VisualPRM400K, VL-PRM300K, PRM800K, Math-Shepherd, URSA, chats of steps and verdicts, VisualProcessBench, VLRMBench,
    BIG-Bench-Mistake. Out: step records, or chats for TRL, LLaMA-Factory and ms-swift. The formats are described in prm/importers.py and
    prm/exporters.py."""

    input: str = key("file of step data: .jsonl, .json or .parquet")
    output: str = key("file to write: .jsonl or .parquet (records, trl), .json or .jsonl (llamafactory), .jsonl (ms_swift)")
    to: Literal["trl", "llamafactory", "ms_swift", "records"] = key("what to write", "trl")
    format: str = key("format of the input: auto, or a name from prm/importers.py", "auto")
    style: Literal["verdicts", "critique"] = key("chats: one + or - a step, or GM-PRM's critique", "verdicts")
    stop_at_first_error: bool | None = key("chats end after the first wrong step; if not said, verdicts do, critiques do not", None)
    threshold: float = key("a numeric label or Monte-Carlo score above this counts as right", 0.0)
    neutral: Literal["null", "right", "wrong"] = key("what a person's neutral rating becomes", "null")
    image_root: str | None = key("folder that image paths are relative to; else the input's", None)
    limit: int | None = key("only the first rows of the file", None)


def run_convert(settings: Convert) -> None:
    from ..prm.convert import convert_file

    with progress("rows", None) as done:
        counts = convert_file(**asdict(settings), progress=done)
    say("; ".join(f"{name} {count:,}" for name, count in counts.items()) + f"; in {settings.output}")
