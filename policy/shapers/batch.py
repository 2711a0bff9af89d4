"""What a shaper sees of a batch, and where a solution's steps lie among its tokens.

Legend: B completions (those of one problem side by side), T tokens of the longest, S steps of one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from ...prm.steps import split_steps
from ...types import InputError, Sample, Score, Step


@dataclass(frozen=True)
class Batch:
    """The completions of one generation step on this process, whole groups of them.

    `scores[name]` are the Scores of the reward of that name. `mask_BT` is 1 at the tokens of a completion. `spans[i]` are the characters
    [start, end) of each token of completion i in `samples[i].solution`. `progress` is the share of the run that is done. `logps(change)` is
    one forward pass of the policy without gradients: log-probabilities (B, T) of the tokens, with the pictures' pixel values changed by
    the function `change` if there is one. `random` is seeded by the run's seed and step.
    """

    samples: Sequence[Sample]
    scores: Mapping[str, Sequence[Score]]
    mask_BT: torch.Tensor
    spans: Sequence[Sequence[tuple[int, int]]]
    group_size: int
    progress: float = 0.0
    logps: Callable[[Callable[[torch.Tensor], torch.Tensor] | None], torch.Tensor] | None = None
    black: Sequence[float] = (0.0,)  # what a black pixel is after the processor's normalising, by channel
    random: torch.Generator | None = None
    metrics: dict[str, float] = field(default_factory=dict)  # what a shaper wants to be logged

    def of(self, reward: str | None) -> Sequence[Score]:
        """The scores of a reward; without a name those of the first one that has steps, else of the first."""
        if reward is None:
            return next(
                (scores for scores in self.scores.values() if any(score.steps for score in scores)), next(iter(self.scores.values()))
            )
        if reward not in self.scores:
            raise InputError(f"a shaper asks for the reward {reward!r}; there are {', '.join(self.scores)}")
        return self.scores[reward]

    def steps_BT(self, scores: Sequence[Score], max_steps: int = 12) -> torch.Tensor:
        """The step that each token belongs to, -1 where that is not known: no steps, or another number of them than the score has."""
        index_BT = torch.full(self.mask_BT.shape, -1, dtype=torch.long)
        unknown = 0
        for row, (sample, score, spans) in enumerate(zip(self.samples, scores, self.spans, strict=True)):
            steps = split_steps(sample.solution, max_steps)
            if score.value is None or not steps or len(steps) != len(score.steps):
                unknown += 1
                continue
            index_BT[row, : len(spans)] = torch.tensor(token_steps(spans, steps), dtype=torch.long)
        self.metrics["shaper/without_steps"] = unknown / max(1, len(self.samples))
        return index_BT.to(self.mask_BT.device).masked_fill(self.mask_BT == 0, -1)


def token_steps(spans: Sequence[tuple[int, int]], steps: Sequence[Step]) -> list[int]:
    """For each token the step that it belongs to: the last one that begins before the token's end.

    So a token that ends one step and begins the next belongs to the next; blank space between steps to the step before; what stands before
    the first step to the first; the end token, which has no characters, to the last.
    """
    starts = [step.start for step in steps]
    return [max(0, bisect_left(starts, end) - 1) for _, end in spans]


def per_token(advantages: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """(B,) or (B, T) advantages as (B, T)."""
    return advantages.unsqueeze(1).expand(mask_BT.shape) if advantages.dim() == 1 else advantages


def spread(values: Sequence[Sequence[float]], index_BT: torch.Tensor, default_BT: torch.Tensor) -> torch.Tensor:
    """Step values put at their steps' tokens; `default_BT` where a token's step is not known (-1)."""
    result = default_BT.clone()
    for row, own in enumerate(values):
        known = index_BT[row] >= 0
        if own and bool(known.any()):
            result[row, known] = torch.tensor(own, dtype=result.dtype, device=result.device)[index_BT[row, known]]
    return result


def named(shapers: Mapping[str, Mapping[str, Any] | None], known: Mapping[str, Callable[..., Any]]) -> list[tuple[str, Callable[..., Any]]]:
    """(name, function of advantages and batch) for each shaper and its settings. Raises InputError for unknown names and settings."""
    import inspect
    from functools import partial

    from ...rm.load import resolve

    found = []
    for name, settings in shapers.items():
        if name not in known and ":" not in name:
            raise InputError(f"unknown shaper {name!r}; there are {', '.join(known)}, and package.module:function")
        function = known.get(name) or resolve(name, "shaper")
        taken = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
        if wrong := [key for key in settings or {} if key not in taken]:
            raise InputError(f"the shaper {name} has no setting {wrong[0]!r}; it has {', '.join(taken) or 'none'}")
        found.append((name, partial(function, **(settings or {}))))
    return found
