"""What a scalar head learns: the losses, and the trainer that gives it whole chats. Legend: N answers, P pairs.

Bradley-Terry (the loss of InstructGPT, arXiv 2203.02155, eq. 1): -log sigmoid(r_chosen - r_rejected - margin), with the margin of Llama 2
(arXiv 2307.09288, eq. 2) where there is one, and `centre` * (r_chosen + r_rejected)^2 beside it (arXiv 2312.09244), which keeps the rewards
around 0. Regression: squared error, or cross-entropy for targets in [0, 1].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer

from .sft import InOrder

Objective = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], tuple[torch.Tensor, dict[str, torch.Tensor]]]


def bradley_terry(centre: float = 0.0) -> Objective:
    """The loss of (2P,) scores, the chosen ones first, with `margins` (P,); and its figures: `accuracy`, a tie counting half."""

    def objective(scores_N: torch.Tensor, extra: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        chosen_P, rejected_P = scores_N.chunk(2)
        loss = -functional.logsigmoid(chosen_P - rejected_P - extra["margins"]).mean()
        if centre:
            loss = loss + centre * (chosen_P + rejected_P).square().mean()
        right_P = (chosen_P > rejected_P).float() + 0.5 * (chosen_P == rejected_P).float()
        return loss, {"accuracy": right_P.mean()}

    return objective


def regression(loss: str = "mse") -> Objective:
    """The loss of (N,) scores against `targets` (N,), and `absolute_error` in the same units (of the sigmoid, for "bce")."""

    def objective(scores_N: torch.Tensor, extra: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        targets_N = extra["targets"]
        if loss == "bce":
            value = functional.binary_cross_entropy_with_logits(scores_N, targets_N)
            return value, {"absolute_error": (scores_N.sigmoid() - targets_N).abs().mean()}
        return functional.mse_loss(scores_N, targets_N), {"absolute_error": (scores_N - targets_N).abs().mean()}

    return objective


class ScoreTrainer(Trainer):
    """transformers' Trainer over a model with a sequence head. `objective` says the loss; a batch's `margins` or `targets` go to it.

    TRL's RewardTrainer takes text alone. The loss is a mean over a batch, so that several processes with a batch each and one process with
    their batches together take the same steps. `order` holds the indices of the whole run, all epochs; each is taken once, in this order.
    """

    order: Sequence[int] = ()
    loss_is_scaled_for_ga = False

    def __init__(self, model: Any, *args: Any, objective: Objective, peft_config: Any = None, **kwargs: Any):
        if peft_config is not None:
            from peft import get_peft_model

            model = get_peft_model(model, peft_config)
            if kwargs["args"].gradient_checkpointing:
                model.enable_input_require_grads()
        super().__init__(model, *args, **kwargs)
        self.objective = objective
        self.sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> InOrder:
        return InOrder(self.order)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        extra = {name: inputs.pop(name) for name in ("margins", "targets") if name in inputs}
        scores_N = model(**inputs).logits[:, 0].float()
        loss, figures = self.objective(scores_N, extra)
        count = len(scores_N)
        for name, value in figures.items():
            total, items = self.accelerator.reduce(torch.stack([value.detach() * count, value.new_tensor(count)]), "sum").tolist()
            sums = self.sums[name if self.model.training else f"eval_{name}"]
            sums[0], sums[1] = sums[0] + total, sums[1] + items
        return (loss, {"logits": scores_N}) if return_outputs else loss

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: Any = None
    ) -> tuple[Any, None, None]:
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            return self.compute_loss(model, inputs).detach(), None, None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        wanted = [name for name in self.sums if name.startswith("eval_") == any(key.startswith("eval_") for key in logs)]
        logs.update({name: total / count for name in wanted for total, count in [self.sums.pop(name)]})
        super().log(logs, start_time)
