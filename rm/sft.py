"""TRL's SFTTrainer with token weights, and what surrounds every trainer (LoRA, freezing, checkpoints, metrics)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import SFTTrainer

from ..types import InputError
from .cpu import add_compact_lm_head


class CritiqueTrainer(SFTTrainer):
    """SFTTrainer whose loss weights every token by the batch's `loss_weights` (B, T): sum(w * nll) / number of labelled tokens.

    `order` holds the indices of the whole run, all epochs; each is taken once, in this order.
    """

    order: Sequence[int] = ()

    def __init__(self, model: Any, *args: Any, **kwargs: Any):
        super().__init__(model, *args, **kwargs)
        if self.accelerator.device.type == "cpu":
            add_compact_lm_head(self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model)

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler:
        return InOrder(self.order)

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        weights_BT = inputs.pop("loss_weights")

        def weighted(**forward: Any) -> Any:
            # TRL's loss is minus the sum of `log_probs`, which belong to the tokens from the second one on.
            outputs = model(**forward)
            if forward.get("fused_lm_head"):
                outputs.log_probs = outputs.log_probs * weights_BT[:, 1:]
                name, places_BT = self.watched(weights_BT[:, 1:])
                if places_BT.any():
                    right = outputs.is_top1[places_BT].float().mean().item()
                    self._metrics["train" if self.model.training else "eval"][name].append(right)
            return outputs

        loss = super().compute_loss(weighted, inputs, *args, **kwargs)
        self._metrics["train" if self.model.training else "eval"].pop("entropy", None)
        return loss

    def watched(self, weights_BT: Any) -> tuple[str, Any]:
        """A metric's name and the places whose accuracy it is: verdict words, and the corrected step where it has more weight."""
        return "weighted_token_accuracy", weights_BT > 1

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The finished model gets its card from `output.py`; TRL would write one at every checkpoint."""


class VerdictTrainer(CritiqueTrainer):
    """CritiqueTrainer that learns a distribution over the verdict words at each labelled place.

    The batch's `verdict_targets` (B, T, K) and `verdict_ids` (K,) say which. The loss is the cross-entropy against them, of the words among
    the whole vocabulary or, with `choice_loss`, among themselves; a network with a `score` head gives the words' logits itself, at the
    word's own place (one logit stands for the positive word against 0).
    """

    def __init__(self, *args: Any, choice_loss: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.choice_loss = choice_loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        import torch
        from trl.trainer.utils import FusedCausalLMOutput

        targets_BTK, ids_K = inputs.pop("verdict_targets"), inputs.pop("verdict_ids")
        inputs.pop("loss_weights")
        head = hasattr(self.accelerator.unwrap_model(model), "score")

        def verdicts(fused_lm_head: bool = False, labels: Any = None, num_items_in_batch: Any = None, **forward: Any) -> Any:
            # TRL's places are those of the tokens from the second one on, each predicted by the token before it.
            mask_BT = labels[:, 1:] != -100
            rows, columns = mask_BT.nonzero(as_tuple=True)
            kept, where = torch.unique(columns + head, return_inverse=True)
            logits_NV = model(**forward, logits_to_keep=kept).logits[rows, where].float()
            if head:
                logits_NK = logits_NV if logits_NV.shape[-1] == 2 else torch.cat([logits_NV, torch.zeros_like(logits_NV)], dim=-1)
            else:
                logits_NK = logits_NV[:, ids_K]
            whole_N1 = (logits_NK if self.choice_loss or head else logits_NV).logsumexp(dim=-1, keepdim=True)
            targets_NK = targets_BTK[:, 1:][mask_BT]
            right_N = logits_NK.argmax(-1) == targets_NK.argmax(-1)
            self._metrics["train" if self.model.training else "eval"]["verdict_accuracy"].append(right_N.float().mean().item())

            def spread(values_N: torch.Tensor) -> torch.Tensor:
                return values_N.new_zeros(mask_BT.shape).index_put((rows, columns), values_N)

            log_probs = spread((targets_NK * (logits_NK - whole_N1)).sum(dim=-1))
            return FusedCausalLMOutput(log_probs=log_probs, entropy=log_probs.new_zeros(()), is_top1=spread(right_N), label_mask=mask_BT)

        loss = super(CritiqueTrainer, self).compute_loss(verdicts, inputs, *args, **kwargs)
        metrics = self._metrics["train" if self.model.training else "eval"]
        metrics.pop("entropy", None)
        metrics.pop("mean_token_accuracy", None)
        return loss


class PairTrainer(CritiqueTrainer):
    """CritiqueTrainer whose weighted sum is divided by the number of sequences, those of all processes and accumulated batches, if
    `by_sequence` (PaCo-Reward's paper), else by the number of labelled tokens (its released code)."""

    def __init__(self, *args: Any, by_sequence: bool = True, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.by_sequence = by_sequence

    def watched(self, weights_BT: Any) -> tuple[str, Any]:
        return "first_token_accuracy", (weights_BT > 0) & ((weights_BT > 0).cumsum(dim=1) == 1)

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: Any) -> Any:
        """What TRL divides the loss by; None where the model has no say in it, and the mean of the batches' means is taken."""
        if not self.by_sequence or not self.model_accepts_loss_kwargs:
            return super()._get_num_items_in_batch(batch_samples, device)
        import torch

        rows = torch.tensor(sum(len(batch["labels"]) for batch in batch_samples), device=device)
        return self.accelerator.gather(rows).sum() if self.args.world_size > 1 and self.args.average_tokens_across_devices else rows

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None, **more: Any
    ) -> Any:
        if self.by_sequence and num_items_in_batch is None:  # as in evaluation: TRL divides by the batch's own labelled tokens
            tokens = (inputs["labels"][:, 1:] != -100).sum()
            inputs["loss_weights"] = inputs["loss_weights"] * tokens / len(inputs["labels"])
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch, **more)


