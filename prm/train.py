"""Training a GM-PRM: supervised fine-tuning on critiques, with TRL's SFTTrainer, for any image-text-to-text model.

    vlrm train --model PATH --data steps.jsonl --out runs/gm_prm

The paper (arXiv 2508.04088) fine-tunes by plain cross-entropy on the assistant's tokens; its hyper-parameters are not public. Ours are
those of its peers; `verdict_weight` multiplies the loss at the verdict words and `correction_weight` that at the corrected step
(1 and 1 give exactly the plain loss).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rm.fit import Training, fit, known
from ..serving.load import model_path
from ..types import InputError, Sample
from .collate import Collator, Joined, TargetStyle, open_records, survey


@dataclass(frozen=True)
class Recipe(Training):
    """How to train a GM-PRM: what `Training` has, and the form of the critiques."""

    words: Sequence[str] = ("Correct", "Incorrect")  # the verdict words, the positive one first
    stop_at_first_error: bool = False  # targets end after the first wrong step
    instructions: str = ""  # put after every prompt, in training and in use
    consistency: str = "first_error"  # exact, first_error or outcome: which records have labels that agree
    verdict_weight: float = 3.0  # weight of the loss at verdict words
    correction_weight: float = 1.0  # weight of the loss at the corrected step: one step in a whole critique

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("verdict_weight", "correction_weight"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be above 0, got {getattr(self, name)}")


def train_gm_prm(
    model: str | Path,
    records: Any,
    output_dir: str | Path,
    *,
    image_root: str | Path | None = None,
    eval_records: Any = None,
    solutions: Sequence[Sample] = (),
    scorer_settings: Mapping[str, Any] | None = None,
    resume: bool = True,
    keep_checkpoints: bool = False,
    progress: bool = True,
    **recipe: Any,
) -> dict[str, Any]:
    """Trains a critic and writes it to `output_dir`, where `vlrm.load_scorer` finds it; returns a summary, also kept in `vlrm.json`.

    `records` and `eval_records`: a path (.jsonl, .parquet), a list of StepRecord, or a datasets.Dataset. `solutions` are solved
    problems mixed in as they are: prompt the question, target the solution. `recipe` holds fields of `Recipe`; `scorer_settings` those
    of GMPRM (aggregation, max_tokens, ...).

    An interrupted run goes on from its last complete checkpoint when called again with the same arguments, and a finished one is not
    repeated (`resume=False` starts afresh). Nothing that `load_scorer` accepts stands in `output_dir` before training is complete.
    Raises InputError for what cannot be used.
    """
    output_dir, base = Path(output_dir), model_path(str(model))
    settings = known(Recipe, recipe, "train_gm_prm")
    style = TargetStyle(tuple(settings.words), settings.stop_at_first_error, settings.instructions)
    train_part = open_records(records, image_root)
    eval_part = open_records(eval_records, image_root) if eval_records is not None else ()
    items, n_train = Joined(train_part, solutions, eval_part), len(train_part) + len(solutions)
    found = survey(items, style, settings.consistency)

    from ..rm.sft import CritiqueTrainer

    def card(collator: Collator) -> dict[str, Any]:
        form = {"words": list(style.words), "stop_at_first_error": style.stop_at_first_error, "instructions": style.instructions}
        return {**form, "max_tokens": collator.longest_target(found.indices), **(scorer_settings or {})}

    return fit(
        settings,
        "gm_prm",
        str(model),
        base,
        output_dir,
        found,
        n_train,
        make_collator=lambda processor: Collator(processor, items, style, settings.verdict_weight, settings.correction_weight),
        make_trainer=CritiqueTrainer,
        scorer_settings=card,
        resume=resume,
        keep_checkpoints=keep_checkpoints,
        progress=progress,
    )
