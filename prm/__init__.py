"""Process reward models: steps, critiques, the GM-PRM scorer, and how to train it."""

from .critique import Critique, StepCritique, format_critique, parse_critique
from .gm_prm import GMPRM
from .record_files import read_records
from .records import StepRecord
from .steps import split_steps

__all__ = ["GMPRM", "Critique", "StepCritique", "StepRecord", "format_critique", "parse_critique", "read_records", "split_steps"]
