"""Reward models: scorers, answer checking, and loading what training wrote."""

from .answers import extract_answer, same_answer
from .load import load_scorer

__all__ = ["extract_answer", "load_scorer", "same_answer"]
