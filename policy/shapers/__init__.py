"""Shapers: functions from the advantages of a batch and what the scorers said of it to advantages of whole completions or of tokens.

A shaper is called `shaper(advantages, batch, **settings)`. `advantages` is (B,) or (B, T), what GRPO or the shaper before it gave; the
result is (B,) or (B, T). Yours is named `package.module:function`.
"""

from __future__ import annotations

from .batch import Batch
from .credit import first_error, outcome, step_advantage, step_value
from .pearl import pearl
from .vppo import vppo

SHAPERS = {
    "outcome": outcome,
    "step_value": step_value,
    "step_advantage": step_advantage,
    "first_error": first_error,
    "pearl": pearl,
    "vppo": vppo,
}

__all__ = ["SHAPERS", "Batch"]
