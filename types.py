"""The words of the house: problems, solutions, scores, costs. They are defined in `_types.py`.

This file is thin because its folder may be the first that Python searches (`python -m venv .venv` in a clone): then it is
taken for the standard library's `types`, in the middle of Python's own start, and must hand out the real one.
"""

if __name__ == "types":
    import os
    import sys

    here, path = os.path.dirname(os.path.abspath(__file__)), sys.path[:]
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != here]
    del sys.modules["types"]
    import types  # noqa: F401

    sys.path[:] = path
else:
    from ._types import EngineError, InputError, Kind, Pair, Problem, Sample, Score, Scorer, Step, Usage, Verdict

    __all__ = ["EngineError", "InputError", "Kind", "Pair", "Problem", "Sample", "Score", "Scorer", "Step", "Usage", "Verdict"]
