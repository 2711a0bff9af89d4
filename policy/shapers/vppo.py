"""VPPO, visually-perceptive policy optimization (arXiv 2510.09285, as its code does it): credit goes to tokens that hang on the picture.

One more forward pass with a damaged picture: squares of 14 pixels, each black with probability one half. A token's dependency is
s = e^d - d - 1 with d = log p(token | damaged) - log p(token | picture), d clipped to +-20 and s to at most 10 (the paper's text has the
full KL divergence; its code this one-sample estimate). Token mask: a response's `keep` share of tokens with the highest s keep their
advantage, the others get 0. Trajectory weight: S = mean s of a response, brought to n in [0, 1] over the batch; factor = b + n (c - b) with
b = `least` and c such that the mean factor is 1. Nothing else of the paper's training is here: its entropy penalty is TRL's
`entropy_coef` (a negative number).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from ...types import InputError
from .batch import Batch, per_token


def vppo(
    advantages: torch.Tensor,
    batch: Batch,
    *,
    keep: float = 0.4,
    least: float = 0.9,
    token_mask: bool = True,
    trajectory_weight: bool = True,
    patch: int = 14,
    share: float = 0.5,
) -> torch.Tensor:
    """(B, T) with the token mask, (B,) or (B, T) with the trajectory weight alone. Problems must have pictures."""
    if batch.logps is None:
        raise InputError("the shaper vppo needs problems with pictures")
    mask_BT = batch.mask_BT
    blackened = partial(blacken, black=batch.black, patch=patch, share=share, random=batch.random)
    s_BT = dependency(batch.logps(None), batch.logps(blackened))
    batch.metrics["vppo/dependency"] = float((s_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1))
    if trajectory_weight:
        factor_B = trajectory_factors(s_BT, mask_BT, least)
        advantages = advantages * (factor_B if advantages.dim() == 1 else factor_B.unsqueeze(1))
    return per_token(advantages, mask_BT) * top_tokens(s_BT, mask_BT, keep) if token_mask else advantages


def dependency(seen_BT: torch.Tensor, damaged_BT: torch.Tensor) -> torch.Tensor:
    """s (B, T) >= 0 from the log-probabilities with the picture and with the damaged one."""
    d_BT = (damaged_BT - seen_BT).clamp(-20, 20)
    return (d_BT.exp() - d_BT - 1).clamp(0, 10)


def top_tokens(s_BT: torch.Tensor, mask_BT: torch.Tensor, keep: float) -> torch.Tensor:
    """1 at the ceil(keep * n) tokens of each response with the highest s, else 0; the earlier of equal ones."""
    if not 0 < keep <= 1:
        raise InputError(f"keep must lie in (0, 1], got {keep}")
    order_BT = s_BT.masked_fill(mask_BT == 0, -1.0).argsort(dim=1, descending=True, stable=True)
    rank_BT = torch.empty_like(order_BT).scatter_(1, order_BT, torch.arange(s_BT.shape[1], device=s_BT.device).expand_as(order_BT))
    kept_B = torch.ceil(keep * mask_BT.sum(1).double() - 1e-9)
    return ((rank_BT < kept_B.unsqueeze(1)) & (mask_BT > 0)).to(s_BT.dtype)


def trajectory_factors(s_BT: torch.Tensor, mask_BT: torch.Tensor, least: float) -> torch.Tensor:
    """(B,) factors with mean 1; all 1 where the responses hardly differ."""
    S_B = (s_BT * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)
    low, high = S_B.min(), S_B.max()
    if high - low < 1e-6:
        return torch.ones_like(S_B)
    n_B = (S_B - low) / (high - low)
    return least + n_B * (1 - least) / n_B.mean()


def blacken(
    pixels: torch.Tensor, *, black: Sequence[float] = (0.0,), patch: int = 14, share: float = 0.5, random: torch.Generator | None = None
) -> torch.Tensor:
    """Pixel values with squares of `patch` pixels made black, each with probability `share`.

    `pixels` is (..., C, H, W), or (patches, C * pixels of a patch) as Qwen-VL's processors flatten it: there whole patches become black.
    """

    def chosen(*shape: int) -> torch.Tensor:
        return (torch.rand(shape, generator=random) < share).to(pixels.device)

    value_C = torch.tensor(black, dtype=pixels.dtype, device=pixels.device)
    if pixels.dim() == 2:
        dark = value_C.repeat_interleave(pixels.shape[1] // len(value_C))
        return torch.where(chosen(pixels.shape[0], 1), dark, pixels)
    *lead, _, height, width = pixels.shape
    squares = chosen(*lead, -(-height // patch), -(-width // patch))
    squares = squares.repeat_interleave(patch, -2).repeat_interleave(patch, -1)[..., :height, :width]
    return torch.where(squares.unsqueeze(-3), value_C.view(-1, 1, 1), pixels)
