"""A scorer's comparisons of a file of preferences, made in chunks and kept: a run that was killed goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..types import InputError, Pair, Problem, Scorer
from .compare import Comparison, Vote, compare
from .preferences import Preference
from .rows import append_jsonl, drop_torn_line


def compare_file(
    preferences: Sequence[Preference],
    problems: Sequence[Problem | None],
    scorer: Callable[[], Scorer],
    output: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any],
    chunk: int = 32,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[dict[str, Any] | None]:
    """What `scorer()` says of each preference, in order, towards its better answer ("first"); None where its problem is None.

    `problems` stand in for the preferences' own (blinded, say). The better answer is put first or second at random, by `seed` and place, so
    that a scorer with an eye for the place gains nothing. Also kept as JSON lines in `output`, where a later call with the same settings
    finds them; the scorer is made only if something is missing. Rows have `said`, `logit`, `values`, `votes`, `texts`, `error`, `tokens`
    read and written, and `seconds`, both shared evenly by a chunk.
    """
    output = Path(output)
    if chunk < 1:
        raise InputError(f"chunk must be at least 1, got {chunk}")
    settings = json.loads(json.dumps(settings))
    done = _read(output, settings)
    judge: Scorer | None = None
    rows: list[dict[str, Any] | None] = []
    for start in range(0, len(preferences), chunk):
        places = [i for i in range(start, min(start + chunk, len(preferences))) if problems[i] is not None]
        keys = {i: _key(i, preferences[i], problems[i]) for i in places}
        missing = [i for i in places if keys[i] not in done]
        if missing:
            judge = judge or scorer()
            before = judge.usage
            flips = [random.Random(f"{seed} {keys[i]}").random() < 0.5 for i in missing]
            asked = [_pair(preferences[i], problems[i], flip) for i, flip in zip(missing, flips, strict=True)]
            said = [_unflip(found, flip) for found, flip in zip(compare_or_reason(judge, asked), flips, strict=True)]
            spent = judge.usage - before
            share = {
                "read": round(spent.prompt_tokens / len(missing), 2),
                "written": round(spent.completion_tokens / len(missing), 2),
                "seconds": round(spent.seconds / len(missing), 5),
            }
            made = [
                {"key": keys[i], "id": preferences[i].problem.id, **_row(one), **share, "settings": settings}
                for i, one in zip(missing, said, strict=True)
            ]
            append_jsonl(output, made)
            done |= {row["key"]: row for row in made}
        rows += [done[keys[i]] if i in keys else None for i in range(start, min(start + chunk, len(preferences)))]
        progress(min(start + chunk, len(preferences)))
    return rows


def compare_or_reason(scorer: Scorer, pairs: Sequence[Pair]) -> list[Comparison]:
    """One comparison for each pair. Pairs that the scorer refuses with InputError (too long, a damaged picture) get one that says why: a
    refused batch is halved until they stand alone. Other errors end the run."""
    try:
        return compare(scorer, pairs)
    except InputError as error:
        if len(pairs) == 1:
            return [Comparison("unparsed", error=" ".join(str(error).split()))]
        half = len(pairs) // 2
        return compare_or_reason(scorer, pairs[:half]) + compare_or_reason(scorer, pairs[half:])


def comparison_of(row: Mapping[str, Any]) -> Comparison:
    """A kept row as a Comparison."""
    votes = tuple(Vote(swapped, said) for swapped, said in row["votes"])
    values = None if row["values"] is None else tuple(row["values"])
    return Comparison(row["said"], row["logit"], values, votes, tuple(row["texts"]), row["error"])


def _pair(preference: Preference, problem: Problem | None, flip: bool) -> Pair:
    assert problem is not None
    pair = Pair(problem, preference.chosen, preference.rejected, 0)
    return pair.swap() if flip else pair


def _unflip(found: Comparison, flip: bool) -> Comparison:
    from .judgement import turned

    if not flip:
        return found
    votes = tuple(Vote(not vote.swapped, turned(vote.said)) for vote in found.votes)
    values = None if found.values is None else (found.values[1], found.values[0])
    return Comparison(turned(found.said), None if found.logit is None else -found.logit, values, votes, found.texts, found.error)


def _row(found: Comparison) -> dict[str, Any]:
    votes = [[vote.swapped, vote.said] for vote in found.votes]
    row = {"said": found.said, "logit": found.logit, "values": found.values, "votes": votes, "texts": list(found.texts)}
    return json.loads(json.dumps(row | {"error": found.error}))


def _key(place: int, preference: Preference, problem: Problem | None) -> str:
    """Names a pair as it is shown. Pictures in memory count by their bytes, or by their number alone."""
    images = [
        str(image) if isinstance(image, (str, os.PathLike)) else hashlib.blake2b(image).hexdigest() if isinstance(image, bytes) else None
        for image in problem.images  # type: ignore[union-attr]
    ]
    content = [place, preference.problem.id, problem.question, repr(problem.meta.get("messages"))]  # type: ignore[union-attr]
    text = json.dumps([*content, preference.chosen, preference.rejected, images])
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=12).hexdigest()


def _read(path: Path, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    drop_torn_line(path)
    done = {}
    for number, line in enumerate(path.read_bytes().splitlines() if path.exists() else [], start=1):
        try:
            row = json.loads(line)
            key, was = row["key"], row["settings"]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path}, line {number}: is not a comparison; choose another output folder or delete it") from None
        if was != settings:
            changed = [f"{k} was {was.get(k)!r}, is {settings.get(k)!r}" for k in {**was, **settings} if was.get(k) != settings.get(k)]
            raise InputError(f"{path} holds comparisons of other settings ({'; '.join(changed)}); choose another output or delete it")
        done[key] = row
    return done
