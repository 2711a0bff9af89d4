"""Training a PaCo-Reward: the verdict on a pair of pictures, then its reasons, for any image-text-to-text model.

    vlrm train --method paco --model PATH --data pairs.jsonl --output_dir runs/paco

The loss is the paper's weighted likelihood (arXiv 2512.04784; see `rm/paco_loss.py`): per sequence, alpha on the first token of the
answer and 1 - alpha on all others.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..serving.engine import Request
from ..serving.images import image_key
from ..serving.load import model_path
from ..types import InputError
from .collate import Joined, Survey, TargetCollator, check_picture
from .fit import Training, fit, known
from .paco_loss import verdict_weights
from .paco_prompt import PairStyle
from .pairs import PairRecord, read_pairs


@dataclass(frozen=True)
class Recipe(Training):
    """How to train a PaCo-Reward: what `Training` has, the form of the chat (see `PairStyle`) and the loss.

    `alpha`: the share of a sequence's loss that its verdict has; None is the plain mean over tokens. `code_compat`: the weights and the
    normalisation of the released code (see `verdict_weights`). `reasons=False` is the fast variant: the verdict alone, with a full stop,
    without weighting, as released.
    """

    words: Sequence[str] = PairStyle.words
    marks: Sequence[str] = PairStyle.marks
    ending: str = PairStyle.ending
    system: str = PairStyle.system
    alpha: float | None = 0.1
    code_compat: bool = False
    reasons: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise InputError(f"alpha must lie between 0 and 1, or be none for the plain mean, got {self.alpha}")

    @property
    def style(self) -> PairStyle:
        return PairStyle(tuple(self.words), tuple(self.marks), self.ending, self.system)


def train_paco(
    model: str | Path,
    records: Any,
    output_dir: str | Path,
    *,
    image_root: str | Path | None = None,
    eval_records: Any = None,
    scorer_settings: Mapping[str, Any] | None = None,
    resume: bool = True,
    keep_checkpoints: bool = False,
    progress: bool = True,
    **recipe: Any,
) -> dict[str, Any]:
    """Trains a PaCo-Reward and writes it to `output_dir`, where `vlrm.load_scorer` finds it; returns a summary, also kept in `vlrm.json`,
    whose `counts` tell how many pairs were trained on, how many of them are consistent, and why others were dropped.

    `records` and `eval_records`: a path (see `rm/pairs.py`) or a list of PairRecord. `recipe` holds fields of `Recipe`; `scorer_settings`
    those of PaCo (both_orders, spellings, ...). Interruptions are as in `train_gm_prm`. Raises InputError for what cannot be used.
    """
    output_dir, base = Path(output_dir), model_path(str(model))
    settings = known(Recipe, recipe, "train_paco")
    form = Answers(settings.style, settings.reasons)
    train_part = open_pairs(records, image_root)
    eval_part = open_pairs(eval_records, image_root) if eval_records is not None else ()
    items, n_train = Joined(train_part, eval_part), len(train_part)
    found = survey_pairs(items, form)
    alpha = settings.alpha if settings.reasons else None

    from .sft import PairTrainer

    def card(collator: TargetCollator) -> dict[str, Any]:
        style = form.style
        kept = {"words": list(style.words), "marks": list(style.marks), "ending": style.ending, "system": style.system}
        return {**kept, **(scorer_settings or {})}

    def trainer(**arguments: Any) -> Any:
        return PairTrainer(**arguments, by_sequence=not settings.code_compat)

    return fit(
        settings,
        "paco",
        str(model),
        base,
        output_dir,
        found,
        n_train,
        make_collator=lambda processor: PairCollator(processor, items, form, alpha, settings.code_compat),
        make_trainer=trainer,
        scorer_settings=card,
        resume=resume,
        keep_checkpoints=keep_checkpoints,
        progress=progress,
    )


def open_pairs(source: Any, image_root: str | Path | None = None) -> Sequence[PairRecord]:
    """Pairs from a path or a list."""
    if isinstance(source, (str, Path)):
        return read_pairs(source, image_root)
    if not isinstance(source, Sequence) or not all(isinstance(record, PairRecord) for record in source):
        raise InputError("records must be a path or a list of PairRecord")
    return source


@dataclass(frozen=True)
class Answers:
    """Pairs as prompts and targets: what the collator asks for."""

    style: PairStyle
    reasons: bool = True

    def prompt(self, item: PairRecord) -> Request:
        return item.prompt(self.style)

    def target(self, item: PairRecord) -> str:
        return self.style.answer(item.label, item.reasons.strip() if self.reasons else "")


def survey_pairs(items: Sequence[PairRecord], form: Answers) -> Survey:
    """Looks at every pair once: its pictures' files (InputError for one that cannot be used), its texts. A pair of a picture with itself
    is dropped and counted. The rough length is in characters without the answer's first word, which tells the label."""
    indices, lengths, counts, digest = [], [], Counter[str](), hashlib.sha1()
    sizes: dict[Any, tuple[int, int]] = {}
    for index, item in enumerate(items):
        keys = [image_key(image) for image in item.images]
        if keys[0] == keys[1]:
            counts["dropped: both pictures are the same"] += 1
            continue
        for key, image in zip(keys, item.images, strict=True):
            if key not in sizes:
                sizes[key] = check_picture(image)
        names = [os.fspath(i) if isinstance(i, (str, os.PathLike)) else sizes[k] for i, k in zip(item.images, keys, strict=True)]
        text = "\0".join(part["text"] for message in form.prompt(item).messages for part in message["content"] if part["type"] == "text")
        digest.update(f"{item.id}\0{text}\0{form.target(item)}\0{names}\0".encode(errors="replace"))
        counts["pairs"] += 1
        counts["consistent"] += item.label
        counts["pairs without reasons"] += not item.reasons.strip()
        indices.append(index)
        lengths.append(len(text) + len(item.reasons))
    return Survey(indices, lengths, counts, digest.hexdigest())


class PairCollator(TargetCollator):
    """Batches of pairs. `loss_weights` (B, T) are those of `verdict_weights` at the answer's tokens, the turn's ending among them."""

    def __init__(self, processor: Any, items: Sequence[PairRecord], form: Answers, alpha: float | None = 0.1, code_compat: bool = False):
        super().__init__(processor, items, form)
        self.alpha, self.code_compat = alpha, code_compat

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        batch["loss_weights"] = verdict_weights(batch["labels"] != -100, self.alpha, self.code_compat)
        return batch
