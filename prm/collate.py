"""From step records to training batches: prompts, targets, labels and token weights.

A batch is made when it is needed: pictures are opened, prompts go through the processor in one call, targets are tokenized with
offsets so that the verdict words' tokens can be weighted. Legend: B rows, T tokens.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import math
import random
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from ..serving.engine import Request
from ..serving.images import MAX_PIXELS, open_image, open_images
from ..serving.prompting import Prompter
from ..types import InputError, Sample
from .critique import WORDS, format_critique, parse_critique
from .gm_prm import critique_messages
from .records import StepRecord, fault, read_records, record_critique, record_from_row

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


class Joined(Sequence):
    """Several sequences as one, without copying them."""

    def __init__(self, *parts: Sequence[Any]):
        self.parts, self.ends = parts, list(accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Any:
        part = bisect.bisect_right(self.ends, index)
        return self.parts[part][index - (self.ends[part - 1] if part else 0)]


@dataclass(frozen=True)
class Survey:
    """What one look at all items found: which may be used, their rough lengths, why others were dropped, a digest of the texts."""

    indices: list[int]
    lengths: list[int]
    counts: Counter[str]
    digest: str


def survey(
    items: Sequence[StepRecord | Sample],
    style: Any,
    consistency: str,
    check: Callable[[StepRecord, str], str | None] = fault,
    size: Callable[[Any], int] | None = None,
) -> Survey:
    """Looks at every item once: its labels (`check` gives a reason against it), its pictures' headers (InputError for one that cannot
    be used), its text.

    The rough length is in characters, or what `size` says: good enough to batch alike lengths.
    """
    indices, lengths, counts, digest, seen = [], [], Counter[str](), hashlib.sha1(), set[str]()
    for index, item in enumerate(items):
        reason = check(item, consistency) if isinstance(item, StepRecord) else None
        if reason is not None:
            counts[f"dropped: {reason}"] += 1
            continue
        prompt, target = style.prompt(item), style.target(item)
        for image in prompt.images:
            if not (isinstance(image, str) and image in seen):
                picture_size(image)
                seen.add(str(image))
        text = "\0".join(message["content"][-1]["text"] for message in prompt.messages)
        digest.update(f"{text}\0{target}\0".encode(errors="replace"))
        counts["records" if isinstance(item, StepRecord) else "solutions"] += 1
        indices.append(index)
        lengths.append(size(item) if size else len(text) + len(target))
    return Survey(indices, lengths, counts, digest.hexdigest())


class Collator:
    """Rows `{"index": i}` become a batch for item i of `items`.

    Labels are -100 where nothing is to be learnt. `loss_weights` (B, T) are 1 on labelled tokens, `verdict_weight` on those of the
    verdict words, `correction_weight` on those of the corrected step, 0 elsewhere.
    """

    def __init__(
        self,
        processor: Any,
        items: Sequence[StepRecord | Sample],
        style: TargetStyle,
        verdict_weight: float = 3.0,
        correction_weight: float = 1.0,
    ):
        self.processor, self.items, self.style = processor, items, style
        self.verdict_weight, self.correction_weight = verdict_weight, correction_weight
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.prompter = Prompter(processor, "the model")
        self.ending = _turn_ending(self.prompter)
        self.pad = next(id for id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if id is not None)

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        items = [self.items[row["index"]] for row in rows]
        prompts = self._prompts(items)
        targets = self._targets(items)
        heads = [ids[mask.bool()] for ids, mask in zip(prompts["input_ids"], prompts["attention_mask"], strict=True)]
        tails = [torch.tensor(ids) for ids in targets["input_ids"]]
        width = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
        ids_BT = torch.full((len(rows), width), self.pad)
        mask_BT = torch.zeros((len(rows), width), dtype=torch.long)
        labels_BT = torch.full((len(rows), width), -100)
        weights_BT = torch.zeros((len(rows), width))
        kinds = {name: torch.zeros_like(ids_BT) for name in prompts if name.endswith("token_type_ids")}
        for b, (head, tail) in enumerate(zip(heads, tails, strict=True)):
            start, end = len(head), len(head) + len(tail)
            ids_BT[b, :start], ids_BT[b, start:end], labels_BT[b, start:end] = head, tail, tail
            mask_BT[b, :end] = 1
            weights_BT[b, start:end] = torch.tensor(targets["weights"][b])
            labels_BT[b, weights_BT[b] == 0] = -100
            for name, kind_BT in kinds.items():
                kind_BT[b, :start] = prompts[name][b][prompts["attention_mask"][b].bool()]
        made = {"input_ids": ids_BT, "attention_mask": mask_BT, "labels": labels_BT, "loss_weights": weights_BT, **kinds}
        return {**{name: value for name, value in prompts.items() if name not in made}, **made}

    def prompt_text(self, item: StepRecord | Sample) -> str:
        """What stands before the first thing to be learnt, as text."""
        return self.prompter.text(self.style.prompt(item))

    def _prompts(self, items: Sequence[StepRecord | Sample]) -> dict[str, torch.Tensor]:
        pictures = open_images([self.style.prompt(item).images for item in items])
        texts = [self.prompt_text(item) for item in items]
        extra = {"images": pictures} if any(pictures) else {}
        return dict(self.processor(text=texts, padding=True, return_tensors="pt", add_special_tokens=False, **extra))

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

    def lengths(self, indices: Sequence[int]) -> Iterator[int]:
        """Exact token counts. What pictures add depends on their sizes alone, so each set of sizes goes through the processor once."""
        added: dict[tuple[tuple[int, int], ...], int] = {}
        for index in indices:
            item = self.items[index]
            sizes = tuple(picture_size(image) for image in self.style.prompt(item).images)
            bare = len(self.prompter.ids(self.prompt_text(item)))
            if sizes not in added:
                added[sizes] = int(self._prompts([item])["attention_mask"].sum()) - bare
            yield bare + added[sizes] + len(self._targets([item])["input_ids"][0])

    def longest_target(self, indices: Sequence[int], look_at: int = 20) -> int:
        """Room for the longest target, in tokens and a quarter more: what the scorer should generate at most."""
        longest = sorted((self.items[i] for i in indices), key=lambda item: -len(self.style.target(item)))[:look_at]
        return math.ceil(1.25 * max(map(len, self._targets(longest)["input_ids"]))) if longest else 0


def picture_size(image: Any) -> tuple[int, int]:
    """Width and height from the file's header alone; InputError for a picture that is missing, unreadable or too large."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return image.size
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            size = Image.open(io.BytesIO(image) if isinstance(image, bytes) else image).size
    except Exception:
        size = None
    if size is None or size[0] * size[1] > MAX_PIXELS:
        return open_image(image).size  # says what is wrong
    return size


