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
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from transformers import AutoModelForImageTextToText, AutoProcessor, Trainer, TrainingArguments, set_seed

from ..data_synth.checks import CHECK, check_claims, check_facts, check_steps
from ..data_synth.corrupt import corrupted
from ..data_synth.pair_dialogues import PAIR_DIALOGUES, pair_pictures
from ..data_synth.teacher import comparison
from ..data_synth.worlds import WORLDS, sample_scene
from ..data_synth.worlds.base import format_solution, right_solution
from ..prm.verdicts import VerdictStyle
from ..types import Problem, Sample
from .tiny import IMAGE_TOKENS, build_tiny

DESCRIBE = "Describe the picture."
COMPARE = "Compare each step."
DIALOGUES = {"facts": check_facts, "signs": partial(check_facts, signs=True), "claims": check_claims, "steps": check_steps}
IMAGE = "<fake_token_around_image><global-img>" + "<image>" * IMAGE_TOKENS + "<fake_token_around_image>"


@dataclass(frozen=True)
class Stage:
    """What a stage trains on: the share of each task at its beginning and end, samples, batch size, peak learning rate.

    `replay` limits solving samples to those with a smaller number, so that two stages see the same ones. With `columns` comparisons
    have claims, readings and marks in columns, in which copying the claims is learnt first; with `intents` they name each step's intent.
    """

    first: dict[str, float]
    last: dict[str, float]
    samples: int
    learning_rate: float
    replay: int | None = None
    columns: bool = False
    intents: bool = False


def compare_prompt(question: str, solution: str) -> str:
    return f"{question}\n\nSolution:\n{solution}\n{COMPARE}"


class Samples(Dataset):
    """Sample `i` is a function of (seed, i) alone; a batch holds one task, so that its lengths are alike."""

    def __init__(self, stage: Stage, batch_size: int, seed: int, tokenizer: Any):
        self.stage, self.batch_size, self.seed, self.tokenizer = stage, batch_size, seed, tokenizer

    def __len__(self) -> int:
        return self.stage.samples

    def task(self, index: int) -> str:
        done = min(1.0, index / (0.6 * self.stage.samples))
        shares = {t: (1 - done) * self.stage.first.get(t, 0) + done * self.stage.last[t] for t in self.stage.last}
        return random.Random(f"{self.seed} task {index // self.batch_size}").choices(list(shares), list(shares.values()))[0]

    def __getitem__(self, index: int) -> dict[str, Any]:
        task = self.task(index)
        if task in DIALOGUES or task in PAIR_DIALOGUES:
            ids, labels, pictures = self.dialogue(task, random.Random(f"{self.seed} {task} {index}"))
            return {"ids": ids, "labels": labels, "pixels": torch.stack([pixels(picture) for picture in pictures])}
        if task == "solve":
            number = index % self.stage.replay if self.stage.replay else index
            prompt, target, picture = solving_sample(number)
        else:
            rng = random.Random(f"{self.seed} {task} {index}")
            world = rng.choice(list(WORLDS.values()))
            scene = sample_scene(world, "train", rng)
            if task == "describe":
                prompt, target = DESCRIBE, world.describe(scene)
            else:
                steps = corrupted(world, scene, rng, heavy=0.8, single=0.12, struck=0.8)
                prompt = compare_prompt(world.question(scene), format_solution(steps))
                target = comparison(world.check(scene, steps), self.stage.columns, self.stage.intents)
            picture = world.draw(scene, rng)
        head = self.tokenizer(f"<|user|>{IMAGE}{prompt}<|end|><|assistant|>").input_ids
        tail = self.tokenizer(f"{target}<|end|>").input_ids
        return {"ids": head + tail, "labels": [-100] * len(head) + tail, "pixels": pixels(picture)[None]}

    def dialogue(self, task: str, rng: random.Random) -> tuple[list[int], list[int], list[Any]]:
        """Token ids of a dialogue of checking, labels at its answers alone, and its pictures."""
        if task in PAIR_DIALOGUES:
            turns, figures = PAIR_DIALOGUES[task](rng)
            stated, pictures = [text for text, _ in turns], pair_pictures(figures, rng)
        else:
            world = rng.choice(list(WORLDS.values()))
            scene = sample_scene(world, "train", rng)
            turns = DIALOGUES[task](world, scene, rng)
            stated, pictures = stated_turns(task, world, scene, turns), [world.draw(scene, rng)]
        ids: list[int] = []
        labels: list[int] = []
        for k, (text, (_, answer)) in enumerate(zip(stated, turns, strict=True)):
            asked = self.tokenizer(f"<|user|>{IMAGE * len(pictures) if k == 0 else ''}{text}<|end|><|assistant|>").input_ids
            said = self.tokenizer(answer).input_ids
            ids += [*asked, *said, *self.tokenizer("<|end|>").input_ids]
            labels += [-100] * len(asked) + said + [-100]
        return ids, labels, pictures


def stated_turns(task: str, world: Any, scene: Any, turns: Sequence[tuple[str, str]]) -> list[str]:
    """What the user's turns of a dialogue say: facts after an instruction, steps and their claims in a VL-PRM's form."""
    stated = [text for text, _ in turns]
    if task in ("facts", "signs"):
        return [f"{CHECK}\n{stated[0]}", *stated[1:]]
    messages = VerdictStyle(system="", headers=False).request(world.question(scene), [], stated).messages
    return [part["text"] for message in messages if message["role"] == "user" for part in message["content"]]


def solving_sample(number: int) -> tuple[str, str, Any]:
    """Question, right solution and picture (PIL) number `number` of the solving data, which every stage draws on."""
    rng = random.Random(f"solve {number}")
    world = rng.choice(list(WORLDS.values()))
    scene = sample_scene(world, "train", rng)
    return world.question(scene), format_solution(right_solution(world, scene)), world.draw(scene, rng)


def solving_samples(count: int) -> list[Sample]:
    """The first `count` of the solving data: mixed into a critic's training, they keep it from forgetting how to solve."""
    rows = [solving_sample(number) for number in range(count)]
    return [Sample(Problem(f"solve-{i}", question, [picture]), solution) for i, (question, solution, picture) in enumerate(rows)]


def pixels(image: Any) -> torch.Tensor:
    """(3, 96, 96), as the tiny processor makes them: (value - 238) / 64."""
    import numpy as np

    return torch.from_numpy(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) - 238) / 64


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(row["ids"]) for row in rows)
    ids_BT = torch.zeros(len(rows), width, dtype=torch.long)
    labels_BT = torch.full((len(rows), width), -100)
    mask_BT = torch.zeros(len(rows), width, dtype=torch.long)
    for b, row in enumerate(rows):
        end = len(row["ids"])
        ids_BT[b, :end] = torch.tensor(row["ids"])
        labels_BT[b, :end] = torch.tensor(row["labels"])
        mask_BT[b, :end] = 1
    return {
        "input_ids": ids_BT,
        "labels": labels_BT,
        "attention_mask": mask_BT,
        "pixel_values": torch.stack([row["pixels"] for row in rows]),
    }


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

    from .tiny_card import write_card

    write_card(args.out, args.card_pictures)


if __name__ == "__main__":
    main()
