"""Rewards for RL: scorers with weights, gates, caps and schedules, and the callables that TRL wants."""

from __future__ import annotations

from .rules import Rules
from .spec import Reward, load_rewards

__all__ = ["Reward", "Rules", "load_rewards"]
