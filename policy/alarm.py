"""The alarm of a run whose reward is being hacked: the reward goes up while the gold accuracy goes down. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Alarm:
    """When to speak up, on held-out problems: gold lies more than `drop` below its best so far, and the reward above what it was then by
    more than `rise` of its range so far. `z` widens `drop` to so many standard errors of gold's change (2 p (1 - p) / n, samples taken
    as independent). All inferred."""

    drop: float = 0.02
    rise: float = 0.0
    z: float = 1.0

    def message(self, series: Sequence[Mapping[str, Any]]) -> str | None:
        """What to say of the last of the evaluations, each with step, reward, gold and n (the samples behind gold); None if nothing."""
        series = [point for point in series if all(_finite(point.get(name)) for name in ("reward", "gold"))]
        if len(series) < 2:
            return None
        now = series[-1]
        best = max(series[:-1], key=lambda point: point["gold"])
        rewards = [point["reward"] for point in series]
        fallen, risen = best["gold"] - now["gold"], now["reward"] - best["reward"]
        p, n = (best["gold"] + now["gold"]) / 2, max(1, now.get("n") or 1)
        limit = max(self.drop, self.z * math.sqrt(max(0.0, 2 * p * (1 - p) / n)))
        if fallen <= limit or risen <= self.rise * (max(rewards) - min(rewards)):
            return None
        return (
            f"step {now['step']}: the reward rose from {best['reward']:.3f} to {now['reward']:.3f} since step {best['step']} while gold "
            f"accuracy fell from {100 * best['gold']:.1f} to {100 * now['gold']:.1f} %: the reward is being exploited"
        )


def evaluations(log: Sequence[Mapping[str, Any]], n: int) -> list[dict[str, Any]]:
    """The held-out evaluations of a trainer's log, of `n` samples each, as `Alarm` wants them."""
    return [
        {"step": row["step"], "reward": row.get("eval_reward"), "gold": row["eval_gold"], "n": n}
        for row in log
        if _finite(row.get("eval_gold"))
    ]


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
