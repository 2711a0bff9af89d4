"""A scorer as a reward in other people's training, as each of them calls one. A few lines each; nothing of theirs is imported.

TRL, in Python (`trl_reward` for one that the trainer calls and waits for, `async_trl_reward` for one that runs beside other async rewards):

    trainer = GRPOTrainer(model, reward_funcs=[trl_reward("runs/reward"), accuracy], ...)

verl, in a file of your own (`custom_reward_function.path=reward.py`, name `compute_score`); the question and the pictures travel in the
column extra_info, because verl hands over nothing else:

    from vlrm.rm.adapters import verl_reward
    compute_score = verl_reward("http://host:port/v1", method="gm_prm")

EasyR1, in a file of your own (`worker.reward.reward_function=reward.py:compute_score`); the column that becomes ground_truth holds a JSON
object {"question": ..., "images": [...], "answer": ...}:

    from vlrm.rm.adapters import easyr1_reward
    compute_score = easyr1_reward("runs/reward")

ms-swift, in a plugin (`--external_plugins plugin.py --reward_funcs vlrm`):

    from swift.rewards import orms      # swift.plugin in older versions
    from vlrm.rm.adapters import swift_reward
    orms["vlrm"] = swift_reward("runs/reward")

A scorer is a folder, a URL or "vllm:PATH", loaded once when it is first needed, so that rewards pickle; or a scorer object. What could
not be scored is None for TRL and ms-swift, which leave it out; verl and EasyR1 want a number and get `missing`, with "scored" 0 beside it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from ..types import InputError, Problem, Sample, Scorer
from .preferences import chat_problem
from .scoring import score_or_reason


class Reward:
    """A scorer that is loaded when it is first asked, in whatever process that is; one call at a time."""

    def __init__(self, scorer: Any, name: str | None = None, engine: Any = "transformers", **options: Any):
        self.scorer, self.engine, self.options = scorer, engine, options
        self.__name__ = name or f"vlrm_{hashlib.blake2b(repr(scorer).encode(), digest_size=3).hexdigest()}"
        self._loaded: Scorer | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_loaded", "_lock")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state, _loaded=None, _lock=threading.Lock())

    def values(self, problems: Sequence[Problem], solutions: Sequence[str]) -> list[float | None]:
        """One value for each solution, in order; None where there is none."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            samples = [Sample(problem, solution) for problem, solution in zip(problems, solutions, strict=True)]
            return [score.value for score in score_or_reason(self._loaded, samples)]

    def _load(self) -> Scorer:
        if callable(self.scorer):
            return self.scorer
        from .load import load_scorer

        return load_scorer(self.scorer, self.engine, **self.options)


class TRLReward(Reward):
    """Called by GRPOTrainer with keywords: prompts, completions and the data set's columns, `images` or `image` among them."""

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        images = columns.get("images") or columns.get("image") or [None] * len(prompts)
        return self.values(_problems(prompts, images), [_said(completion) for completion in completions])


class AsyncTRLReward(TRLReward):
    """The same as a coroutine: TRL runs all async rewards of a batch together."""

    async def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        return await asyncio.to_thread(super().__call__, prompts, completions, **columns)


def trl_reward(scorer: Any, *, name: str | None = None, engine: Any = "transformers", **options: Any) -> TRLReward:
    """A reward function for TRL. `name` is how TRL logs it; `engine` and `options` go to `load_scorer`."""
    return TRLReward(scorer, name, engine, **options)


def async_trl_reward(scorer: Any, *, name: str | None = None, engine: Any = "transformers", **options: Any) -> AsyncTRLReward:
    """An async reward function for TRL, for scorers on a server above all."""
    return AsyncTRLReward(scorer, name, engine, **options)


def verl_reward(scorer: Any, *, missing: float = 0.0, engine: Any = "transformers", **options: Any) -> Any:
    """A `compute_score` for verl, for one solution or (the batch reward manager) for lists of them. Gives {"score", "scored"}."""
    reward = Reward(scorer, None, engine, **options)

    def compute_score(
        data_source: Any = None, solution_str: Any = None, ground_truth: Any = None, extra_info: Any = None, **batch: Any
    ) -> dict[str, float] | list[dict[str, float]]:
        if "solution_strs" in batch:
            return _numbers(reward, batch["extra_infos"], batch["solution_strs"], missing, "score")
        return _numbers(reward, [extra_info], [solution_str], missing, "score")[0]

    return compute_score


