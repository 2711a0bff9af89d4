"""Beam search over steps with a process reward model (search-and-learn): many partial solutions, the best of them go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..serving.engine import Engine
from ..types import Problem, Scorer
from .result import SearchResult
from .sampling import check
from .step_search import Growing, Ledger, Partial, best_partials, check_width, conclude, grow, split_settings


def beam_search(
    problems: Sequence[Problem], policy: Engine, scorer: Scorer, *, n: int = 8, beam_width: int = 4, seed: int = 0, **settings: Any
) -> list[SearchResult]:
    """The best-scored of the solutions that `n` beams end in, for each problem in order.

    The first round samples `n` first steps; after each round the best `n / beam_width` unfinished partial solutions are continued
    `beam_width` times each, until `n` solutions have ended or none is left.

    `settings` are those of `Growth` (40 rounds at most) and `Sampling`; `details` as in `guided_greedy`. The choice at the end and its
    ties are those of `best_of_n`.
    """
    check(problems, n)
    check_width(n, beam_width)
    growth, sampling = split_settings(settings, scorer)
    ledgers = [Ledger() for _ in problems]
    ended: list[list[Partial]] = [[] for _ in problems]
    beams: list[list[Partial]] = [[Partial()] for _ in problems]
    for round in range(growth.max_rounds):
        width = beam_width if round else n
        going = [p for p in range(len(problems)) if len(ended[p]) < n and ledgers[p].stopped == "ended"]
        wanted = [Growing(p, beam, slot, width) for p in going for slot, beam in enumerate(beams[p])]
        if not wanted:
            break
        grown: list[list[Partial]] = [[] for _ in problems]
        for item, partials in zip(wanted, grow(problems, wanted, ledgers, policy, scorer, growth, sampling, seed, round), strict=True):
            grown[item.place] += partials
        for p in going:
            if grown[p]:
                ended[p] += [partial for partial in grown[p] if partial.ended]
                beams[p] = best_partials([partial for partial in grown[p] if not partial.ended], n // beam_width, growth.rank)
    left = [done + open for done, open in zip(ended, beams, strict=True)]
    return [conclude(*row, growth, "beam_search") for row in zip(problems, left, ledgers, strict=True)]
