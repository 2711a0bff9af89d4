"""Training a VL-PRM: every step of a solution in a turn of its own, every answer a verdict word, for any image-text-to-text model.

    vlrm train --method vl_prm --model PATH --data steps.jsonl --output_dir runs/vl_prm

The paper (arXiv 2509.23250) trains on the verdict tokens alone. They are found by turn, never by their id: a + in the question is no
verdict. The same data path trains on soft labels (MM-PRM), on value or advantage targets (VisualPRM, arXiv 2503.10291), and a
scalar head on the token that ends a step (`head`). Legend: B rows, T tokens, K verdict words.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..rm.fit import Training, fit, known
from ..serving.engine import Request
from ..serving.load import model_path
from ..serving.turns import choice_ids, render_turns, system_role
from ..types import InputError
from .collate import Collator, Joined, open_records, survey
from .records import StepRecord
from .verdicts import SYSTEM, WORDS, TargetRule, VerdictStyle, spread_value


@dataclass(frozen=True)
class Recipe(Training):
    """How to train a VL-PRM: what `Training` has, and the form of chats and targets (see `VerdictStyle`, `TargetRule`).

    `loss`: "vocabulary" is the cross-entropy of the verdict word among all words, as VL-PRM trains; "choice" among the verdict words
    alone, as MM-PRM trains on soft labels; None takes the one that belongs to the target. `head` trains a linear head with that many
    labels on the token that stands in the answer's place instead of the words' own probabilities: 1 (a logit) or 2 (a logit
    for each word); 0 is none.
    """

    words: Sequence[str] | None = None  # None: + and -; with advantage targets +, = and -
    system: str = SYSTEM
    system_role: bool | None = None  # None: where the chat template has a place for a system turn
    headers: bool = True
    target: Literal["hard", "soft", "value", "advantage"] = "hard"
    label_source: Literal["auto", "labels", "judge", "critiques", "mc_scores"] = "auto"
    threshold: float = 0.0
    after_error: Literal["truncate", "negative", "keep"] = "truncate"
    label_kinds: Sequence[str] = ("perception", "reasoning")
    loss: Literal["vocabulary", "choice"] | None = None
    head: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.head not in (0, 1, 2) or (self.head and len(self.verdict_words) != 2):
            raise InputError(f"head must be 0, 1 or 2, and needs two verdict words, got {self.head}")
        if self.loss not in (None, "vocabulary", "choice") or (self.loss == "vocabulary" and self.head):
            raise InputError(f"loss must be vocabulary or choice, and choice with a head, got {self.loss!r}")
        if (len(self.verdict_words) == 3) != (self.target == "advantage"):
            raise InputError("advantage targets need three words (better, neutral, worse), all others two")

    @property
    def verdict_words(self) -> tuple[str, ...]:
        return tuple(self.words or WORDS[3 if self.target == "advantage" else 2])

    @property
    def choice_loss(self) -> bool:
        return self.loss == "choice" or (self.loss is None and (self.target == "soft" or self.head > 0))


def train_vl_prm(
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
    """Trains a step verifier and writes it to `output_dir`, where `vlrm.load_scorer` finds it; returns a summary, also kept in
    `vlrm.json`, whose `counts` tell how many records and steps were trained on and why others were dropped.

    `records` and `eval_records`: a path (.jsonl, .parquet), a list of StepRecord, or a datasets.Dataset. `recipe` holds fields of
    `Recipe`; `scorer_settings` those of VLPRM (score, aggregation, alpha, ...). Interruptions are as in `train_gm_prm`.
    Raises InputError for what cannot be used.
    """
    output_dir, base = Path(output_dir), model_path(str(model))
    settings = known(Recipe, recipe, "train_vl_prm")
    style = VerdictStyle(settings.verdict_words, settings.system, _role(settings, base), settings.headers)
    rule = TargetRule(settings.target, settings.label_source, settings.threshold, settings.after_error, tuple(settings.label_kinds))
    form = Verdicts(style, rule)
    train_part = open_records(records, image_root)
    eval_part = open_records(eval_records, image_root) if eval_records is not None else ()
    items, n_train = Joined(train_part, eval_part), len(train_part)
    found = survey(items, form, "", check=lambda record, _: form.fault(record), size=full_length)
    found.counts.update(form.counts)

    from ..rm.sft import VerdictTrainer
    from .step_head_engine import load_step_head

    def card(collator: Collator) -> dict[str, Any]:
        kept = {"words": list(style.words), "system": style.system, "system_role": style.system_role, "headers": style.headers}
        return {**kept, **(scorer_settings or {})}

    def trainer(**arguments: Any) -> Any:
        return VerdictTrainer(**arguments, choice_loss=settings.choice_loss)

    return fit(
        settings,
        "step_head" if settings.head else "vl_prm",
        str(model),
        base,
        output_dir,
        found,
        n_train,
        make_collator=lambda processor: VerdictCollator(processor, items, form),
        make_trainer=trainer,
        load_network=(lambda *path, **options: load_step_head(*path, num_labels=settings.head, **options)) if settings.head else None,
        scorer_settings=card,
        resume=resume,
        keep_checkpoints=keep_checkpoints,
        progress=progress,
    )


def full_length(record: StepRecord) -> int:
    """A length to batch by that tells nothing of the labels: the chat's own does, because it ends with the first negative step, and
    batches of nothing but early errors, then of nothing but right solutions, keep a model from learning."""
    return len(record.question) + sum(map(len, record.steps))


def _role(settings: Recipe, base: str) -> bool:
    if settings.system_role is not None or not settings.system:
        return settings.system_role is not False
    from transformers import AutoProcessor

    from ..serving.prompting import Prompter

    return system_role(Prompter(AutoProcessor.from_pretrained(base), base))


class Verdicts:
    """Records as chats with their targets: what `survey` and the collator ask for. `counts` tells of the steps that `fault` has seen."""

    def __init__(self, style: VerdictStyle, rule: TargetRule):
        self.style, self.rule, self.words = style, rule, style.words
        self.counts: Counter[str] = Counter()

    def fault(self, record: StepRecord) -> str | None:
        """Why a record cannot be trained on. Counts its steps by what becomes of them."""
        values = self.rule.values(record)
        trained = [value for value in values if value is not None]
        self.counts["steps"] += len(record.steps)
        self.counts["steps trained on"] += len(trained)
        self.counts["steps trained on, negative"] += sum(value < 0.5 for value in trained)
        if trained:
            return None
        return f"no {self.rule.target} labels" if not values else "no step of the chosen kinds"

    def chat(self, record: StepRecord) -> tuple[Request, list[float | None]]:
        """The chat with every answer filled in, and the steps' values. An answer that is not trained on says the positive word."""
        values = self.rule.values(record)
        words = [self.words[0] if value is None else self.word(value) for value in values]
        n = len(values)
        request = self.style.request(record.question, record.images, record.steps[:n], record.sections[:n], words[:-1])
        answer = {"role": "assistant", "content": [{"type": "text", "text": words[-1]}]}
        return Request([*request.messages, answer], record.images, max_tokens=1), values

    def word(self, value: float) -> str:
        """The likeliest verdict word."""
        shares = spread_value(value, len(self.words))
        return self.words[shares.index(max(shares))]

    def prompt(self, record: StepRecord) -> Request:
        return self.chat(record)[0]

    def target(self, record: StepRecord) -> str:
        """The values as text: what `survey` makes a digest of."""
        return " ".join("?" if value is None else f"{value:g}" for value in self.chat(record)[1])


