"""Scores of a file of samples, made in chunks and kept: a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..types import InputError, Sample, Score, Scorer
from .rows import append_jsonl, drop_torn_line


def score_or_reason(scorer: Scorer, samples: Sequence[Sample]) -> list[Score]:
    """One score for each sample. Samples that the scorer refuses with InputError (too long for the model, a damaged picture) get a score
    without a value that says why: a refused batch is halved until they stand alone. Other errors end the run."""
    try:
        scores = list(scorer(samples))
    except InputError as error:
        if len(samples) == 1:
            return [Score(None, error=" ".join(str(error).split()))]
        half = len(samples) // 2
        return score_or_reason(scorer, samples[:half]) + score_or_reason(scorer, samples[half:])
    if len(scores) != len(samples):
        raise InputError(f"the scorer gave {len(scores)} scores for {len(samples)} samples; it must give one for each, in order")
    return scores


def score_samples(
    samples: Sequence[Sample],
    scorer: Callable[[], Scorer],
    output: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any],
    chunk: int = 64,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any]]:
    """What `scorer()` says of each sample, in order: {id, value, details, error}; each problem's id must be its own.

    Also kept as JSON lines in `output`, where a later call with the same settings finds them; the scorer is made only if something is
    missing. `settings` must hold everything that changes the scores; a file with scores of other settings is refused with InputError. The
    last row of a chunk holds `usage`: what the scorer spent on it.
    """
    output, done = Path(output), {}
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    stamp = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=12).hexdigest()
    drop_torn_line(output)
    for number, line in enumerate(output.read_text(encoding="utf-8").splitlines() if output.exists() else [], start=1):
        try:
            row = json.loads(line)
            done[row["key"]] = row
            was = row["settings"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{output}, line {number}: is not a score; choose another output folder or delete it") from None
        if was != stamp:
            raise InputError(f"{output} holds scores of other settings or of another model; choose another output folder or delete it")
    keys = [sample_key(sample) for sample in samples]
    judge: Scorer | None = None
    for start in range(0, len(samples), chunk):
        batch = list(zip(keys[start : start + chunk], samples[start : start + chunk], strict=True))
        if missing := [(key, sample) for key, sample in batch if key not in done]:
            judge = judge or scorer()
            before = judge.usage
            scores = score_or_reason(judge, [sample for _, sample in missing])
            spent = judge.usage - before
            rows = [
                {"id": s.problem.id, "value": score.value, "details": score.details, "error": score.error, "key": key, "settings": stamp}
                for (key, s), score in zip(missing, scores, strict=True)
            ]
            rows[-1]["usage"] = [spent.prompt_tokens, spent.completion_tokens, spent.calls, spent.seconds]
            rows = json.loads(json.dumps(rows, default=str))  # the same whether just made or read back
            append_jsonl(output, rows)
            done |= {row["key"]: row for row in rows}
        progress(min(start + chunk, len(samples)))
    return [done[key] for key in keys]


def sample_key(sample: Sample) -> str:
    """Names a sample as it is. Pictures in memory count by their number only."""
    problem = sample.problem
    images = [os.fspath(image) if isinstance(image, (str, os.PathLike)) else None for image in problem.images]
    content = json.dumps([problem.id, problem.question, images, dict(problem.meta), sample.solution], sort_keys=True, default=str)
    return hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
