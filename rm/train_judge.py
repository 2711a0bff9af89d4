"""Training a generative judge by direct preference optimization (DPO, arXiv 2305.18290), with TRL's DPOTrainer.

    vlrm train --method dpo_judge --model PATH --data preferences.jsonl --output_dir runs/judge

From two answers and which is better, the judge learns to prefer the sentence that names the better one to the sentence that names the
other. Better judgements in words are learnt from pairs of judgements (`form="judgements"`).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from trl import DPOConfig, DPOTrainer

from ..serving.engine import Request
from ..serving.load import model_path
from ..types import InputError, Pair
from .collate import Joined, TargetCollator, survey
from .fit import Training, fit, known
from .judge import judge_messages, two_answers
from .judgement import PAIRWISE, verdict_sentence
from .preferences import Preference, chat, preference_fault, read_preferences
from .sft import InOrder


@dataclass(frozen=True)
class DPOJudge(Training):
    """How to train a judge: what `Training` has, and the form of the judgements.

    `form` "answers": chosen and rejected are answers, shown to the judge in `orders` "both" (each pair twice) or "random"; "judgements":
    the prompt is the judge's own, chosen and rejected are judgements. `beta` is DPO's; `sft_weight` adds the chosen text's likelihood, as
    a mean over its tokens (the RPO loss of arXiv 2404.19733).
    """

    form: Literal["answers", "judgements"] = "answers"
    orders: Literal["both", "random"] = "both"
    instructions: str = ""
    beta: float = 0.1
    sft_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form not in ("answers", "judgements") or self.orders not in ("both", "random"):
            raise InputError(f"form must be answers or judgements, and orders both or random; got {self.form!r} and {self.orders!r}")
        if self.beta <= 0 or self.sft_weight < 0:
            raise InputError(f"beta must be above 0, and sft_weight not below it; got {self.beta} and {self.sft_weight}")


@dataclass(frozen=True)
class Duel:
    """A preference as the judge meets it; `swapped`: the better answer is shown second."""

    preference: Preference
    swapped: bool


def train_dpo_judge(
    model: str | Path,
    preferences: Any,
    output_dir: str | Path,
    *,
    image_root: str | Path | None = None,
    split: str | None = None,
    eval_preferences: Any = None,
    scorer_settings: Mapping[str, Any] | None = None,
    resume: bool = True,
    keep_checkpoints: bool = False,
    progress: bool = True,
    **recipe: Any,
) -> dict[str, Any]:
    """Trains a judge on preferences and writes it to `output_dir`, where `vlrm.load_scorer` finds it; returns a summary.

    Arguments and what is dropped as in `train_bradley_terry`; `recipe` holds fields of `DPOJudge`, `scorer_settings` those of `Judge`.
    """
    settings = known(DPOJudge, recipe, "train_dpo_judge")
    train_part = Duels(read_preferences(preferences, image_root=image_root, split=split), settings)
    eval_part = Duels(read_preferences(eval_preferences, image_root=image_root), settings) if eval_preferences is not None else ()
    items, form = Joined(train_part, eval_part), Judgements(settings)
    found = survey(items, form, lambda item: preference_fault(item.preference), form.size, lambda item: "comparisons")

    def arguments(**options: Any) -> DPOConfig:
        more = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, settings.sft_weight]} if settings.sft_weight else {}
        return DPOConfig(max_length=None, beta=settings.beta, **options, **more)

    def card(collator: TargetCollator) -> dict[str, Any]:
        asked = {"instructions": form.instructions} if settings.form == "answers" else {}
        return {"mode": "pairwise", **asked, "max_tokens": collator.longest_target(found.indices), **(scorer_settings or {})}

    return fit(
        settings,
        "judge",
        str(model),
        model_path(str(model)),
        Path(output_dir),
        found,
        len(train_part),
        make_collator=lambda processor: JudgeCollator(processor, items, form),
        make_trainer=JudgeTrainer,
        make_arguments=arguments,
        scorer_settings=card,
        identity={"objective": "dpo_judge"},
        resume=resume,
        keep_checkpoints=keep_checkpoints,
        progress=progress,
    )


class Duels(Sequence):
    """Preferences as the judge meets them: each in both orders, or each in one, drawn by the seed and its place."""

    def __init__(self, preferences: Sequence[Preference], settings: DPOJudge):
        self.preferences, self.seed = preferences, settings.seed
        self.turns = 2 if settings.form == "answers" and settings.orders == "both" else 1
        self.draw = settings.form == "answers" and self.turns == 1

    def __len__(self) -> int:
        return self.turns * len(self.preferences)

    def __getitem__(self, index: int) -> Duel:
        place, turn = divmod(index, self.turns)
        swapped = random.Random(f"{self.seed} {place}").random() < 0.5 if self.draw else bool(turn)
        return Duel(self.preferences[place], swapped)


class Judgements:
    """Duels as prompts and the two texts that follow: what `survey` and the collator ask for."""

    def __init__(self, settings: DPOJudge):
        self.answers, self.instructions = settings.form == "answers", settings.instructions or PAIRWISE

    def prompt(self, item: Duel | tuple[Duel, bool]) -> Request:
        duel = item if isinstance(item, Duel) else item[0]
        problem = duel.preference.problem
        if not self.answers:
            return Request(chat(problem), problem.images)
        pair = Pair(problem, duel.preference.chosen, duel.preference.rejected, 0)
        return Request(judge_messages(problem, two_answers(pair.swap() if duel.swapped else pair), self.instructions), problem.images)

    def target(self, item: Duel | tuple[Duel, bool]) -> str:
        """The better text, or for (duel, False) the worse one."""
        duel, better = (item, True) if isinstance(item, Duel) else item
        if self.answers:
            return verdict_sentence(int(duel.swapped == better))
        return duel.preference.chosen if better else duel.preference.rejected

    def size(self, duel: Duel) -> int:
        preference = duel.preference
        return len(preference.problem.question) + len(preference.chosen) + len(preference.rejected)


class JudgeCollator(TargetCollator):
    """DPO's batches: the better texts of all duels, then the worse ones; `completion_mask` (2B, T) says where they stand."""

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        duels = [self.items[row["index"]] for row in rows]
        batch = self.batch([(duel, better) for better in (True, False) for duel in duels])
        batch["completion_mask"] = (batch.pop("labels") != -100).long()
        del batch["loss_weights"]
        return batch


class JudgeTrainer(DPOTrainer):
    """DPOTrainer over batches that our collator makes, in our order."""

    order: Sequence[int] = ()

    def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        return dataset

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> InOrder:
        return InOrder(self.order)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """The finished model gets its card from `output.py`."""
