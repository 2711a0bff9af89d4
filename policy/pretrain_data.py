"""What the tiny checkpoints are pretrained on: captions, right solutions, comparisons and dialogues of checking, made as they are asked."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.utils.data import Dataset

from ..data_synth.checks import CHECK, check_claims, check_facts, check_steps
from ..data_synth.corrupt import corrupted
from ..data_synth.pair_dialogues import PAIR_DIALOGUES, pair_pictures
from ..data_synth.teacher import comparison
from ..data_synth.worlds import WORLDS, sample_scene
from ..data_synth.worlds.base import format_solution, right_solution
from ..prm.verdicts import VerdictStyle
from ..types import Problem, Sample
from .tiny import IMAGE_TOKENS

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