def mark(weights: list[float], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]], value: float) -> None:
    """Sets the weight of every token that shares characters with a span. Tokens and spans are both in order."""
    at = 0
    for first, last in spans:
        while at < len(offsets) and offsets[at][1] <= first:
            at += 1
        while at < len(offsets) and offsets[at][0] < last:
            weights[at] = value
            at += 1


def batch_order(lengths: Sequence[int], batch_size: int, epochs: int, seed: int) -> list[int]:
    """Indices for all epochs: shuffled, then sorted by length within blocks of 50 batches, then the batches shuffled.

    One list for the whole run, so that an interrupted run finds its place again by counting.
    """
    rng, order, left_over = random.Random(seed), [], []
    for _ in range(epochs):
        indices = list(range(len(lengths)))
        rng.shuffle(indices)
        indices, block = left_over + indices, 50 * batch_size
        blocks = [sorted(indices[i : i + block], key=lambda i: -lengths[i]) for i in range(0, len(indices), block)]
        batches = [part[i : i + batch_size] for part in blocks for i in range(0, len(part), batch_size)]
        # A short batch inside the list would shift all batches that follow: the next epoch takes it first.
        left_over = batches.pop() if len(batches[-1]) < batch_size else []
        rng.shuffle(batches)
        order += [i for batch in batches for i in batch]
    return order + left_over


def _turn_ending(prompter: Prompter) -> str:
    """What the chat template writes after the assistant's text: the end-of-turn token that the model must learn to write."""
    mark = "vlrm-mark"
    turn = [{"role": role, "content": [{"type": "text", "text": mark}]} for role in ("user", "assistant")]
    rendered = prompter.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=False)
    ending = rendered[rendered.rfind(mark) + len(mark) :]
    return ending if ending.strip() else ending + (prompter.tokenizer.eos_token or "")
