"""What labelling says while it runs: problems done, sequences asked for, the balance of labels, the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from .file import Status


def tell(shard: tuple[int, int], say: Callable[[str], None], every: float = 10.0) -> Callable[[Status], None]:
    """Says how far labelling is: after every chunk, and between them at most once in `every` seconds."""
    last = {"time": time.perf_counter(), "problems": 0}
    name = "" if shard[1] == 1 else f"shard {shard[0]}/{shard[1]}: "

    def heard(status: Status) -> None:
        now = time.perf_counter()
        if status.problems == last["problems"] and now - last["time"] < every:
            return
        last.update(time=now, problems=status.problems)
        left = "" if status.left is None else f", about {duration(status.left)} left"
        asked = f"{status.sequences:,} sequences asked for"
        say(f"{name}{status.problems} of {status.total} problems, {asked}, {label_balance(status.counts)}{left}")

    return heard


def label_balance(counts: Mapping[str, int]) -> str:
    """The shares of right, wrong and unlabelled steps in words."""
    parts = {"right": "labels_positive", "wrong": "labels_negative", "unlabelled": "labels_null"}
    total = sum(counts.get(name, 0) for name in parts.values())
    if not total:
        return "no labels yet"
    return "steps " + ", ".join(f"{100 * counts.get(name, 0) / total:.0f} % {word}" for word, name in parts.items())


def duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
