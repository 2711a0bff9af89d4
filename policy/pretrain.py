"""Pretrains the shipped tiny checkpoints from nothing: `python -m vlrm.policy.pretrain --out DIR`.

Three checkpoints come out of one run. `tiny-policy` has seen captions and right solutions, and was stopped while it still
makes mistakes of every kind: it is what search improves. `tiny` goes on from there with captions and with comparing:
given a picture and a solution, corrupted at random, it writes each claim beside its own reading. It is given no solving
data beyond what the policy saw (a share of the very same samples is replayed so that it does not forget), so a critic
made from it is held to the policy's own solving ability. It has never seen a verdict or a correction: those are what
training a GM-PRM teaches. `tiny-checker` goes on from `tiny` with dialogues of checking: it answers facts and steps of solutions
with +, or with what is true instead. It is what scorers that answer at once are made from (VL-PRM, scalar heads). `tiny-pairs` goes
on from there with two pictures of the consistency world: what each shows, and + or what the second shows. A PaCo-Reward is made from it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, set_seed

from .pretrain_data import Samples, Stage, collate
from .tiny import build_tiny
from .tiny_card import write_card


class InOrder(Trainer):
    """Samples come in their own order, because the mixture of tasks changes along the way."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def run_stage(start: Path, out: Path, stage: Stage, seed: int, batch_size: int, save_steps: int, attention: str) -> dict[str, Any]:
    """Trains from the checkpoint `start`, writes `out` as bfloat16 and tells what it took. A killed run goes on from its last save.

    `attention` is the quicker of transformers' implementations at the stage's lengths on a CPU.
    """
    set_seed(seed)
    torch.set_flush_denormal(True)
    processor = AutoProcessor.from_pretrained(start)
    model = AutoModelForImageTextToText.from_pretrained(start, dtype=torch.float32, attn_implementation=attention)
    work = out.with_name(out.name + "-work")
    arguments = TrainingArguments(
        output_dir=str(work),
        use_cpu=not torch.cuda.is_available(),
        bf16=True,
        per_device_train_batch_size=batch_size,
        max_steps=stage.samples // batch_size,
        learning_rate=stage.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        warmup_steps=200,
        weight_decay=0.01,
        adam_beta2=0.98,
        logging_steps=100,
        save_steps=save_steps,
        save_total_limit=None if save_steps < 1000 else 2,
        dataloader_num_workers=1,
        remove_unused_columns=False,
        report_to=[],
        seed=seed,
    )
    data = Samples(stage, batch_size, seed, processor.tokenizer)
    trainer = InOrder(model=model, args=arguments, train_dataset=data, data_collator=collate)
    resumed = any(work.glob("checkpoint-*"))
    seconds = trainer.train(resume_from_checkpoint=resumed or None).metrics["train_runtime"]
    model.config.use_cache = True  # the trainer switches it off
    model.to(torch.bfloat16).save_pretrained(out)
    processor.save_pretrained(out)
    # A resumed stage has the seconds since.
    return {"samples": stage.samples, "seconds": round(seconds), "threads": torch.get_num_threads(), "resumed": resumed}


def note(folder: Path, command: str, name: str, stage: dict[str, Any]) -> None:
    """Adds a finished stage to `built.json`, which tells how the checkpoints came about."""
    path = folder / "built.json"
    built = json.loads(path.read_text()) if path.exists() else {"stages": {}}
    built["command"] = command
    stage = {**stage, "torch": torch.__version__, "transformers": version("transformers")}
    built["stages"][name] = stage
    path.write_text(json.dumps(built, indent=1) + "\n")


POLICY = Stage({"describe": 0.9, "solve": 0.1}, {"describe": 0.2, "solve": 0.8}, samples=80_000, learning_rate=2e-3)
COPY = Stage(
    {"describe": 0.15, "compare": 0.75, "solve": 0.1},
    {"describe": 0.12, "compare": 0.76, "solve": 0.12},
    samples=128_000,
    learning_rate=1.2e-3,
    replay=POLICY.samples,
    columns=True,
)
MARK = Stage(COPY.last, COPY.last, samples=48_000, learning_rate=8e-4, replay=POLICY.samples)
LAST = {"describe": 0.08, "compare": 0.82, "solve": 0.1}
READ = Stage(LAST, LAST, samples=80_000, learning_rate=8e-4, replay=POLICY.samples)
BASE = Stage(LAST, LAST, samples=56_000, learning_rate=8e-4, replay=POLICY.samples, intents=True)
CHECKER = Stage(
    {"facts": 0.5, "signs": 0.1, "claims": 0.35, "describe": 0.05},
    {"facts": 0.05, "signs": 0.1, "claims": 0.3, "steps": 0.5, "describe": 0.05},
    samples=96_000,
    learning_rate=1.5e-3,
)
PAIRS = Stage(
    {"pair readings": 0.6, "pairs": 0.4},
    {"pair readings": 0.1, "pairs": 0.8, "pair signs": 0.1},
    samples=48_000,
    learning_rate=1.5e-3,
)
STAGES = {
    "tiny-policy": POLICY,
    "tiny-copy": COPY,
    "tiny-mark": MARK,
    "tiny-read": READ,
    "tiny": BASE,
    "tiny-checker": CHECKER,
    "tiny-pairs": PAIRS,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--save-steps", type=int, default=1000)
    parser.add_argument("--card-pictures", type=int, default=300, help="pictures of each world that the card is measured on")
    args = parser.parse_args(arguments)
    start = args.out / "random"
    if not start.exists():
        build_tiny(start, seed=args.seed)
    command = f"python -m vlrm.policy.pretrain --out DIR --seed {args.seed} --batch-size {args.batch_size}"
    for number, (name, stage) in enumerate(STAGES.items()):
        attention = "eager" if stage is POLICY else "sdpa"
        if not (args.out / name / "model.safetensors").exists():
            took = run_stage(start, args.out / name, stage, args.seed + number, args.batch_size, args.save_steps, attention)
            note(args.out, command, name, took)
        start = args.out / name

    write_card(args.out, args.card_pictures)


if __name__ == "__main__":
    main()
