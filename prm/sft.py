"""The trainer behind `train_gm_prm`: TRL's SFTTrainer with token weights, and what surrounds it (LoRA, freezing, checkpoints, metrics)."""

from __future__ import annotations

import ctypes
import functools
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback
from trl import SFTTrainer
from trl.trainer.utils import FusedCausalLMOutput

from ..types import InputError


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
                verdicts_BT = weights_BT[:, 1:] > 1
                if verdicts_BT.any():
                    right = outputs.is_top1[verdicts_BT].float().mean().item()
                    self._metrics["train" if self.model.training else "eval"]["verdict_accuracy"].append(right)
            return outputs

        loss = super().compute_loss(weighted, inputs, *args, **kwargs)
        self._metrics["train" if self.model.training else "eval"].pop("entropy", None)
        return loss

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The finished model gets its card from `train_gm_prm`; TRL would write one at every checkpoint."""


def add_compact_lm_head(model: nn.Module, largest_vocabulary: int = 8192) -> None:
    """Replaces TRL's fused head on a CPU, where that computes every position in float32 (a fifth of a small model's step).

    Only labelled positions are projected, in the dtype of autocast; the results and their names are TRL's. Models with a large
    vocabulary or scaled logits keep TRL's head.
    """
    text_config, fused = model.config.get_text_config(), model.forward
    scaled = ("final_logit_softcapping", "logit_scale", "output_multiplier", "lm_head_multiplier", "logits_scaling", "num_experts")
    if text_config.vocab_size > largest_vocabulary or any(getattr(text_config, name, None) is not None for name in scaled):
        return

    def forward(*args: Any, fused_lm_head: bool = False, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return fused(*args, **kwargs, **({} if labels is None else {"labels": labels}))
        kwargs.pop("num_items_in_batch", None)
        hidden_BTH = model.base_model(*args, **kwargs).last_hidden_state[:, :-1]
        mask_BT = labels[:, 1:] != -100
        places_N = mask_BT.flatten().nonzero()[:, 0]
        targets_N = labels[:, 1:].flatten()[places_N]
        logits_NV = model.get_output_embeddings()(hidden_BTH.flatten(0, 1).index_select(0, places_N)).float()
        nll_N = nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
        top1_N = logits_NV.argmax(-1) == targets_N

        def spread(values_N: torch.Tensor) -> torch.Tensor:
            return values_N.new_zeros(mask_BT.numel()).index_put((places_N,), values_N).view(mask_BT.shape)

        no_entropy = torch.zeros((), dtype=logits_NV.dtype)  # costs as much as the loss and is only a log
        return FusedCausalLMOutput(log_probs=spread(-nll_N), entropy=no_entropy, is_top1=spread(top1_N), label_mask=mask_BT)

    model.forward = functools.wraps(type(model).forward)(forward)  # `generate` looks at the signature


def cpu_attention() -> str:
    """The name of an attention for a CPU that multiplies bfloat16 quickly, known to transformers from now on.

    Eager attention without its way through float32: a quarter faster on texts of a few hundred tokens than transformers' own two.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    def attend(module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **more: Any) -> Any:
        if any(more.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
            raise InputError(f"{type(module).__name__} needs its own attention; pass attention='eager'")
        groups = query.shape[1] // key.shape[1]  # grouped-query attention
        query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
        key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
        scores = query * (query.shape[-1] ** -0.5 if scaling is None else scaling) @ key.transpose(2, 3)
        if attention_mask is not None:
            scores = scores + attention_mask[..., : key.shape[2]].to(scores.dtype)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("vlrm_cpu", attend)
    AttentionMaskInterface.register("vlrm_cpu", eager_mask)
    return "vlrm_cpu"


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


def use_bf16() -> bool:
    """Whether this machine multiplies bfloat16 matrices quickly."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def quicken_cpu() -> None:
    """Flush denormal numbers, and let the allocator keep freed memory: fresh pages cost more than small matrix products."""
    torch.set_flush_denormal(True)
    if sys.platform == "linux":
        try:
            libc = ctypes.CDLL("libc.so.6")
            libc.mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own for large blocks
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: do not give freed memory back
        except (OSError, AttributeError):
            pass  # another C library: only slower
