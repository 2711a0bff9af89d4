"""What every training run shares: the recipe, the trainer, the folder, the way through an interruption.

TRL's trainers do the work; what is learnt say `prm/train.py` (GM-PRM), `prm/train_vl_prm.py` and the training functions beside this file.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..serving.allocator import quicken_process
from ..types import InputError
from .collate import Survey, TargetCollator, batch_order
from .output import finished, prepare_folder, save_scorer

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL reports usage otherwise
_METRICS = ("loss", "accura", "error")  # what of the log goes into the summary


@dataclass(frozen=True)
class Training:
    """How to train, whatever is learnt. Two runs with equal recipes, data and machine give equal weights."""

    lora: bool | Mapping[str, Any] | None = False  # True, or settings of peft.LoraConfig (r 16, lora_alpha 32 unless given)
    freeze_vision: bool = True  # no gradients for the picture encoder (full training; LoRA freezes all but the adapters)
    epochs: int = 1
    max_steps: int | None = None  # optimizer steps; overrides epochs
    learning_rate: float | None = None  # None: 1e-5, with LoRA 1e-4
    schedule: str = "cosine"
    warmup: float = 0.03  # a share of the steps below 1, else their number
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    batch_size: int = 8  # samples on each device in each forward pass
    gradient_accumulation: int = 1
    max_length: int | None = None  # samples of more tokens are dropped and counted, never cut
    bf16: bool | None = None  # bfloat16 arithmetic; None: where the machine is quick at it
    dtype: str | None = None  # of the weights; None: float32, with LoRA and bf16 bfloat16
    attention: str | None = None  # transformers' attn_implementation; None: the quickest known here
    gradient_checkpointing: bool = False
    workers: int = 1  # processes that make batches
    save_steps: int = 500
    logging_steps: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation", "save_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_steps", "max_length", "learning_rate"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or (1e-4 if self.lora else 1e-5)

    def identity(self) -> dict[str, Any]:
        """What must stay equal for an interrupted run to go on."""
        free = ("workers", "save_steps", "logging_steps", "attention")
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if name not in free}


def known(recipe: type, settings: Mapping[str, Any], function: str) -> Any:
    """The recipe with these settings; InputError for one that it does not have."""
    for name in settings:
        if name not in recipe.__dataclass_fields__:
            close = difflib.get_close_matches(name, recipe.__dataclass_fields__, n=1, cutoff=0.0)[0]
            raise InputError(f"{function} has no setting {name!r}; did you mean {close!r}?")
    return recipe(**settings)


def fit(
    recipe: Training,
    method: str,
    model: str,
    base: str,
    output_dir: Path,
    found: Survey,
    n_train: int,
    *,
    make_collator: Callable[[Any], TargetCollator],
    make_trainer: Callable[..., Any],
    scorer_settings: Callable[[TargetCollator], Mapping[str, Any]],
    load_network: Callable[..., Any] | None = None,
    make_arguments: Callable[..., Any] | None = None,
    identity: Mapping[str, Any] | None = None,
    resume: bool = True,
    keep_checkpoints: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Trains on the surveyed items, the first `n_train` of them, and writes the scorer; returns the summary that `vlrm.json` keeps.

    `make_collator` gets the processor, `scorer_settings` the collator. `make_trainer` is a class of `sft.py`, handed what SFTTrainer
    takes; `load_network` stands for `AutoModelForImageTextToText.from_pretrained`, `make_arguments` for SFTConfig. `identity`: what
    else must stay equal for an interrupted run to go on.
    """
    run = {"model": model, "data": found.digest, **recipe.identity(), **(identity or {})}
    if resume and (summary := finished(output_dir, run)):
        return summary

    from transformers import AutoModelForImageTextToText, AutoProcessor

    from .sft import last_complete_checkpoint

    processor = AutoProcessor.from_pretrained(base)
    collator = make_collator(processor)
    train_rows, lengths, eval_rows = _fitting(collator, found, n_train, recipe.max_length)
    prepare_folder(output_dir, run, resume)
    load_network = load_network or AutoModelForImageTextToText.from_pretrained
    made = (make_trainer, load_network, make_arguments or _sft_arguments)
    trainer = _trainer(recipe, base, processor, collator, train_rows, lengths, eval_rows, output_dir, progress, *made)
    trainer.accelerator.wait_for_everyone()  # the first process makes the folder ready
    checkpoint = last_complete_checkpoint(output_dir / "checkpoints")
    started, before = time.perf_counter(), int(checkpoint.name.split("-")[-1]) if checkpoint else 0
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except InputError as error:  # one from a worker process brings that process's traceback along
        raise InputError(str(error).strip().splitlines()[-1].rpartition("InputError: ")[2]) from None
    seconds, steps = time.perf_counter() - started, trainer.state.global_step
    speed = (steps - before) * _per_step(recipe) / seconds
    last = {name: value for log in trainer.state.log_history for name, value in log.items() if any(word in name for word in _METRICS)}
    summary = {
        "run": run,
        "counts": dict(found.counts),
        "dropped_share": round(1 - (len(train_rows) + len(eval_rows)) / max(1, _all(found)), 4),
        "steps": steps,
        "resumed_from": before,
        "seconds": round(seconds, 1),
        "samples_per_second": round(speed, 2),
        "metrics": last,
    }
    save_scorer(trainer, output_dir, base, scorer_settings(collator), summary, keep_checkpoints, method)
    if progress and trainer.is_world_process_zero():
        dropped = f", {summary['dropped_share']:.1%} of the data dropped" if summary["dropped_share"] else ""
        print(f"trained on {len(train_rows)} samples, {steps} steps in {seconds:.0f} s ({speed:.1f} samples/s){dropped}: {output_dir}")
    return summary