def easyr1_reward(scorer: Any, *, missing: float = 0.0, engine: Any = "transformers", **options: Any) -> Any:
    """A batch `compute_score` for EasyR1. Gives {"overall", "scored"} for each input."""
    reward = Reward(scorer, None, engine, **options)

    def compute_score(reward_inputs: Sequence[Mapping[str, Any]], **settings: Any) -> list[dict[str, float]]:
        packed = [item["ground_truth"] for item in reward_inputs]
        infos = [json.loads(item) if isinstance(item, str) else item for item in packed]
        return _numbers(reward, infos, [item["response"] for item in reward_inputs], missing, "overall")

    return compute_score


def swift_reward(scorer: Any, *, engine: Any = "transformers", **options: Any) -> type:
    """A class for ms-swift's `orms`: made without arguments or with the trainer's, called with completions and the rows' columns."""

    class VLRMReward(Reward):
        def __init__(self, args: Any = None, **kwargs: Any):
            super().__init__(scorer, "vlrm", engine, **options)

        def __call__(self, completions: Sequence[Any], **columns: Any) -> list[float | None]:
            messages = [_before_answer(row) for row in columns["messages"]]
            images = columns.get("images") or [None] * len(completions)
            return self.values(_problems(messages, images), [_said(completion) for completion in completions])

    return VLRMReward


def _numbers(
    reward: Reward, infos: Sequence[Mapping[str, Any] | None], solutions: Sequence[str], missing: float, name: str
) -> list[dict[str, float]]:
    for info in infos:
        if not isinstance(info, Mapping) or not ({"question", "prompt"} & info.keys()):
            raise InputError('the reward needs the question and the pictures: pack {"question": ..., "images": [...]} into each row')
    prompts = [info.get("prompt") or info["question"] for info in infos]  # type: ignore[union-attr]
    problems = _problems(prompts, [info.get("images") for info in infos])  # type: ignore[union-attr]
    values = reward.values(problems, solutions)
    return [{name: missing if value is None else value, "scored": float(value is not None)} for value in values]


def _problems(prompts: Sequence[Any], images: Sequence[Any]) -> list[Problem]:
    """Equal prompts with equal pictures become equal problems, so that a scorer can tell which answers belong together."""
    known: dict[str, Any] = {}
    problems = []
    for prompt, own in zip(prompts, images, strict=True):
        own = [] if own is None else list(own) if isinstance(own, (list, tuple)) else [own]
        pictures = []
        for picture in own or _inside(prompt):
            picture = picture.get("bytes") or picture.get("path") if isinstance(picture, Mapping) else picture
            digest = _digest(picture)
            pictures.append((digest, known.setdefault(digest, picture)))
        problem = chat_problem(prompt, [picture for _, picture in pictures])
        text = json.dumps([problem.question, repr(problem.meta.get("messages")), [digest for digest, _ in pictures]])
        name = hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()
        problems.append(Problem(name, problem.question, problem.images, meta=problem.meta))
    return problems


def _inside(prompt: Any) -> list[Any]:
    """The pictures that stand in a prompt's own parts."""
    if isinstance(prompt, str):
        return []
    parts = [part for message in prompt if not isinstance(message["content"], str) for part in message["content"]]
    return [part["image"] for part in parts if part.get("type") == "image" and part.get("image") is not None]


def _digest(picture: Any) -> str:
    if isinstance(picture, str):
        return picture
    content = picture if isinstance(picture, bytes) else repr((picture.size, picture.mode)).encode() + picture.tobytes()
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def _said(completion: Any) -> str:
    """A completion's text: it is one, or messages that end with the assistant's."""
    if isinstance(completion, str):
        return completion
    content = completion[-1]["content"] if completion else ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content or ())


def _before_answer(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list(messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages)
