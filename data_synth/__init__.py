"""Training data with known truth: worlds, problems, corrupted and sampled solutions, exact step records."""

from .blind import blind_accuracy
from .problems import load_problems, make_problems
from .step_records import judge_steps, make_step_records
from .worlds import WORLDS, get_world

__all__ = ["WORLDS", "blind_accuracy", "get_world", "judge_steps", "load_problems", "make_problems", "make_step_records"]
