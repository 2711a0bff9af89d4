"""vlrm: vision-language reward models, from labels to reward model to search. See README.md."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .types import EngineError, InputError, Pair, Problem, Sample, Score, Scorer, Step, Usage, Verdict

__version__ = "0.1.0"

# Heavy modules are imported when first used, so that `import vlrm` stays quick.
_LAZY = {
    "load_engine": ".serving",
    "load_scorer": ".rm",
    "Request": ".serving.engine",
    "Completion": ".serving.engine",
    "self_consistency": ".policy",
    "best_of_n": ".policy",
    "weighted_best_of_n": ".policy",
    "refined_best_of_n": ".policy",
}

if TYPE_CHECKING:
    from .policy import best_of_n, refined_best_of_n, self_consistency, weighted_best_of_n
    from .rm import load_scorer
    from .serving import load_engine
    from .serving.engine import Completion, Request

__all__ = [
    "Completion", "EngineError", "InputError", "Pair", "Problem", "Request", "Sample", "Score", "Scorer", "Step", "Usage", "Verdict",
    "best_of_n", "load_engine", "load_scorer", "refined_best_of_n", "self_consistency", "weighted_best_of_n",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
