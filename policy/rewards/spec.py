"""Rewards as a recipe names them.

    rewards:
      gm_prm: {scorer: runs/gm_prm, weight: 1.0, cap: 0.9, gate: format}
      answer: 0.5
      format: {weight: [[0, 0.2], [0.5, 0.0]]}

Each has a name of its own, under which it is logged. Its scorer is the built-in `answer`, `format` or `perception_r1`, a folder that `vlrm
train` wrote, the URL of a server, or `package.module:function` (a scorer, or a class whose instance is one); where none is named the
name says it. A number alone is the weight.
"""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from ...rm.load import load_scorer, resolve
from ...types import InputError, Problem, Sample, Score, Scorer, Usage
from .basic import AnswerReward, FormatReward
from .perception_r1 import PerceptionR1
from .ps_grpo import PSGRPO
from .rules import Rules

BUILT_IN = {"answer": AnswerReward, "format": FormatReward, "perception_r1": PerceptionR1}
FORMS = {"ps_grpo": PSGRPO}
_RULES = tuple(item.name for item in fields(Rules))
_KEYS = ("scorer", "settings", "engine", "engine_options", "method", "form", "form_settings", "timeout", *_RULES)


@dataclass(frozen=True)
class Reward:
    """A scorer under a name, with its rules. `timeout`: seconds that a call may take, None for no limit."""

    name: str
    scorer: Scorer
    rules: Rules = field(default_factory=Rules)
    timeout: float | None = None


def load_rewards(rewards: Mapping[str, Any] | Sequence[Reward]) -> list[Reward]:
    """The rewards of a recipe; ready ones are checked only. Raises InputError for anything that cannot be used."""
    if isinstance(rewards, Mapping):
        rewards = [load_reward(name, settings) for name, settings in rewards.items()]
    if not rewards:
        raise InputError("rewards is empty; name at least one, such as {answer: 1}")
    names = [reward.name for reward in rewards]
    for reward in rewards:
        if names.count(reward.name) > 1:
            raise InputError(f"two rewards have the name {reward.name!r}; give each its own")
        if reward.rules.gate is not None and (reward.rules.gate not in names or reward.rules.gate == reward.name):
            raise InputError(f"reward {reward.name}: its gate must be another reward, got {reward.rules.gate!r}")
    return list(rewards)


def load_reward(name: str, settings: Any) -> Reward:
    """One reward: its settings (a mapping, a weight, or a scorer) as a recipe gives them, or a scorer object."""
    if callable(settings):
        return Reward(name, settings)
    if isinstance(settings, (int, float)) and not isinstance(settings, bool):
        settings = {"weight": settings}
    settings = {"scorer": settings} if isinstance(settings, str) else dict(settings or {})
    for key in settings:
        if key not in _KEYS:
            close = difflib.get_close_matches(key, _KEYS, n=1, cutoff=0.0)[0]
            raise InputError(f"reward {name}: unknown key {key!r}; did you mean {close!r}?")
    timeout = settings.get("timeout")
    if timeout is not None and (not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not 0 < timeout < math.inf):
        raise InputError(f"reward {name}: timeout must be a number of seconds above 0, got {timeout!r}")
    try:
        scorer = _scorer(settings.get("scorer", name), settings)
        rules = Rules(**{key: settings[key] for key in _RULES if key in settings})
        if form := settings.get("form"):
            if form not in FORMS:
                raise InputError(f"unknown form {form!r}; there are {', '.join(FORMS)}")
            scorer = FORMS[form](scorer, **_fitting(FORMS[form], settings.get("form_settings")))
    except InputError as error:
        raise InputError(f"reward {name}: {error}") from None
    return Reward(name, scorer, rules, timeout)


def _scorer(spec: Any, settings: Mapping[str, Any]) -> Scorer:
    own = settings.get("settings") or {}
    if callable(spec):
        return spec
    if spec in BUILT_IN:
        return BUILT_IN[spec](**_fitting(BUILT_IN[spec], own))
    if not isinstance(spec, str):
        raise InputError(f"scorer must be text, got {spec!r}")
    if ":" in spec and not spec.startswith(("http://", "https://")) and "/" not in spec:
        found = resolve(spec)
        scorer = found(**own) if inspect.isclass(found) else found
        return scorer if hasattr(scorer, "usage") else PlainScorer(scorer)
    named = {"method": settings["method"]} if "method" in settings else {}
    return load_scorer(spec, settings.get("engine", "transformers"), settings.get("engine_options"), **named, **own)


def _fitting(made: type, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    known = [p.name for p in inspect.signature(made).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if wrong := [key for key in settings or {} if key not in known]:
        raise InputError(f"unknown setting {wrong[0]!r}; there are {', '.join(known)}")
    return dict(settings or {})


class PlainScorer:
    """A user's function as a scorer. It gets the samples and gives Scores, numbers or None."""

    def __init__(self, function: Any):
        self.function, self.usage = function, Usage()

    def __call__(self, samples: Sequence[Sample]) -> list[Score]:
        return [value if isinstance(value, Score) else Score(value) for value in self.function(samples)]


def check_columns(rewards: Sequence[Reward], problems: Sequence[Problem]) -> list[str]:
    """Looks for what scorers read of a problem, the names in their attribute `columns`. Raises InputError for a column that no problem
    has; returns a line for each that only some have."""
    lines = []
    for reward in rewards:
        for column in getattr(reward.scorer, "columns", ()):
            having = sum(problem.answer is not None if column == "answer" else column in problem.meta for problem in problems)
            if not having:
                raise InputError(f"reward {reward.name} needs the column {column!r}, which no problem has; add it, or take another reward")
            if having < len(problems):
                lines.append(f"reward {reward.name}: {len(problems) - having:,} of {len(problems):,} problems have no {column!r}")
    return lines


def try_rewards(rewards: Sequence[Reward], samples: Sequence[Sample]) -> list[str]:
    """Asks every scorer once, before anything is trained; several samples tell one that does not score each of them. Raises InputError for
    one that fails; returns a line for each that gave no score, which may be right for these samples."""
    from .adapter import RewardFunction

    lines = []
    for reward in rewards:
        try:
            scores = RewardFunction(reward.scorer, reward.name, reward.timeout)._call(list(samples))
            values = [score.value for score in scores]
        except Exception as error:
            raise InputError(f"reward {reward.name} fails on a first try: {type(error).__name__}: {error}") from error
        if len(scores) != len(samples):
            given = f"{len(scores)} score{'' if len(scores) == 1 else 's'} for {len(samples)} samples"
            raise InputError(f"reward {reward.name}: the scorer gave {given}; it must give one for each, in order")
        for value in values:
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value)):
                raise InputError(f"reward {reward.name}: the score must be a finite number or None, got {value!r}")
        if all(value is None for value in values):
            lines.append(f"reward {reward.name} gave no score on a first try ({scores[0].error or 'no reason given'})")
    return lines
