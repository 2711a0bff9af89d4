"""The weighted likelihood of PaCo-Reward (arXiv 2512.04784), as weights of token losses.

For a target of n tokens y_0 (the verdict), y_1 .. y_{n-1} (the reasons, to the end of the turn):

    L = -[ alpha log p(y_0) + (1 - alpha) / (n - 1) sum_{i >= 1} log p(y_i) ],   alpha = 0.1

for each sequence, then the mean over sequences. alpha = 1/n is the plain mean over a sequence's tokens. Legend: B sequences, T tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..types import InputError

if TYPE_CHECKING:
    import torch


def verdict_weights(labelled_BT: torch.Tensor, alpha: float | None = 0.1, code_compat: bool = False) -> torch.Tensor:
    """(B, T) weights of the negative log-likelihoods at the labelled places (bool, B x T); the first of a row is its verdict.

    The paper's weights sum to 1 in each row; `alpha` None stands for 1/n. A row of one token has weight 1 there.

    `code_compat`: those of the released code, to be summed over a batch and divided by the number of its labelled tokens: alpha at the
    verdict and n (1 - alpha) / (n - 1) elsewhere. There the verdict weighs n times less than in the paper's formula, long targets
    count for more, and a target of one token counts for nothing. `alpha` None then gives weight 1 everywhere.
    """
    import torch

    if alpha is not None and not 0 < alpha < 1:
        raise InputError(f"alpha must lie between 0 and 1, or be none for the plain mean, got {alpha}")
    labelled_BT = labelled_BT.bool()
    n_B1 = labelled_BT.sum(dim=1, keepdim=True)
    n, first_BT = n_B1.clamp(min=2).double(), labelled_BT & (labelled_BT.cumsum(dim=1) == 1)
    if alpha is None:
        weights_BT = torch.ones_like(labelled_BT, dtype=torch.float64) if code_compat else (1 / n_B1.clamp(min=1)).expand(labelled_BT.shape)
    else:
        scale = n if code_compat else torch.ones_like(n)
        weights_BT = torch.where(first_BT, torch.as_tensor(alpha, dtype=torch.float64), scale * (1 - alpha) / (n - 1))
        weights_BT = torch.where(n_B1 == 1, torch.as_tensor(0.0 if code_compat else 1.0, dtype=torch.float64), weights_BT)
    return (weights_BT * labelled_BT).float()
