"""Rewards for others' training, called exactly as TRL, verl, EasyR1 and ms-swift call one."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import pickle
from functools import partial
from typing import ClassVar

import pytest
from PIL import Image

from vlrm import InputError, Problem, Sample, Score, Usage
from vlrm.rm import load
from vlrm.rm.adapters import AsyncTRLReward, TRLReward, async_trl_reward, swift_reward, trl_reward

RED = Image.new("RGB", (4, 4), "red")


class Length:
    """A scorer: the length of the solution; "bad" ones have no score, "huge" ones are refused. Keeps what it was shown."""

    shown: ClassVar[list] = []

    def __init__(self):
        self.usage = Usage()

    def __call__(self, samples):
        if any("huge" in sample.solution for sample in samples):
            raise InputError("too long")
        Length.shown += samples
        return [Score(None if "bad" in sample.solution else float(len(sample.solution))) for sample in samples]


@pytest.fixture(autouse=True)
def loads(monkeypatch):
    """`load_scorer` of any folder gives a Length; the list says what was loaded."""
    seen = []
    Length.shown.clear()
    monkeypatch.setattr(
        load, "load_scorer", lambda spec, engine="transformers", **options: seen.append((spec, engine, options)) or Length()
    )
    return seen


def trl_columns():
    """What GRPOTrainer hands over (notes of its `_calculate_rewards`): everything by keyword, one entry for each completion."""
    block = [{"type": "image", "image": RED}, {"type": "text", "text": "Color?"}]
    return {
        "prompts": [[{"role": "user", "content": block}]] * 4,
        "completions": [[{"role": "assistant", "content": text}] for text in ("red", "bad", "huge", "crimson")],
        "completion_ids": [[1], [2], [3], [4]],
        "images": [[RED.copy()] for _ in range(4)],
        "answer": ["red"] * 4,
        "trainer_state": object(),
        "log_extra": lambda column, values: None,
        "log_metric": lambda name, value: None,
    }


def test_trl_gets_none_for_what_has_no_score(loads):
    reward = trl_reward("runs/reward", name="beauty", method="judge")
    assert reward(**trl_columns()) == [3.0, None, None, 7.0] and reward.__name__ == "beauty"
    assert loads == [("runs/reward", "transformers", {"method": "judge"})]
    problems = [sample.problem for sample in Length.shown]
    assert all(problem == problems[0] and problem.question == "Color?" and len(problem.images) == 1 for problem in problems)
    assert len({problem.id for problem in problems}) == 1 and problems[0].images[0] is problems[-1].images[0], "a group is told as one"


def test_trl_rewards_pickle_and_have_names_of_their_own(loads):
    first, second = trl_reward("runs/a"), trl_reward("runs/b")
    assert first.__name__ != second.__name__
    assert first(**trl_columns())[0] == 3.0
    again = pickle.loads(pickle.dumps(first))
    assert isinstance(again, TRLReward) and again.__name__ == first.__name__ and again(**trl_columns())[3] == 7.0
    assert len(loads) == 2, "loaded once in each process"
    columns = {"prompts": ["Color?"], "completions": ["red"], "image": [RED]}
    assert trl_reward(Length())(**columns) == [3.0] and Length.shown[-1].problem.images == [RED]


def test_trl_takes_the_coroutine_for_one(loads):
    from trl.trainer.utils import get_callable_name, is_async_callable

    reward = async_trl_reward("http://host/v1", name="far")
    assert is_async_callable(reward) and not is_async_callable(trl_reward("x")) and isinstance(reward, AsyncTRLReward)
    assert get_callable_name(reward) == "far"

    async def both():
        return await asyncio.gather(reward(**trl_columns()), reward(**trl_columns()))

    assert asyncio.run(both()) == [[3.0, None, None, 7.0]] * 2 and len(loads) == 1


def test_grpo_trainer_itself_calls_the_reward(tiny_path, tmp_path):
    """One real step of TRL's GRPOTrainer with both kinds of rewards."""
    from datasets import Dataset
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import GRPOConfig, GRPOTrainer

    rows = [{"prompt": [{"role": "user", "content": "Color?"}], "images": [RED.resize((96, 96))]} for _ in range(2)]
    options = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False, "report_to": [], "disable_tqdm": True}
    options |= {"max_steps": 1, "num_generations": 2, "per_device_train_batch_size": 2, "max_completion_length": 4, "logging_steps": 1}
    trainer = GRPOTrainer(
        AutoModelForImageTextToText.from_pretrained(tiny_path),
        reward_funcs=[trl_reward(Length(), name="one"), async_trl_reward(Length(), name="two")],
        args=GRPOConfig(str(tmp_path), **options),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoProcessor.from_pretrained(tiny_path),
    )  # fmt: skip
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/one/mean"] == logged["rewards/two/mean"] and len(Length.shown) == 4
    assert all(isinstance(s, Sample) and s.problem.question == "Color?" and len(s.problem.images) == 1 for s in Length.shown)


def loaded_from_file(path, source, name="compute_score"):
    """A user's file, loaded by path as verl and EasyR1 do."""
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("custom_module", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


def test_verl_calls_a_function_of_a_file(tmp_path):
    source = "from vlrm.rm.adapters import verl_reward\ncompute_score = verl_reward('runs/reward', missing=-1.0)\n"
    compute = partial(loaded_from_file(tmp_path / "reward.py", source), **{"verbose": False})
    info = {"question": "<image>Color?", "images": ["red.png"]}
    one = compute(data_source="x", solution_str="red", ground_truth="red", extra_info=info)
    assert one == {"score": 3.0, "scored": 1.0}
    assert compute(data_source="x", solution_str="bad", ground_truth="red", extra_info=info) == {"score": -1.0, "scored": 0.0}
    batch = compute(data_sources=["x"] * 2, solution_strs=["red", "crimson"], ground_truths=["red"] * 2, extra_infos=[info] * 2)
    assert [row["score"] for row in batch] == [3.0, 7.0]
    assert Length.shown[0].problem.question == "Color?" and Length.shown[0].problem.images == ["red.png"]
    with pytest.raises(InputError, match="pack"):
        compute(data_source="x", solution_str="red", ground_truth="red", extra_info=None)


def test_easyr1_calls_a_function_of_a_file(tmp_path):
    source = "from vlrm.rm.adapters import easyr1_reward\ncompute_score = easyr1_reward('runs/reward')\n"
    compute = loaded_from_file(tmp_path / "reward.py", source)
    truth = json.dumps({"question": "Color?", "images": ["red.png"], "answer": "red"})
    inputs = [{"response": text, "response_length": 3, "ground_truth": truth} for text in ("red", "bad")]
    assert compute(inputs) == [{"overall": 3.0, "scored": 1.0}, {"overall": 0.0, "scored": 0.0}]


def test_ms_swift_makes_a_plugin_and_calls_it():
    orms = {}
    orms["vlrm"] = swift_reward("runs/reward")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "<image>Color?"}]
    rows = [[*messages, {"role": "assistant", "content": text}] for text in ("red", "bad")]
    columns = {"messages": rows, "images": [[{"bytes": None, "path": "red.png"}]] * 2, "solution": ["red"] * 2, "trainer_state": None}
    for made in (orms["vlrm"](), orms["vlrm"](args=object())):
        assert made(["red", "bad"], **columns) == [3.0, None]
    problem = Length.shown[0].problem
    assert isinstance(problem, Problem) and problem.question == "Color?" and problem.images == ["red.png"]
    assert problem.meta["messages"][0] == {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