class VerdictCollator(Collator):
    """Batches of whole chats. `labels` are the verdict words' ids at their places, -100 elsewhere; `verdict_targets` (B, T, K) hold the
    distribution over the verdict words there, `verdict_ids` (K,) the words' ids.
    """

    def __init__(self, processor: Any, items: Sequence[StepRecord], form: Verdicts):
        super().__init__(processor, items, form, verdict_weight=1.0)
        self.ids: list[int] | None = None

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        batch = super().__call__(rows)
        labels_BT = batch["labels"]
        batch["verdict_ids"] = torch.tensor(self.ids)
        batch["verdict_targets"] = torch.zeros(*labels_BT.shape, len(self.ids))
        for b, row in enumerate(rows):
            values = [value for value in self.style.chat(self.items[row["index"]])[1] if value is not None]
            places = (labels_BT[b] != -100).nonzero()[:, 0]
            batch["verdict_targets"][b, places] = torch.tensor([spread_value(value, len(self.ids)) for value in values])
        return batch

    def prompt_text(self, item: StepRecord) -> str:
        """The chat up to the first answer: pictures stand in this part alone."""
        return self._parts(item)[0]

    def _targets(self, items: Sequence[StepRecord]) -> dict[str, list[list[Any]]]:
        """Token ids of everything from the first answer on, with weight 1 on the verdicts that are trained on."""
        parts = [self._parts(item) for item in items]
        tails = [tail for _, tail, _ in parts]
        encoded = self.tokenizer(tails, add_special_tokens=False, return_offsets_mapping=True)
        weights = []
        for item, (_, _, starts), ids, offsets in zip(items, parts, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            row, values = [0.0] * len(ids), self.style.chat(item)[1]
            for start, value in zip(starts, values, strict=True):
                at = next(i for i, (begin, _) in enumerate(offsets) if begin >= start)
                if ids[at] != self.ids[self.style.words.index(self._word(value))]:
                    raise InputError(
                        f"record {item.id}: the tokenizer does not keep the verdict words apart from what follows; choose others"
                    )
                if value is not None:
                    row[at] = 1.0
            weights.append(row)
        return {"input_ids": encoded["input_ids"], "weights": weights}

    def _word(self, value: float | None) -> str:
        return self.style.words[0] if value is None else self.style.word(value)

    def _parts(self, item: StepRecord) -> tuple[str, str, list[int]]:
        """Text before the first answer, text from there to the last answer's end, and where the answers begin in the latter."""
        chat = render_turns(self.prompter, self.style.chat(item)[0])
        if self.ids is None:
            self.ids = choice_ids(self.prompter, chat, self.style.words)
        first, space = chat.starts[0], self.prompter.separator[len(self.prompter.separator.rstrip(" ")) :]
        end = chat.starts[-1] + len(space) + len(chat.fillers[-1])
        return chat.text[:first], chat.text[first:end], [start - first for start in chat.starts]
