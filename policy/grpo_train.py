"""Training a policy with rewards: GRPO by TRL, on any image-text-to-text model.

    vlrm train configs/grpo_tiny.yaml

TRL's GRPOTrainer does the work (`grpo.py` says what is put around it): its settings that are not named here are passed through `grpo`. The
output folder holds a model that `load_engine` takes, `policy.json` (written last) with what was run, and metrics.jsonl, of which `vlrm
report` makes a page.
"""

from __future__ import annotations

import difflib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import __version__
from ..rm.checkers import load_checker
from ..rm.fit import Training, known
from ..rm.output import finished, prepare_folder, save_whole
from ..serving.allocator import quicken_process
from ..serving.load import model_path
from ..types import InputError, Problem
from .alarm import Alarm
from .grpo_data import digest, fitting, rows, side_by_side, trial
from .rewards import Reward, load_rewards
from .rewards.spec import check_columns, try_rewards
from .shapers import SHAPERS
from .shapers.batch import named

CARD = "policy.json"


@dataclass(frozen=True)
class Recipe(Training):
    """How to train with GRPO. Sizes are in completions: an optimizer step sees batch_size * gradient_accumulation of them on each device,
    whole groups of `group_size` for a problem."""

    batch_size: int = 16
    gradient_accumulation: int = 4
    group_size: int = 8  # completions of one problem
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_tokens: int = 1024  # longest completion
    instruction: str = ""  # put after every question
    beta: float = 0.0  # weight of the KL term
    loss: str = "dapo"  # TRL's loss_type
    scale_rewards: str = "group"  # group, batch or none
    iterations: int = 1  # optimizer passes over the same completions
    use_vllm: bool = False
    vllm_mode: str = "colocate"  # or server
    grpo: Mapping[str, Any] = field(default_factory=dict)  # other settings of trl.GRPOConfig
    max_pixels: int | None = None  # larger pictures are made smaller for the policy (not for the scorers)
    together: str | None = None  # a column of the problems: those with equal values are kept in one batch
    checker: str = "auto"  # of the gold accuracy, which is measured and never a reward
    eval_steps: int | None = None  # steps between held-out evaluations; None: save_steps
    keep: str = "best"  # which policy is the result: best on the held-out problems, or last
    blind_every: int = 10  # every so many generations some completions are scored again without their pictures; 0 is never
    blind_samples: int = 8
    alarm_drop: float = 0.02  # see `Alarm`
    alarm_rise: float = 0.0
    workers: int = 0
    save_steps: int = 100
    logging_steps: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_tokens", "iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.group_size < 2:
            raise InputError(f"group_size must be at least 2: GRPO compares completions of one problem, got {self.group_size}")
        if self.completions % self.group_size:
            raise InputError(f"batch_size * gradient_accumulation = {self.completions} must be a multiple of group_size {self.group_size}")
        for name in ("temperature", "top_p"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")
        for name, choices in (
            ("scale_rewards", ("group", "batch", "none")),
            ("vllm_mode", ("colocate", "server")),
            ("keep", ("best", "last")),
        ):
            if getattr(self, name) not in choices:
                raise InputError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        if self.save_every % self.iterations:
            raise InputError(f"checkpoints every {self.save_every} steps cut {self.iterations} iterations apart; give a multiple of them")

    @property
    def completions(self) -> int:
        return self.batch_size * self.gradient_accumulation

    @property
    def save_every(self) -> int:
        return self.eval_steps or self.save_steps

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or (1e-5 if self.lora else 1e-6)


def train_grpo(
    model: str | Path,
    problems: Sequence[Problem],
    output_dir: str | Path,
    *,
    rewards: Mapping[str, Any] | Sequence[Reward],
    shapers: Mapping[str, Mapping[str, Any] | None] | None = None,
    eval_problems: Sequence[Problem] = (),
    resume: bool = True,
    keep_checkpoints: bool = False,
    progress: bool = True,
    identity: Mapping[str, Any] | None = None,
    **recipe: Any,
) -> dict[str, Any]:
    """Trains the policy and writes it to `output_dir`; returns a summary, also kept in `policy.json`.

    `rewards` as in `policy/rewards/spec.py`, or ready `Reward`s; `shapers` {name: settings} in order, as in `policy/shapers`. `recipe`
    holds fields of `Recipe`. With `eval_problems` the rewards and the gold accuracy are measured on them before the first step and every
    `eval_steps`, with a checkpoint each time; unless `keep="last"` the one with the best gold accuracy (without gold answers: reward) is
    the result.

    An interrupted run goes on from its last complete checkpoint when called again with the same arguments and follows the same curve; a
    finished one is not repeated (`resume=False` starts afresh). `identity` is what else must stay equal, such as the files of a
    scorer. Raises InputError for what cannot be used; every scorer is asked once before anything is trained.
    """
    output_dir, base = Path(output_dir), model_path(str(model))
    settings = known(Recipe, recipe, "train_grpo")
    said = json.loads(json.dumps({"rewards": rewards if isinstance(rewards, Mapping) else [r.name for r in rewards]}, default=_name))
    run = {"model": str(model), "data": digest(problems), "eval_data": digest(eval_problems), **said, "shapers": dict(shapers or {})}
    run |= {**settings.identity(), **(identity or {})}
    if resume and (summary := finished(output_dir, run, CARD)):
        return summary
    shaping, loaded = named(shapers or {}, SHAPERS), load_rewards(rewards)
    names = [reward.name for reward in loaded]
    for name, own in (shapers or {}).items():
        if (wanted := (own or {}).get("reward")) is not None and wanted not in names:
            raise InputError(f"the shaper {name} asks for the reward {wanted!r}; there are {', '.join(names)}")
    best = "eval_gold" if all(problem.answer is not None for problem in eval_problems) else "eval_reward"
    config = trl_config(settings, output_dir / "checkpoints", bool(eval_problems), best if settings.keep == "best" else None)
    tried = trial(problems)
    for line in check_columns(loaded, problems) + try_rewards(loaded, tried):
        print(f"vlrm: {line}", file=sys.stderr)
    prepare_folder(output_dir, run, resume, CARD)

    from ..rm.sft import last_complete_checkpoint

    checkpoint = last_complete_checkpoint(output_dir / "checkpoints")
    config.eval_on_start = bool(eval_problems) and checkpoint is None
    trainer, counts = make_trainer(settings, base, config, problems, eval_problems, loaded, shaping, output_dir / "metrics.jsonl", progress)
    started, before = time.perf_counter(), trainer_step(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    steps = trainer.state.global_step
    summary = {
        "run": run,
        "counts": counts,
        "steps": steps,
        "resumed_from": before,
        "kept_step": trainer.state.best_global_step or steps,
        "best": {best: trainer.state.best_metric} if trainer.state.best_metric is not None else {},
        "seconds": round(time.perf_counter() - started, 1),
        "unscored": {function.__name__: dict(function.reasons) for function in trainer.reward_funcs},
        "alarms": read_alarms(output_dir / "metrics.jsonl"),
    }
    save_whole(trainer, output_dir, base, model_card(base, summary), {"training": summary, "version": __version__}, CARD, keep_checkpoints)
    if progress and trainer.is_world_process_zero():
        print(f"trained for {steps} steps in {summary['seconds']:.0f} s; the policy of step {summary['kept_step']} is in {output_dir}")
    return summary


def trl_config(recipe: Recipe, folder: Path, held_out: bool = False, best: str | None = None) -> Any:
    """The recipe as TRL's GRPOConfig. `best` is the held-out metric of the checkpoint to keep, None for the last one. Raises InputError."""
    import torch
    from trl import GRPOConfig

    from ..rm import cpu

    on_cpu = not torch.accelerator.is_available()
    wanted = {
        "output_dir": str(folder),
        "per_device_train_batch_size": recipe.batch_size,
        "per_device_eval_batch_size": recipe.batch_size,
        "gradient_accumulation_steps": recipe.gradient_accumulation,
        "num_generations": recipe.group_size,
        "num_generations_eval": 1,
        "num_iterations": recipe.iterations,
        "temperature": recipe.temperature,
        "top_p": recipe.top_p,
        "top_k": recipe.top_k,
        "max_completion_length": recipe.max_tokens,
        "beta": recipe.beta,
        "loss_type": recipe.loss,
        "scale_rewards": recipe.scale_rewards,
        "use_vllm": recipe.use_vllm,
        "vllm_mode": recipe.vllm_mode,
        "shuffle_dataset": recipe.together is None,
        "learning_rate": recipe.peak_learning_rate,
        "lr_scheduler_type": recipe.schedule,
        "warmup_steps": recipe.warmup,
        "weight_decay": recipe.weight_decay,
        "max_grad_norm": recipe.max_grad_norm,
        "num_train_epochs": recipe.epochs,
        "max_steps": recipe.max_steps or -1,
        "bf16": cpu.use_bf16() if recipe.bf16 is None else recipe.bf16,
        "use_cpu": on_cpu,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "dataloader_num_workers": recipe.workers,
        "logging_steps": recipe.logging_steps,
        "eval_strategy": "steps" if held_out else "no",
        "eval_steps": recipe.save_every,
        "save_steps": recipe.save_every,
        "save_total_limit": 2,
        "load_best_model_at_end": held_out and best is not None,
        "metric_for_best_model": best if held_out else None,
        "greater_is_better": True,
        "seed": recipe.seed,
        "report_to": [],
        "disable_tqdm": True,
    }
    for name in recipe.grpo:
        if name in wanted:
            raise InputError(f"grpo: {name} has a key of its own in the recipe")
        if name not in GRPOConfig.__dataclass_fields__:
            close = difflib.get_close_matches(name, GRPOConfig.__dataclass_fields__, n=1, cutoff=0.0)[0]
            raise InputError(f"grpo: {name} is no setting of GRPOConfig; did you mean {close!r}?")
    try:
        return GRPOConfig(**wanted, **recipe.grpo)
    except (ValueError, TypeError) as error:
        raise InputError(f"TRL refuses the settings: {error}") from error


def make_trainer(
    recipe: Recipe,
    base: str,
    config: Any,
    problems: Sequence[Problem],
    eval_problems: Sequence[Problem],
    rewards: Sequence[Reward],
    shapers: Sequence[Any],
    metrics: Path,
    progress: bool,
) -> tuple[Any, dict[str, int]]:
    """The trainer, ready to run, and how many problems there are and were dropped."""
    from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback

    from ..rm import cpu
    from ..rm.sft import MetricsFile, freeze_vision_tower, lora_config
    from .grpo import RewardTrainer
    from .grpo_callbacks import AlarmCallback, Lines

    if config.use_cpu:
        quicken_process()
    processor = AutoProcessor.from_pretrained(base)
    shown = {"instruction": recipe.instruction, "max_pixels": recipe.max_pixels}
    kept, kept_eval = (fitting(part, processor, recipe.max_length, **shown) for part in (problems, eval_problems))
    dropped = len(problems) + len(eval_problems) - len(kept) - len(kept_eval)
    counts = {"problems": len(kept), "eval problems": len(kept_eval), "dropped: longer than max_length": dropped}
    if not kept or bool(kept_eval) != bool(eval_problems):
        raise InputError(f"no problem is left to {'evaluate' if kept else 'train'} on: all are longer than max_length {recipe.max_length}")
    if recipe.together:
        kept = side_by_side(kept, recipe.together, recipe.completions // recipe.group_size, recipe.seed)
    dtype = recipe.dtype or ("bfloat16" if recipe.lora and config.bf16 else "float32")
    quick = config.use_cpu and config.bf16
    network = cpu.load_network(AutoModelForImageTextToText.from_pretrained, base, recipe.attention, quick, dtype=dtype)
    if recipe.freeze_vision and not recipe.lora:
        freeze_vision_tower(network)
    trainer = RewardTrainer(
        model=network,
        args=config,
        train_dataset=rows(kept, **shown),
        eval_dataset=rows(kept_eval, **shown) if kept_eval else None,
        processing_class=processor,
        peft_config=lora_config(network, recipe.lora) if recipe.lora else None,
        callbacks=[MetricsFile(metrics, 1), AlarmCallback(metrics, Alarm(recipe.alarm_drop, recipe.alarm_rise), len(kept_eval))],
        rewards=rewards,
        shapers=shapers,
        gold=load_checker(recipe.checker),
        blind_every=recipe.blind_every,
        blind_samples=recipe.blind_samples,
    )
    trainer.remove_callback(PrinterCallback)
    if progress:
        trainer.add_callback(Lines)
    return trainer, counts


def trainer_step(checkpoint: Path | None) -> int:
    return int(checkpoint.name.split("-")[-1]) if checkpoint else 0


def read_alarms(path: Path) -> list[str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [row["alarm"] for line in lines if "alarm" in (row := json.loads(line))]


def model_card(base: str, summary: Mapping[str, Any]) -> str:
    def table(values: Mapping[str, Any]) -> str:
        lines = [f"| {name} | {json.dumps(value, ensure_ascii=False)} |" for name, value in values.items()]
        return "\n".join(["| | |", "|---|---|", *lines])

    result = {name: summary[name] for name in ("steps", "kept_step", "best", "seconds", "unscored", "alarms")}
    return f"""---
library_name: transformers
base_model: {base}
tags: [grpo]
---
# A policy trained with GRPO

Trained from `{base}` by `vlrm train --method grpo`.

## Result
{table(result)}

## Data
{table(summary["counts"])}

## Recipe
{table(summary["run"])}
"""


def _name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"
