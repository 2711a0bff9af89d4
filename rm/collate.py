"""From items to training batches: prompts, targets, labels and token weights, whatever an item is.

A `style` says how an item becomes a prompt and a target. A batch is made when it is needed: pictures are opened, prompts go through the
processor in one call, targets are tokenized. Legend: B rows, T tokens.
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
from typing import Any, Protocol

import torch

from ..serving.engine import Request
from ..serving.images import MAX_PIXELS, open_image, open_images
from ..serving.prompting import Prompter, as_parts


class Style(Protocol):
    """How an item becomes text; the trained scorer must use the same."""

    def prompt(self, item: Any) -> Request: ...

    def target(self, item: Any) -> str: ...


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
    items: Sequence[Any],
    style: Style,
    check: Callable[[Any], str | None] = lambda item: None,
    size: Callable[[Any], int] | None = None,
    name: Callable[[Any], str] = lambda item: "records",
) -> Survey:
    """Looks at every item once: whether `check` has a reason against it, its pictures' files (InputError for one that cannot be used),
    its text.

    The rough length is in characters, or what `size` says: good enough to batch alike lengths. `name` says what an item is counted as.
    """
    indices, lengths, counts, digest, seen = [], [], Counter[str](), hashlib.sha1(), set[str]()
    for index, item in enumerate(items):
        if (reason := check(item)) is not None:
            counts[f"dropped: {reason}"] += 1
            continue
        prompt, target = style.prompt(item), style.target(item)
        for image in prompt.images:
            if not (isinstance(image, str) and image in seen):
                check_picture(image)
                seen.add(str(image))
        parts = [part for message in as_parts(prompt.messages) for part in message["content"]]
        text = "\0".join(part["text"] for part in parts if part["type"] == "text")
        digest.update(f"{text}\0{target}\0".encode(errors="replace"))
        counts[name(item)] += 1
        indices.append(index)
        lengths.append(size(item) if size else len(text) + len(target))
    return Survey(indices, lengths, counts, digest.hexdigest())


class TargetCollator:
    """Rows `{"index": i}` become a batch for item i of `items`.

    Labels are -100 where nothing is to be learnt. `loss_weights` (B, T) are 1 on labelled tokens, or what `_targets` of a subclass says,
    0 elsewhere.
    """

    def __init__(self, processor: Any, items: Sequence[Any], style: Style):
        self.processor, self.items, self.style = processor, items, style
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.prompter = Prompter(processor, "the model")
        self.ending = turn_ending(self.prompter)
        self.pad = next(id for id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if id is not None)

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, torch.Tensor]:
        return self.batch([self.items[row["index"]] for row in rows])

    def batch(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        prompts = self._prompts(items)
        targets = self._targets(items)
        heads = [ids[mask.bool()] for ids, mask in zip(prompts["input_ids"], prompts["attention_mask"], strict=True)]
        tails = [torch.tensor(ids) for ids in targets["input_ids"]]
        width = max(len(head) + len(tail) for head, tail in zip(heads, tails, strict=True))
        ids_BT = torch.full((len(items), width), self.pad)
        mask_BT = torch.zeros((len(items), width), dtype=torch.long)
        labels_BT = torch.full((len(items), width), -100)
        weights_BT = torch.zeros((len(items), width))
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

    def prompt_text(self, item: Any) -> str:
        """What stands before the first thing to be learnt, as text."""
        return self.prompter.text(self.style.prompt(item))

    def _prompts(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        pictures = open_images([self.style.prompt(item).images for item in items])
        texts = [self.prompt_text(item) for item in items]
        extra = {"images": pictures} if any(pictures) else {}
        return dict(self.processor(text=texts, padding=True, return_tensors="pt", add_special_tokens=False, **extra))

    def _targets(self, items: Sequence[Any]) -> dict[str, list[list[Any]]]:
        """Token ids and weights of the assistant's turns, with whatever the chat template puts around them."""
        texts = [self.prompter.separator + self.style.target(item) + self.ending for item in items]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return {"input_ids": ids, "weights": [[1.0] * len(row) for row in ids]}

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


def check_picture(image: Any) -> tuple[int, int]:
    """As `picture_size`, but the file is read to its end: InputError also for one that is cut off."""
    size = picture_size(image)
    if not _is_whole(image):
        open_image(image)  # decodes it, and says what is wrong
    return size


def _is_whole(image: Any) -> bool:
    """Looks at a PNG's checksums and a JPEG's end; nothing is decoded."""
    from PIL import Image

    if isinstance(image, Image.Image):
        return True
    try:
        with Image.open(io.BytesIO(image) if isinstance(image, bytes) else image) as opened:
            if opened.format == "JPEG" and not _has_end(image):
                return False
            opened.verify()
    except Exception:
        return False
    return True


def _has_end(jpeg: Any) -> bool:
    if isinstance(jpeg, bytes):
        return b"\xff\xd9" in jpeg[-64:]
    with open(jpeg, "rb") as file:
        file.seek(0, io.SEEK_END)
        file.seek(max(0, file.tell() - 64))
        return b"\xff\xd9" in file.read()


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


def turn_ending(prompter: Prompter) -> str:
    """What the chat template writes after the assistant's text: the end-of-turn token that the model must learn to write."""
    mark = "vlrm-mark"
    turn = [{"role": role, "content": [{"type": "text", "text": mark}]} for role in ("user", "assistant")]
    rendered = prompter.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=False)
    ending = rendered[rendered.rfind(mark) + len(mark) :]
    return ending if ending.strip() else ending + (prompter.tokenizer.eos_token or "")