def _all(found: Survey) -> int:
    """How many items were looked at. (`found.counts` names the dropped ones by reason; _fitting adds those that are too long.)"""
    short = found.counts["dropped: longer than max_length"]
    return len(found.indices) + sum(count for name, count in found.counts.items() if name.startswith("dropped: ")) - short


def _per_step(recipe: Training) -> int:
    return recipe.batch_size * recipe.gradient_accumulation * int(os.environ.get("WORLD_SIZE", "1"))


def _fitting(collator: TargetCollator, found: Survey, n_train: int, max_length: int | None) -> tuple[list[int], list[int], list[int]]:
    """Rows to train on with their rough lengths, and rows to evaluate on, without those of more than `max_length` tokens."""
    pairs = list(zip(found.indices, found.lengths, strict=True))
    if max_length is not None:
        exact = collator.lengths(found.indices)
        pairs = [pair for pair, length in zip(pairs, exact, strict=True) if length <= max_length]
        found.counts["dropped: longer than max_length"] += len(found.indices) - len(pairs)
    train = [(index, length) for index, length in pairs if index < n_train]
    if not train:
        reasons = "; ".join(f"{count} {reason}" for reason, count in found.counts.items()) or "there are none"
        raise InputError(f"no record is left to train on ({reasons})")
    return [index for index, _ in train], [length for _, length in train], [index for index, _ in pairs if index >= n_train]


def _trainer(
    recipe: Training,
    base: str,
    processor: Any,
    collator: TargetCollator,
    train_rows: Sequence[int],
    lengths: Sequence[int],
    eval_rows: Sequence[int],
    output_dir: Path,
    progress: bool,
    make_trainer: Callable[..., Any],
    load_network: Callable[..., Any],
    make_arguments: Callable[..., Any],
) -> Any:
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback, set_seed

    from . import cpu
    from .sft import MetricsFile, freeze_vision_tower, lora_config

    on_cpu = not torch.accelerator.is_available()
    if on_cpu:
        quicken_process()
    bf16 = cpu.use_bf16() if recipe.bf16 is None else recipe.bf16
    dtype = recipe.dtype or ("bfloat16" if recipe.lora and bf16 else "float32")
    set_seed(recipe.seed)  # a fresh head is drawn here
    network = cpu.load_network(load_network, base, recipe.attention, on_cpu and bf16, dtype=dtype)
    if recipe.freeze_vision and not recipe.lora:
        freeze_vision_tower(network)
    rounds = recipe.epochs if recipe.max_steps is None else -(-recipe.max_steps * _per_step(recipe) // len(train_rows))
    trainer = make_trainer(
        model=network,
        args=make_arguments(
            output_dir=str(output_dir / "checkpoints"),
            remove_unused_columns=False,
            num_train_epochs=1,  # the order of the samples holds all epochs
            max_steps=recipe.max_steps or -1,
            per_device_train_batch_size=recipe.batch_size,
            per_device_eval_batch_size=recipe.batch_size,
            gradient_accumulation_steps=recipe.gradient_accumulation,
            learning_rate=recipe.peak_learning_rate,
            lr_scheduler_type=recipe.schedule,
            warmup_steps=recipe.warmup,
            weight_decay=recipe.weight_decay,
            max_grad_norm=recipe.max_grad_norm,
            bf16=bf16,
            use_cpu=on_cpu,
            gradient_checkpointing=recipe.gradient_checkpointing,
            dataloader_num_workers=recipe.workers,
            logging_steps=recipe.logging_steps,
            eval_strategy="steps" if eval_rows else "no",
            eval_steps=recipe.save_steps,
            prediction_loss_only=True,
            save_steps=recipe.save_steps,
            save_total_limit=2,
            seed=recipe.seed,
            report_to=[],
            disable_tqdm=not progress,
        ),
        train_dataset=Dataset.from_dict({"index": list(train_rows)}),
        eval_dataset=Dataset.from_dict({"index": list(eval_rows)}) if eval_rows else None,
        data_collator=collator,
        processing_class=processor,
        peft_config=lora_config(network, recipe.lora) if recipe.lora else None,
        callbacks=[MetricsFile(output_dir / "metrics.jsonl", rounds)],
    )
    if not progress:
        trainer.remove_callback(PrinterCallback)
    trainer.order = batch_order(lengths, _per_step(recipe), rounds, recipe.seed)
    return trainer


def _sft_arguments(**options: Any) -> Any:
    from trl import SFTConfig

    # Cutting a sequence would cut image tokens.
    return SFTConfig(max_length=None, dataset_kwargs={"skip_prepare_dataset": True}, **options)
