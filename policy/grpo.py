"""TRL's GRPOTrainer with any scorers as rewards, shaped advantages and diagnostics.

Two methods are wrapped and nothing of theirs is copied: `_calculate_rewards` (caps and gates behind it, measures beside it) and
`_generate_and_score_completions`, whose advantages (B,) the shapers turn into (B,) or (B, T), which TRL's loss takes both. Without rules
and shapers the run is TRL's own. tests/test_grpo_contract.py pins what is relied on. Run by `vlrm train --method grpo`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from trl import GRPOTrainer

from ..rm.checkers import Checker
from ..serving.tokens import TokenBytes
from ..types import Sample
from .diagnostics import batch_measures, blind_measures, text_measures
from .rewards.adapter import RewardFunction
from .rewards.rules import apply_rules, weight_at
from .rewards.spec import Reward
from .shapers.batch import Batch

Shaper = Callable[[torch.Tensor, Batch], torch.Tensor]
# What of TRL's output belongs to a forward pass of the policy.
FORWARD = (
    "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes", "num_tiles", "image_sizes", "token_type_ids",
    "mm_token_type_ids", "image_position_ids",
)  # fmt: skip


class RewardTrainer(GRPOTrainer):
    """GRPOTrainer for rows with the columns prompt, images and problem (a vlrm.Problem).

    `shapers` are (name, function) pairs, applied in order. `gold` checks answers for the metric of that name, which is never a reward.
    Every `blind_every`-th generation `blind_samples` of its completions are scored again without their pictures (0: never).
    """

    def __init__(
        self,
        *args: Any,
        rewards: Sequence[Reward],
        shapers: Sequence[tuple[str, Shaper]] = (),
        gold: Checker | None = None,
        blind_every: int = 0,
        blind_samples: int = 8,
        **kwargs: Any,
    ):
        self.rewards, self.shapers, self.gold = list(rewards), list(shapers), gold
        self.blind_every, self.blind_samples = blind_every, blind_samples
        functions = [RewardFunction(reward.scorer, reward.name, reward.timeout) for reward in self.rewards]
        super().__init__(*args, reward_funcs=functions, **kwargs)
        self.pieces = TokenBytes(self._tokenizer)
        self.samples: list[Sample] = []

    @property
    def progress(self) -> float:
        """The share of the run that is done."""
        return self.state.global_step / max(1, self.state.max_steps)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        texts = [self.pieces.decode(ids)[0] for ids in completion_ids_list]
        self.samples = [Sample(row["problem"], text) for row, text in zip(inputs, texts, strict=True)]
        rows = [{**row, "sample": sample} for row, sample in zip(inputs, self.samples, strict=True)]
        weights = [weight_at(reward.rules.weight, self.progress) for reward in self.rewards]
        self.reward_weights = torch.tensor(weights, dtype=torch.float32)
        values_NK = super()._calculate_rewards(rows, prompts, completions, completion_ids_list)
        for name, value in self._measures([len(ids) for ids in completion_ids_list]).items():
            self._log_metric(name, value)
        return apply_rules(values_NK, [reward.name for reward in self.rewards], [reward.rules for reward in self.rewards])

    def _measures(self, lengths: Sequence[int]) -> dict[str, float]:
        training = self.model.training
        group_size = self.num_generations if training else self.num_generations_eval
        measures = text_measures([sample.solution for sample in self.samples])
        if self.gold is not None:
            checked = [right for sample in self.samples if (right := self.gold(sample.solution, sample.problem)) is not None]
            measures |= {"gold": sum(checked) / len(checked)} if checked else {}
        steps = max(1, self.args.steps_per_generation * self.num_iterations // self.args.gradient_accumulation_steps)
        blind = training and self.blind_every > 0 and self.state.global_step // steps % self.blind_every == 0
        for reward, function in zip(self.rewards, self.reward_funcs, strict=True):
            measures |= batch_measures(reward.name, function.scores, lengths, group_size)
            if blind and getattr(reward.scorer, "looks", True):
                measures |= blind_measures(reward.name, function.score, self.samples, function.scores, self.blind_samples)
        return measures

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        output = super()._generate_and_score_completions(inputs)
        if not self.model.training or not self.shapers:
            return output
        batch = self._batch(output)
        for name, shaper in self.shapers:
            shaped = shaper(output["advantages"], batch)
            if shaped.shape not in (output["advantages"].shape[:1], output["completion_ids"].shape):
                wanted = f"({len(output['advantages'])},) or {tuple(output['completion_ids'].shape)}"
                raise ValueError(f"the shaper {name} must give advantages of the shape {wanted}, got {tuple(shaped.shape)}")
            output["advantages"] = shaped
        advantages_BT = output["advantages"] if output["advantages"].dim() == 2 else output["advantages"].unsqueeze(1)
        mean = (advantages_BT.abs() * output["completion_mask"]).sum() / output["completion_mask"].sum().clamp(min=1)
        for name, value in {**batch.metrics, "shaper/mean_size": mean.item()}.items():
            self._metrics["train"][name].append(value)
        return output

    def _batch(self, output: dict[str, Any]) -> Batch:
        ids, lengths = output["completion_ids"].tolist(), output["completion_mask"].sum(1).tolist()
        processor = getattr(self.processing_class, "image_processor", None)
        scale = getattr(processor, "rescale_factor", 1.0) if getattr(processor, "do_rescale", False) else 1.0
        mean, std = (getattr(processor, name, None) or (float(name == "image_std"),) for name in ("image_mean", "image_std"))
        normal = getattr(processor, "do_normalize", False)
        seed = hashlib.blake2b(f"{self.args.seed}/{self.state.global_step}/{self._step}".encode(), digest_size=6).digest()
        return Batch(
            samples=self.samples,
            scores={reward.name: function.scores for reward, function in zip(self.rewards, self.reward_funcs, strict=True)},
            mask_BT=output["completion_mask"],
            spans=[self.pieces.decode(row[:length])[1] for row, length in zip(ids, lengths, strict=True)],
            group_size=self.num_generations,
            progress=self.progress,
            logps=(lambda change: self._logps(output, change)) if "pixel_values" in output else None,
            black=[-m / s for m, s in zip(mean, std, strict=True)] if normal and scale else (0.0,),
            random=torch.Generator().manual_seed(int.from_bytes(seed, "big")),
        )

    def _logps(self, output: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor] | None) -> torch.Tensor:
        forward = {name: output[name] for name in FORWARD if name in output}
        if change is not None:
            forward["pixel_values"] = change(forward["pixel_values"])
        ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
        mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
        size = self.args.per_device_train_batch_size
        with torch.no_grad():
            found = self._get_per_token_logps_and_entropies(
                self.model, ids, mask, output["completion_ids"].size(1), batch_size=size, **forward
            )
        return found[0]

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The finished policy gets its card from `train_grpo`; TRL would write one at every checkpoint."""
