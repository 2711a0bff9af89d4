"""PEARL (arXiv 2511.18437): solve only what is seen. The answers to a problem's perception questions weight what is learnt from solving it.

The probes are ordinary problems of the same file: `meta["kind"] == "probe"`, and the same `meta["item"]` as the problem they belong to.
`train_grpo(..., together="item")` keeps them in one batch. R_p is the mean reward of an item's probes. The advantage of its solutions is
multiplied by g(R_p), that of its probes by `probe_weight` (the paper's lambda, J = J_r + lambda J_p).

The paper prints g = min(R_p, 1/2), which treats 1/2 and 1 alike against its own words; clipping R_p to [1/2, 1] fits these. Which it is
cannot be decided from outside, so `factor` says it: "clip" (default) or "min". An item whose probes all fail is gated: g = 0. The paper
skips its solving rollouts; here they are sampled already, so the gate saves no time. A solution whose item has no probe in the batch
keeps its advantage and is counted in the metric pearl/without_probe.
"""

from __future__ import annotations

from typing import Literal

import torch

from ...types import InputError
from .batch import Batch


def pearl(
    advantages: torch.Tensor,
    batch: Batch,
    *,
    reward: str | None = None,
    factor: Literal["clip", "min"] = "clip",
    gate: bool = True,
    probe_weight: float = 0.1,
    floor: float = 0.5,
) -> torch.Tensor:
    """(B,) or (B, T), as the advantages are. `reward` names the reward that grades the probes."""
    scores = batch.of(reward)
    probes: dict[str, list[float]] = {}
    for sample, score in zip(batch.samples, scores, strict=True):
        if sample.problem.meta.get("kind") == "probe" and score.value is not None:
            probes.setdefault(_item(sample), []).append(score.value)
    factors, gated, alone = [], 0, 0
    for sample in batch.samples:
        if sample.problem.meta.get("kind") == "probe":
            factors.append(probe_weight)
        elif found := probes.get(_item(sample)):
            factors.append(weight(sum(found) / len(found), factor, gate, floor))
            gated += factors[-1] == 0
        else:
            factors.append(1.0)
            alone += 1
    solving = max(1, sum(sample.problem.meta.get("kind") != "probe" for sample in batch.samples))
    batch.metrics.update({"pearl/gated": gated / solving, "pearl/without_probe": alone / solving})
    factor_B = torch.tensor(factors, dtype=advantages.dtype, device=advantages.device)
    return advantages * (factor_B if advantages.dim() == 1 else factor_B.unsqueeze(1))


def weight(seen: float, factor: str = "clip", gate: bool = True, floor: float = 0.5) -> float:
    """g(R_p) for R_p in [0, 1]."""
    if factor not in ("clip", "min"):
        raise InputError(f"factor must be clip or min, got {factor!r}")
    if gate and seen <= 0:
        return 0.0
    return min(seen, floor) if factor == "min" else min(1.0, max(floor, seen))


def _item(sample: object) -> str:
    meta = sample.problem.meta  # type: ignore[attr-defined]
    if "item" not in meta:
        raise InputError(f"problem {sample.problem.id} has no column item, by which PEARL finds a problem's probes")  # type: ignore[attr-defined]
    return str(meta["item"])
