"""Similarity of two pictures without a trained reward: the baselines that a consistency reward must beat. Scorers as any other.

`PixelSimilarity` compares pixels, `EmbeddingSimilarity` a model's own view of the pictures (what CLIP-I does with CLIP's).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from ..serving.images import image_key, open_image
from ..types import InputError, Sample, Score, Usage
from .paco_cache import image_digest


class PixelSimilarity:
    """1 - the mean absolute difference of the pictures' pixels in [0, 1], both brought to `size` x `size`."""

    def __init__(self, *, size: int = 32):
        if size < 1:
            raise InputError(f"size must be at least 1, got {size}")
        self.size, self.usage = size, Usage()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        started, seen = time.perf_counter(), {}
        scores = [_score(sample, lambda image: self._view(image, seen), lambda a, b: 1 - float(abs(a - b).mean())) for sample in samples]
        self.usage += Usage(seconds=time.perf_counter() - started)
        return scores

    def _view(self, image: Any, seen: dict[Any, Any]) -> Any:
        import numpy as np

        if (key := image_key(image)) not in seen:
            seen[key] = np.asarray(open_image(image).resize((self.size, self.size)), dtype=np.float32) / 255
        return seen[key]


class EmbeddingSimilarity:
    """The cosine of the pictures' features, averaged over their patches, as the picture encoder and projector of a model give them to its
    language model; brought to [0, 1]. `engine` is a TransformersEngine: servers do not tell features."""

    def __init__(self, engine: Any, *, batch_size: int = 64):
        if not hasattr(getattr(engine, "model", None), "get_image_features"):
            raise InputError(
                f"{getattr(engine, 'name', engine)} gives no picture features; use a transformers engine of an image-text model"
            )
        self.engine, self.batch_size, self.usage = engine, batch_size, Usage()
        self.known: dict[str, Any] = {}

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        started = time.perf_counter()
        new = {image_digest(image): image for sample in samples for image in sample.problem.images}
        new = [(key, image) for key, image in new.items() if key not in self.known]
        for start in range(0, len(new), self.batch_size):
            part = new[start : start + self.batch_size]
            self.known |= dict(zip([key for key, _ in part], self._features([image for _, image in part]), strict=True))
        scores = [_score(sample, lambda image: self.known[image_digest(image)], lambda a, b: (1 + float(a @ b)) / 2) for sample in samples]
        self.usage += Usage(seconds=time.perf_counter() - started)
        return scores

    def _features(self, images: Sequence[Any]) -> list[Any]:
        """A vector of length 1 for each picture."""
        import torch

        vectors = []
        for image in images:  # one by one: models differ in how they tell which patches belong to which picture
            inputs = self.engine.prompter.processor.image_processor(images=[open_image(image)], return_tensors="pt")
            kept = {name: value.to(self.engine.device) for name, value in inputs.items() if hasattr(value, "to")}
            with torch.inference_mode():
                found = self.engine.model.get_image_features(**kept)
            found = getattr(found, "pooler_output", found)
            found = torch.cat([part.flatten(0, -2) for part in found]) if isinstance(found, (list, tuple)) else found.flatten(0, -2)
            mean = found.float().mean(dim=0)
            vectors.append((mean / mean.norm().clamp(min=1e-12)).cpu().numpy())
        return vectors


def _score(sample: Sample, view: Any, similarity: Any) -> Score:
    if (count := len(sample.problem.images)) != 2:
        return Score(None, error=f"{count} picture{'' if count == 1 else 's'} where two are needed")
    return Score(similarity(*map(view, sample.problem.images)))
