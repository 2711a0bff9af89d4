"""What makes a small model train about twice as fast on a CPU that multiplies bfloat16 quickly (AMX, AVX512-BF16).

There the matrix products are a tenth of a step; the rest is moving memory: conversions, norms, attention's softmax, the LM head's
float32. Each function here replaces one of these by the same computation with fewer passes. Nothing of it runs on a GPU.
Legend: B rows, T tokens, N labelled tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from trl.trainer.utils import FusedCausalLMOutput

from ..types import InputError

ATTENTION = "vlrm_cpu"


def use_bf16() -> bool:
    """Whether this machine multiplies bfloat16 matrices quickly."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def register_attention() -> str:
    """Makes `ATTENTION` known to transformers: eager attention in bfloat16 throughout, without its way through float32."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import eager_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, eager_mask)
    return ATTENTION


def _attention(module: nn.Module, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **more: Any) -> Any:
    if any(more.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise InputError(f"{type(module).__name__} needs its own attention; pass attention='eager'")
    groups, dtype = query.shape[1] // key.shape[1], query.dtype  # grouped-query attention
    query, key, value = (x.to(torch.bfloat16) for x in (query, key, value))
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (key, value))
    scores = query * (query.shape[-1] ** -0.5 if scaling is None else scaling) @ key.transpose(2, 3)
    if attention_mask is not None:
        # float32's lowest number is -inf in bfloat16, which would make a row of padding NaN
        scores = scores + attention_mask[..., : key.shape[2]].to(scores.dtype).clamp(min=-1e30)
    return (scores.softmax(-1) @ value).transpose(1, 2).to(dtype).contiguous(), None  # float32 outside of autocast


def load_network(load: Callable[..., nn.Module], base: str, attention: str | None, quick: bool, **options: Any) -> nn.Module:
    """`load(base, ...)` with this attention; without one, and where `quick`, with what is quickest on a CPU that multiplies bfloat16."""
    attention = attention or (register_attention() if quick else None)
    network = load(base, attn_implementation=attention, **options)
    if attention == ATTENTION:
        quicken_decoder(network)
    return network


def quicken_decoder(model: nn.Module) -> None:
    """RMS norms as one function with a written-out gradient, and rotary position embeddings in bfloat16."""
    for module in model.get_decoder().modules():
        name = type(module).__name__
        if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = functools.partial(_rms_norm, module, module.forward)
        elif name.endswith("RotaryEmbedding"):
            module.register_forward_hook(lambda module, args, cos_sin: tuple(x.to(torch.bfloat16) for x in cos_sin))


def _rms_norm(module: nn.Module, usual: Any, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32 or module.weight.dtype != torch.float32:
        return usual(x)
    return RMSNorm.apply(x, module.weight, module.variance_epsilon)


class RMSNorm(torch.autograd.Function):
    """weight * x / sqrt(mean(x^2) + eps) over the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, scale, weight)
        return normed * weight

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        normed, scale, weight = ctx.saved_tensors
        product = grad * normed
        along = (product @ weight).unsqueeze_(-1).div_(-normed.shape[-1])
        return torch.addcmul(grad * weight, normed, along).mul_(scale), product.flatten(0, -2).sum(0), None


def add_compact_lm_head(model: nn.Module, largest_vocabulary: int = 8192) -> None:
    """Replaces TRL's fused head, which on a CPU computes every position in float32.

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
