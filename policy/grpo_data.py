"""Problems as the rows that TRL's GRPOTrainer takes: which fit, in what order, and what a row holds."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..rm.problems import policy_messages
from ..serving.images import open_image
from ..types import InputError, Problem, Sample


def rows(problems: Sequence[Problem], instruction: str = "", max_pixels: int | None = None) -> Any:
    """A datasets.Dataset with the columns prompt, images and problem, made when a row is asked for. Pictures are opened then."""
    from datasets import Dataset

    def row(batch: Mapping[str, Sequence[int]]) -> dict[str, list[Any]]:
        chosen = [problems[i] for i in batch["index"]]
        return {
            "prompt": [policy_messages(problem, instruction) for problem in chosen],
            "images": [[shrunk(open_image(image), max_pixels) for image in problem.images] for problem in chosen],
            "problem": chosen,
        }

    return Dataset.from_dict({"index": list(range(len(problems)))}).with_transform(row)


def shrunk(image: Any, max_pixels: int | None) -> Any:
    """The picture with at most `max_pixels` pixels, in its proportions."""
    if max_pixels is None or image.width * image.height <= max_pixels:
        return image
    scale = (max_pixels / (image.width * image.height)) ** 0.5
    return image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))))


def fitting(
    problems: Sequence[Problem], processor: Any, limit: int | None, instruction: str = "", max_pixels: int | None = None
) -> list[Problem]:
    """The problems whose prompt has at most `limit` tokens, pictures included; TRL itself cuts nothing."""
    if limit is None:
        return list(problems)

    def length(problem: Problem) -> int:
        text = processor.apply_chat_template(policy_messages(problem, instruction), add_generation_prompt=True)
        images = [shrunk(open_image(image), max_pixels) for image in problem.images]
        return len(processor(text=[text], **({"images": [images]} if images else {}))["input_ids"][0])

    return [problem for problem in problems if length(problem) <= limit]


def side_by_side(problems: Sequence[Problem], column: str, per_batch: int, seed: int) -> list[Problem]:
    """The problems in an order that keeps those with an equal value of a column in one batch; the values are shuffled."""
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        if column not in problem.meta:
            raise InputError(f"problem {problem.id} has no column {column}, by which problems are to be kept together")
        groups.setdefault(str(problem.meta[column]), []).append(problem)
    sizes = Counter(map(len, groups.values()))
    if len(sizes) > 1 or per_batch % next(iter(sizes)):
        raise InputError(
            f"together: {column} must stand for equally many problems each time, and a step's {per_batch} problems be a multiple of that; "
            f"there are groups of {', '.join(map(str, sorted(sizes)))}"
        )
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    return [problem for name in order for problem in groups[name]]


def trial(problems: Sequence[Problem]) -> list[Sample]:
    """Two short solutions to the first problem, the first one right where the answer is known."""
    if not problems:
        raise InputError("there are no problems to train on")
    answers = (problems[0].answer or "unknown", "none")
    return [Sample(problems[0], f"Step 1: The picture answers the question.\nAnswer: {answer}") for answer in answers]


def digest(problems: Sequence[Problem]) -> str:
    """Names the problems as they are. Pictures in memory count by their number only."""
    found = hashlib.blake2b(digest_size=12)
    for problem in problems:
        images = [str(image) if isinstance(image, (str, os.PathLike)) else None for image in problem.images]
        found.update(json.dumps([problem.id, problem.question, images, problem.answer]).encode())
    return found.hexdigest()
