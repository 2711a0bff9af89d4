"""Callbacks of the trainer: the alarm, which reads the trainer's own log, so a resumed run knows what was before; and one line a log."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..rm.rows import append_jsonl
from .alarm import Alarm, evaluations


class AlarmCallback(TrainerCallback):
    """After every held-out evaluation of `n` samples: a line on stderr and in metrics.jsonl where the alarm has something to say."""

    def __init__(self, metrics: Path, alarm: Alarm, n: int):
        self.metrics, self.alarm, self.n = metrics, alarm, n

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or "eval_gold" not in (logs or {}):
            return
        if message := self.alarm.message(evaluations(state.log_history, self.n)):
            print(f"vlrm: alarm: {message}", file=sys.stderr, flush=True)
            append_jsonl(self.metrics, [{"step": state.global_step, "alarm": message}])


class Lines(TrainerCallback):
    """One short line for each log, in place of the trainer's bar and its printed dictionaries."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.started, self.first = time.perf_counter(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logs = logs or {}
        kind = "eval_" if "eval_reward" in logs else ""
        if not state.is_world_process_zero or f"{kind}reward" not in logs:
            return
        shown = {name: logs.get(kind + name) for name in ("reward", "gold", "entropy", "completions/mean_length")}
        parts = [f"{name.rpartition('/')[2].replace('_', ' ')} {value:.3f}" for name, value in shown.items() if value is not None]
        done = state.global_step - self.first
        left = (state.max_steps - state.global_step) * (time.perf_counter() - self.started) / done if done else None
        ahead = f", {left / 60:.0f} min left" if left and not kind else ""
        print(f"step {state.global_step}/{state.max_steps}{' held out' if kind else ''}: {', '.join(parts)}{ahead}", flush=True)
