"""From step records to training batches: critiques as targets, their verdict words and corrected steps weighted.

Targets are tokenized with offsets so that the verdict words' tokens can be weighted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..rm.collate import Joined, Survey, TargetCollator, batch_order, mark, picture_size
from ..rm.collate import survey as survey_items
from ..serving.engine import Request
from ..types import InputError, Sample
from .critique import WORDS, format_critique, parse_critique
from .gm_prm import critique_messages
from .record_files import read_records, record_from_row
from .records import StepRecord, fault, record_critique

__all__ = ["Collator", "Joined", "Survey", "TargetStyle", "batch_order", "mark", "open_records", "picture_size", "survey"]
IN_MEMORY_BYTES = 2**30  # a larger parquet file stays on disk


@dataclass(frozen=True)
class TargetStyle:
    """How records become text; the trained scorer must use the same."""

    words: tuple[str, ...] = WORDS
    stop_at_first_error: bool = False
    instructions: str = ""

    def prompt(self, item: StepRecord | Sample) -> Request:
        if isinstance(item, StepRecord):
            messages = critique_messages(item.question, item.steps, len(item.images), self.instructions)
            return Request(messages, item.images)
        parts = [*({"type": "image"} for _ in item.problem.images), {"type": "text", "text": item.problem.question}]
        return Request([{"role": "user", "content": parts}], item.problem.images)

    def target(self, item: StepRecord | Sample) -> str:
        """A critique for a record; a solution for a plain sample."""
        if isinstance(item, Sample):
            return item.solution
        return format_critique(record_critique(item), self.words, self.stop_at_first_error)


def open_records(source: Any, image_root: str | Path | None = None) -> Sequence[StepRecord]:
    """Records from a path, a list, or a `datasets.Dataset`. Large parquet files and datasets are read row by row, pictures included."""
    if isinstance(source, (str, Path)):
        path = Path(source)
        if path.suffix == ".parquet" and path.is_file() and path.stat().st_size > IN_MEMORY_BYTES:
            from datasets import Dataset

            return DatasetRows(Dataset.from_parquet(str(path)), str(path), image_root or path.parent)
        return read_records(path, image_root)
    if hasattr(source, "column_names"):
        return DatasetRows(source, "dataset", image_root or ".")
    if not isinstance(source, Sequence) or not all(isinstance(record, StepRecord) for record in source):
        raise InputError("records must be a path, a list of StepRecord, or a datasets.Dataset")
    return source


class DatasetRows(Sequence):
    """A `datasets.Dataset` as a sequence of records, made when asked for; pictures stay encoded."""

    def __init__(self, dataset: Any, name: str, image_root: str | Path):
        from datasets import Image, List

        self.name, self.image_root = name, image_root
        for column, feature in dataset.features.items():
            if isinstance(feature, Image):
                dataset = dataset.cast_column(column, Image(decode=False))
            elif isinstance(feature, List) and isinstance(feature.feature, Image):
                dataset = dataset.cast_column(column, List(Image(decode=False)))
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> StepRecord:
        try:
            return record_from_row(self.dataset[index], f"row-{index + 1}", self.image_root)
        except InputError as error:
            raise InputError(f"{self.name}, row {index + 1}: {error}") from None


def survey(
    items: Sequence[StepRecord | Sample],
    style: Any,
    consistency: str,
    check: Callable[[StepRecord, str], str | None] = fault,
    size: Callable[[Any], int] | None = None,
) -> Survey:
    """Looks at every item once (see `vlrm.rm.collate.survey`); `check` gives a reason against a record's labels."""
    return survey_items(
        items,
        style,
        lambda item: check(item, consistency) if isinstance(item, StepRecord) else None,
        size,
        lambda item: "records" if isinstance(item, StepRecord) else "solutions",
    )


class Collator(TargetCollator):
    """Batches of critiques and solutions. `loss_weights` (B, T) are 1 on labelled tokens, `verdict_weight` on those of the verdict words,
    `correction_weight` on those of the corrected step, 0 elsewhere."""

    def __init__(
        self,
        processor: Any,
        items: Sequence[StepRecord | Sample],
        style: TargetStyle,
        verdict_weight: float = 3.0,
        correction_weight: float = 1.0,
    ):
        super().__init__(processor, items, style)
        self.verdict_weight, self.correction_weight = verdict_weight, correction_weight

    def _targets(self, items: Sequence[StepRecord | Sample]) -> dict[str, list[list[Any]]]:
        """Token ids and weights of the assistant's turns, with whatever the chat template puts around them."""
        texts = [self.style.target(item) for item in items]
        before = self.prompter.separator
        weighed = [(self.verdict_spans, self.verdict_weight), (self.correction_spans, self.correction_weight)]
        weighed = [(find, weight) for find, weight in weighed if weight != 1]
        encoded = self.tokenizer(
            [before + text + self.ending for text in texts], add_special_tokens=False, return_offsets_mapping=bool(weighed)
        )
        weights = [[1.0] * len(ids) for ids in encoded["input_ids"]]
        for find, weight in weighed:
            for item, text, row, offsets in zip(items, texts, weights, encoded["offset_mapping"], strict=True):
                if isinstance(item, StepRecord):
                    spans = [(first + len(before), last + len(before)) for first, last in find(text, len(item.steps))]
                    mark(row, offsets, spans, weight)
        return {"input_ids": encoded["input_ids"], "weights": weights}

    def verdict_spans(self, text: str, n_steps: int) -> list[tuple[int, int]]:
        """The characters of every verdict word of a critique, in order."""
        steps = parse_critique(text, n_steps, self.style.words, self.style.stop_at_first_error).steps
        return [span for step in steps for span in (step.image_span, step.logic_span, step.span) if span is not None]

    def correction_spans(self, text: str, n_steps: int) -> list[tuple[int, int]]:
        """The characters of a critique's corrected step: one span, or none."""
        parsed = parse_critique(text, n_steps, self.style.words, self.style.stop_at_first_error)
        if parsed.correction is None or parsed.first_error is None:
            return []
        verdict = parsed.steps[parsed.first_error].span
        at = text.find(parsed.correction, verdict[1] if verdict else 0)
        return [(at, at + len(parsed.correction))] if at >= 0 else []
