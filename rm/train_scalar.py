"""Training a scalar reward head on any image-text-to-text model, from preferences (Bradley-Terry) or from ratings (regression).

vlrm train --method bradley_terry --model PATH --data preferences.jsonl --output_dir runs/reward
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..serving.engine import Request
from ..serving.load import model_path
from ..types import InputError
from .collate import Joined, picture_size, survey
from .fit import Training, fit, known
from .head import load_head, whole_chat
from .preferences import Preference, Rating, answered, preference_fault, rating_fault, read_preferences, read_ratings


@dataclass(frozen=True)
class BradleyTerry(Training):
    """How to train on preferences: what `Training` has, and the loss (see `vlrm.rm.scores`)."""

    system: str = ""  # system text put before every chat that has none, in training and in use
    margins: bool = True  # use the column margin where it is given
    centre: float = 0.0  # weight of the square of the two rewards' sum; 0.01 is usual

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.centre < math.inf:
            raise InputError(f"centre must be at least 0, got {self.centre}")


@dataclass(frozen=True)
class Regression(Training):
    """How to train on ratings. `loss` "mse" is the squared error of standardised ratings (the scorer gives them back in their own
    units), "bce" the cross-entropy of targets in [0, 1] (the scorer gives the logit)."""

    system: str = ""
    loss: Literal["mse", "bce"] = "mse"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss not in ("mse", "bce"):
            raise InputError(f"loss must be mse or bce, got {self.loss!r}")


def train_bradley_terry(
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
    """Trains a scalar reward model on preferences and writes it to `output_dir`, where `vlrm.load_scorer` finds it; returns a summary.

    `preferences` and `eval_preferences`: what `read_preferences` takes, or lists of `Preference`. `recipe` holds fields of `BradleyTerry`.
    Pairs whose two answers are equal, empty answers and margins that are not finite are dropped and counted. Interruptions are as in
    `train_gm_prm`. Raises InputError for what cannot be used.
    """
    from .scores import bradley_terry

    settings = known(BradleyTerry, recipe, "train_bradley_terry")
    items, n_train = _joined(read_preferences, preferences, eval_preferences, image_root, split)

    def extra(chosen: Sequence[Preference]) -> dict[str, list[float]]:
        return {"margins": [item.margin or 0.0 if settings.margins else 0.0 for item in chosen]}

    form = Chats(settings.system, lambda item: (item.chosen, item.rejected), preference_fault, extra)
    kept = {"system": settings.system, **(scorer_settings or {})}
    rest = {"resume": resume, "keep_checkpoints": keep_checkpoints, "progress": progress}
    return _fit(settings, "bradley_terry", model, output_dir, items, n_train, form, bradley_terry(settings.centre), kept, rest)


def train_regression(
    model: str | Path,
    ratings: Any,
    output_dir: str | Path,
    *,
    image_root: str | Path | None = None,
    split: str | None = None,
    eval_ratings: Any = None,
    scorer_settings: Mapping[str, Any] | None = None,
    resume: bool = True,
    keep_checkpoints: bool = False,
    progress: bool = True,
    **recipe: Any,
) -> dict[str, Any]:
    """As `train_bradley_terry`, on ratings: what `read_ratings` takes, or lists of `Rating`. `recipe` holds fields of `Regression`."""
    from .scores import regression

    settings = known(Regression, recipe, "train_regression")
    items, n_train = _joined(read_ratings, ratings, eval_ratings, image_root, split)
    scale, offset = (1.0, 0.0) if settings.loss == "bce" else spread([items[i].value for i in range(n_train)])

    def extra(chosen: Sequence[Rating]) -> dict[str, list[float]]:
        return {"targets": [(item.value - offset) / scale for item in chosen]}

    form = Chats(settings.system, lambda item: (item.response,), lambda item: rating_fault(item, settings.loss), extra)
    kept = {"system": settings.system, "scale": scale, "offset": offset, **(scorer_settings or {})}
    rest = {"resume": resume, "keep_checkpoints": keep_checkpoints, "progress": progress}
    return _fit(settings, "regression", model, output_dir, items, n_train, form, regression(settings.loss), kept, rest)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """(standard deviation, mean) of the finite values; a deviation of 0 counts as 1."""
    finite = [value for value in values if math.isfinite(value)]
    mean = math.fsum(finite) / max(1, len(finite))
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / max(1, len(finite)))
    return deviation or 1.0, mean


class Chats:
    """Items as whole chats: what `survey` and the collator ask for. `answers(item)` are its answers, `extra(items)` the columns beside."""

    def __init__(
        self,
        system: str,
        answers: Callable[[Any], tuple[str, ...]],
        fault: Callable[[Any], str | None],
        extra: Callable[[Sequence[Any]], Mapping[str, Sequence[float]]],
    ):
        self.system, self.answers, self.fault, self.extra = system, answers, fault, extra

    def requests(self, item: Any) -> list[Request]:
        return [answered(item.problem, answer, self.system) for answer in self.answers(item)]

    def prompt(self, item: Any) -> Request:
        return self.requests(item)[0]

    def target(self, item: Any) -> str:
        """What the digest of the data also depends on."""
        return "\0".join([*self.answers(item)[1:], *(f"{name} {values[0]:g}" for name, values in self.extra([item]).items())])

    def size(self, item: Any) -> int:
        """A rough length that is the same for an item whichever answer is the better one."""
        return len(item.problem.question) + max(map(len, self.answers(item)))


class ChatCollator:
    """Rows `{"index": i}` become a batch of whole chats, right-padded: first the first answers of all items, then the second ones."""

    def __init__(self, processor: Any, items: Sequence[Any], form: Chats):
        from ..serving.prompting import Prompter

        self.processor, self.items, self.form = processor, items, form
        self.prompter = Prompter(processor, "the model")
        tokenizer = self.prompter.tokenizer
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    def __call__(self, rows: Sequence[Mapping[str, int]]) -> dict[str, Any]:
        import torch

        items = [self.items[row["index"]] for row in rows]
        requests = [request for group in zip(*(self.form.requests(item) for item in items), strict=True) for request in group]
        extra = {name: torch.tensor(values) for name, values in self.form.extra(items).items()}
        return {**self._inputs(requests), **extra}

    def lengths(self, indices: Sequence[int]) -> Iterator[int]:
        """Tokens of each item's longest chat. What pictures add depends on their sizes alone, so each set of sizes goes through the
        processor once."""
        added: dict[tuple[tuple[int, int], ...], int] = {}
        for index in indices:
            requests = self.form.requests(self.items[index])
            sizes = tuple(picture_size(image) for image in requests[0].images)
            bare = [len(self.prompter.ids(whole_chat(self.prompter, request))) for request in requests]
            if sizes not in added:
                added[sizes] = int(self._inputs(requests[:1])["attention_mask"].sum()) - bare[0]
            yield max(bare) + added[sizes]

    def _inputs(self, requests: Sequence[Request]) -> dict[str, Any]:
        from ..serving.images import open_images

        texts = [whole_chat(self.prompter, request) for request in requests]
        pictures = open_images([request.images for request in requests])
        more = {"images": pictures} if any(pictures) else {}
        options = {"padding": True, "padding_side": "right", "return_tensors": "pt", "add_special_tokens": False}
        return dict(self.processor(text=texts, **options, **more))


def _joined(read: Callable[..., Sequence[Any]], train: Any, evaluation: Any, image_root: Any, split: str | None) -> tuple[Joined, int]:
    first = read(train, image_root=image_root, split=split)
    second = read(evaluation, image_root=image_root) if evaluation is not None else ()
    return Joined(first, second), len(first)


def _fit(
    settings: Any,
    objective_name: str,
    model: str | Path,
    output_dir: str | Path,
    items: Joined,
    n_train: int,
    form: Chats,
    objective: Any,
    kept: Mapping[str, Any],
    rest: Mapping[str, Any],
) -> dict[str, Any]:
    from functools import partial

    found = survey(items, form, form.fault, form.size, lambda item: "pairs" if isinstance(item, Preference) else "ratings")

    def arguments(**options: Any) -> Any:
        from transformers import TrainingArguments

        return TrainingArguments(**options)

    def trainer(**options: Any) -> Any:
        from .scores import ScoreTrainer

        return ScoreTrainer(**options, objective=objective)

    return fit(
        settings,
        "scalar",
        str(model),
        model_path(str(model)),
        Path(output_dir),
        found,
        n_train,
        make_collator=lambda processor: ChatCollator(processor, items, form),
        make_trainer=trainer,
        make_arguments=arguments,
        load_network=partial(load_head, kind="sequence", num_labels=1),
        scorer_settings=lambda collator: kept,
        identity={"objective": objective_name},
        **rest,
    )