class InOrder(Sampler):
    def __init__(self, order: Sequence[int]):
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[int]:
        return iter(self.order)


class MetricsFile(TrainerCallback):
    """One JSON line for every log; a resumed run first drops the lines after its checkpoint. `epochs`: what the trainer takes for one."""

    def __init__(self, path: Path, epochs: int):
        self.path, self.epochs = path, epochs

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            lines = self.path.read_text().splitlines() if self.path.exists() else []
            kept = [line for line in lines if (step := _step_of(line)) is not None and step <= state.global_step]
            self.path.write_text("".join(line + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        if state.is_world_process_zero and logs:
            row = {"step": state.global_step, **logs, "epoch": round((state.epoch or 0) * self.epochs, 4)}
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")


def _step_of(line: str) -> int | None:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):  # the last line of a killed run may be cut
        return None


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end. The trainer's state is written last, so a killed save lacks it or has it cut."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(re.sub(r"\D", "", path.name) or 0), reverse=True)
    for path in found:
        try:
            if json.loads((path / "trainer_state.json").read_text())["global_step"] > 0:
                return path
        except (OSError, ValueError, KeyError):
            continue
    return None


def freeze_vision_tower(model: nn.Module) -> None:
    """No gradients for the picture encoder; the projector and the language model stay trainable."""
    tower = model.get_encoder(modality="image")
    if tower is model or tower is model.base_model:
        raise InputError(f"cannot find the vision tower of {type(model).__name__}; pass freeze_vision=False")
    tower.requires_grad_(False)


def lora_config(model: nn.Module, lora: Mapping[str, Any] | bool) -> Any:
    """A peft.LoraConfig. Unless the settings name `target_modules`, the linear layers of the language model are adapted."""
    from peft import LoraConfig

    settings = {"r": 16, "lora_alpha": 32, "task_type": "CAUSAL_LM", **(lora if isinstance(lora, Mapping) else {})}
    settings.setdefault("target_modules", language_layers(model))
    if hasattr(model, "score"):  # a fresh head is trained whole
        settings.setdefault("modules_to_save", ["score"])
    try:
        return LoraConfig(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"lora: {error}; give settings of peft.LoraConfig") from None


def language_layers(model: nn.Module) -> str:
    """A pattern for the names of the linear layers inside the decoder; without a decoder of its own, all but the output layer."""
    decoder = model.get_decoder()
    prefix = next((name for name, module in model.named_modules() if module is decoder), "")
    leaves = {name.rsplit(".", 1)[-1] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    if not leaves:
        raise InputError(f"found no linear layers in the language model of {type(model).__name__}; give lora target_modules")
    return rf"{re.escape(prefix)}\..*\.({'|'.join(sorted(leaves))})" if prefix else rf".*\.({'|'.join(sorted(leaves))})"
