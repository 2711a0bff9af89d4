"""GRPO for real on a tiny random policy: what we rely on in TRL, equality with TRL's own trainer, interruptions, the folder, the page."""

from __future__ import annotations

import hashlib
import inspect
import json
import math

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from vlrm import cli, load_engine
from vlrm.commands.train import TrainGRPO, train_arguments, train_settings
from vlrm.config import parse
from vlrm.data_synth import make_problems
from vlrm.policy.grpo import FORWARD, RewardTrainer
from vlrm.policy.grpo_data import rows, shrunk, side_by_side
from vlrm.policy.grpo_train import Recipe, train_grpo
from vlrm.policy.rewards import Reward, Rules
from vlrm.policy.shapers.batch import per_token
from vlrm.policy.tiny import build_tiny
from vlrm.prm.steps import split_steps
from vlrm.serving.engine import Request
from vlrm.serving.tokens import TokenBytes
from vlrm.types import InputError, Problem, Score, Usage

torch.set_num_threads(1)
QUICK = {
    "batch_size": 8,
    "gradient_accumulation": 1,
    "group_size": 4,
    "max_tokens": 12,
    "bf16": False,
    "learning_rate": 2e-3,
    "progress": False,
}
QUICK |= {"schedule": "constant", "warmup": 0, "weight_decay": 0.0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(build_tiny(tmp_path_factory.mktemp("tiny"), hidden=64, layers=2, vision_hidden=32, vision_layers=1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems")
    make_problems(["grid", "bars"], "train", 12, 0, folder)
    return folder


@pytest.fixture(scope="module")
def problems(folder):
    from vlrm.rm.problems import read_problems

    return read_problems(folder / "problems.jsonl")


def value(text):
    """A number in [0, 1] that hangs on every letter."""
    return hashlib.blake2b(text.encode(), digest_size=1).digest()[0] / 255


class Letters:
    """A scorer with steps for any text; `fails_at` is the call at which it dies as a killed process does."""

    def __init__(self, fails_at=None, unscored=lambda text: False):
        self.calls, self.fails_at, self.unscored, self.usage = 0, fails_at, unscored, Usage()

    def __call__(self, samples):
        self.calls += 1
        if self.calls == self.fails_at:
            raise KeyboardInterrupt
        return [self.score(sample.solution) for sample in samples]

    def score(self, text):
        if self.unscored(text):
            return Score(None, error="not read")
        return Score(value(text), tuple(value(step.text) for step in split_steps(text)))


def config(folder, **more):
    settings = {
        "output_dir": str(folder), "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 12, "max_steps": 4,
        "num_iterations": 2, "learning_rate": 2e-3, "bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": [],
        "logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "seed": 3, **more,
    }  # fmt: skip
    return GRPOConfig(**settings)


def plain_run(tiny, problems, folder, trainer=GRPOTrainer, **more):
    """The trainer after four steps, each completion used twice; its rewards are the same numbers whichever class it is."""
    processor = AutoProcessor.from_pretrained(tiny)
    pieces = TokenBytes(processor.tokenizer)
    own = {"reward_funcs": [lambda completion_ids, **_: [value(pieces.decode(ids)[0]) for ids in completion_ids]]}
    function = own if trainer is GRPOTrainer else {}
    settings = {name: more.pop(name) for name in ("loss_type", "beta", "max_steps") if name in more}
    made = trainer(
        model=AutoModelForImageTextToText.from_pretrained(tiny, dtype="float32"),
        args=config(folder, **settings),
        train_dataset=rows(problems),
        processing_class=processor,
        **function,
        **more,
    )
    made.remove_callback(PrinterCallback)
    made.train()
    return made


def curve(trainer, name="loss"):
    return [log[name] for log in trainer.state.log_history if name in log]


# What we rely on in TRL


def test_the_two_private_methods_have_the_signatures_that_we_wrap():
    assert list(inspect.signature(GRPOTrainer._calculate_rewards).parameters) == [
        "self",
        "inputs",
        "prompts",
        "completions",
        "completion_ids_list",
    ]
    assert list(inspect.signature(GRPOTrainer._generate_and_score_completions).parameters) == ["self", "inputs"]
    assert list(inspect.signature(GRPOTrainer._log_metric).parameters) == ["self", "name", "value"]
    taken = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert taken[:5] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert set(taken) >= {"batch_size", *FORWARD}
    assert [name for name in vars(RewardTrainer) if name.startswith("_") and name in dir(GRPOTrainer) and not name.startswith("__")] == [
        "_calculate_rewards", "_generate_and_score_completions",
    ]  # fmt: skip


def test_neutral_shapers_give_the_curve_of_plain_trl(tiny, problems, tmp_path):
    """To 1e-6, with advantages (B,) and with advantages (B, T); and what TRL hands on is what we read."""
    seen = []

    def neutral(advantages, batch):
        seen.append((advantages, batch))
        return per_token(advantages, batch.mask_BT)

    rewards = [Reward("letters", Letters())]
    plain = plain_run(tiny, problems, tmp_path / "plain")
    ours = plain_run(tiny, problems, tmp_path / "ours", RewardTrainer, rewards=rewards)
    by_token = plain_run(tiny, problems, tmp_path / "token", RewardTrainer, rewards=rewards, shapers=[("neutral", neutral)])
    assert len(curve(plain)) == 4 and max(map(abs, curve(plain))) > 1e-4
    for other in (ours, by_token):
        assert curve(other) == pytest.approx(curve(plain), abs=1e-6)
        assert curve(other, "reward") == pytest.approx(curve(plain, "reward"), abs=1e-6)
        for (name, one), two in zip(plain.model.named_parameters(), other.model.parameters(), strict=True):
            assert torch.allclose(one, two, atol=1e-6), name
    assert len(seen) == 2  # one generation for two optimizer steps
    advantages, batch = seen[0]
    assert advantages.shape == (8,) and batch.mask_BT.shape[0] == 8 and batch.group_size == 4
    assert [len(own) for own in batch.spans] == batch.mask_BT.sum(1).tolist()
    for sample, own in zip(batch.samples, batch.spans, strict=True):
        assert sample.problem in problems and own[-1][1] == len(sample.solution)
    assert batch.logps(None).shape == batch.mask_BT.shape


def test_what_trl_returns_holds_the_keys_that_we_read(tiny, problems, tmp_path, monkeypatch):
    outputs, usual = [], RewardTrainer._generate_and_score_completions

    def watched(self, inputs):
        outputs.append(usual(self, inputs))
        return outputs[-1]

    monkeypatch.setattr(RewardTrainer, "_generate_and_score_completions", watched)
    shapers = [
        ("half", lambda advantages, batch: advantages * 0.5),
        ("vppo", __import__("vlrm.policy.shapers.vppo", fromlist=["vppo"]).vppo),
    ]
    trainer = plain_run(tiny, problems, tmp_path, RewardTrainer, rewards=[Reward("letters", Letters())], shapers=shapers, max_steps=1)
    keys = {
        "prompt_ids",
        "prompt_mask",
        "completion_ids",
        "completion_mask",
        "advantages",
        "num_items_in_batch",
        "pixel_values",
        "num_images",
    }
    assert set(outputs[0]) >= keys and outputs[0]["advantages"].shape == outputs[0]["completion_ids"].shape
    kept = (outputs[0]["advantages"] != 0).sum(1)
    assert (kept <= torch.ceil(0.4 * outputs[0]["completion_mask"].sum(1))).all() and kept.sum() > 0
    assert curve(trainer, "vppo/dependency")[0] > 0 and curve(trainer, "shaper/mean_size")[0] > 0
    with pytest.raises(ValueError, match="the shaper wrong must give advantages of the shape"):
        plain_run(
            tiny, problems, tmp_path, RewardTrainer, rewards=[Reward("l", Letters())], shapers=[("wrong", lambda a, b: a[:3])], max_steps=1
        )


# Rewards in the run


def test_unscored_completions_are_left_out_and_rules_hold(tiny, problems, tmp_path, capsys):
    unscored = Letters(unscored=lambda text: value(text) < 0.4)
    rewards = [Reward("prm", unscored, Rules(weight=[[0, 1.0], [1, 3.0]], cap=0.8, gate="gate", gate_at=0.3, closed=None))]
    rewards.append(Reward("gate", Letters(), Rules(weight=0.0)))
    seen = []
    trainer = plain_run(
        tiny, problems, tmp_path, RewardTrainer, rewards=rewards[:1] + rewards[1:], blind_every=1, blind_samples=3,
        shapers=[("watch", lambda advantages, batch: seen.append((advantages, batch)) or advantages)],
    )  # fmt: skip
    advantages, batch = seen[0]
    none = torch.tensor([score.value is None for score in batch.scores["prm"]])
    assert 0 < none.sum() < 8 and "not read" in capsys.readouterr().err
    assert curve(trainer, "none/prm")[0] == pytest.approx(none.float().mean().item()) and curve(trainer, "none/gate")[0] == 0
    assert max(curve(trainer, "rewards/prm/mean")) <= 0.8 + 1e-6
    assert trainer.reward_weights.tolist() == pytest.approx([2.0, 0.0])  # half of the run is done at the second generation
    for name in ("zero_variance/prm", "repeated_ngrams", "empty", "blind/prm", "blind_gap/prm"):
        assert curve(trainer, name), name
    assert advantages.shape == (8,)


def test_a_completion_that_nothing_could_score_has_no_advantage(tiny, problems, tmp_path):
    seen = []
    plain_run(
        tiny, problems, tmp_path, RewardTrainer, rewards=[Reward("prm", Letters(unscored=lambda text: value(text) < 0.5))], max_steps=2,
        shapers=[("watch", lambda advantages, batch: seen.append((advantages, batch)) or advantages)],
    )  # fmt: skip
    for advantages, batch in seen:
        values = [score.value for score in batch.scores["prm"]]
        assert None in values
        for start in (0, 4):
            group = [v for v in values[start : start + 4] if v is not None]
            for i in range(start, start + 4):
                expected = 0.0
                if values[i] is not None and len(group) > 1:
                    mean = sum(group) / len(group)
                    expected = (values[i] - mean) / (math.sqrt(sum((v - mean) ** 2 for v in group) / (len(group) - 1)) + 1e-4)
                if values[i] is None or len(group) > 1:
                    assert advantages[i].item() == pytest.approx(expected, abs=1e-4)


# The library function, interruptions, the folder


@pytest.fixture(scope="module")
def whole(tiny, problems, tmp_path_factory):
    """A finished run of six steps with evaluations every two."""
    folder = tmp_path_factory.mktemp("whole")
    summary = train_grpo(
        tiny, problems[:8], folder, rewards={"letters": Letters()}, eval_problems=problems[8:], max_steps=6, eval_steps=2,
        shapers={"step_advantage": {}}, keep_checkpoints=True, **QUICK,
    )  # fmt: skip
    return folder, summary


def log_of(folder):
    times = ("runtime", "per_second", "step_time")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: v for name, v in line.items() if not any(word in name for word in times)} for line in lines if "train_loss" not in line]


def test_a_finished_run_is_a_model_with_its_card(whole, tiny, problems, folder):
    path, summary = whole
    assert summary["steps"] == 6 and summary["kept_step"] in (2, 4, 6) and summary["counts"]["eval problems"] == 4
    best = [line["eval_gold"] for line in log_of(path) if "eval_gold" in line]
    assert len(best) == 4 and summary["best"]["eval_gold"] == max(best[1:])
    assert json.loads((path / "policy.json").read_text())["training"] == summary and not (path / "vlrm.json").exists()
    engine = load_engine(str(path), device="cpu")
    (answer,) = engine.generate([Request([{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], max_tokens=4)])
    assert answer[0].completion_tokens >= 1
    before, after = (AutoModelForImageTextToText.from_pretrained(p, dtype="float32").state_dict() for p in (tiny, path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and not any("vision_model" in name for name in changed)
    again = train_grpo(
        tiny, problems[:8], path, rewards={"letters": Letters(fails_at=1)}, eval_problems=problems[8:], max_steps=6, eval_steps=2,
        shapers={"step_advantage": {}}, **QUICK,
    )  # fmt: skip
    assert again == summary
    with pytest.raises(InputError, match="max_steps 6, not 7"):
        train_grpo(
            tiny, problems[:8], path, rewards={"letters": Letters()}, eval_problems=problems[8:], max_steps=7, eval_steps=2,
            shapers={"step_advantage": {}}, **QUICK,
        )  # fmt: skip


def test_a_killed_run_resumes_to_the_same_curve(whole, tiny, problems, tmp_path):
    # A try, the first evaluation, step 1 and its blind scores, step 2, an evaluation, step 3; killed while step 4 is being scored.
    def run(fails_at):
        return train_grpo(
            tiny, problems[:8], tmp_path, rewards={"letters": Letters(fails_at)}, eval_problems=problems[8:], max_steps=6, eval_steps=2,
            shapers={"step_advantage": {}}, keep_checkpoints=True, **QUICK,
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run(8)
    assert not (tmp_path / "policy.json").exists() and max(line["step"] for line in log_of(tmp_path)) == 3
    summary = run(None)
    assert summary["resumed_from"] == 2 and summary["kept_step"] == whole[1]["kept_step"]
    expected, found = log_of(whole[0]), log_of(tmp_path)
    assert [line["step"] for line in found] == [line["step"] for line in expected] == [0, 1, 2, 2, 3, 4, 4, 5, 6, 6]
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, abs=1e-6), one["step"]
    one, two = (AutoModelForImageTextToText.from_pretrained(p, dtype="float32").state_dict() for p in (whole[0], tmp_path))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_the_page_is_drawn_from_the_log(whole, tmp_path, capsys):
    path, _ = whole
    assert cli.main(["report", "--run", str(path), "--output", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    for text in ("No alarm.", "gold accuracy, held out", "reward against length", "groups that teach nothing", "recipe"):
        assert text in page
    assert page.count("<img") >= 8 and "http" not in page.replace("https://", "http://").split("recipe")[0]
    running = tmp_path / "running"
    running.mkdir()
    alarm = json.dumps({"step": 2, "alarm": "step 2: the reward rose"})
    (running / "metrics.jsonl").write_text((path / "metrics.jsonl").read_text() + alarm + '\n{"step": 7, "rew')
    assert cli.main(["report", str(running)]) == 0
    page = (running / "report.html").read_text()
    assert "Alarm, step 2: the reward rose" in page and "not finished" in page
    assert cli.main(["report", "--run", str(tmp_path)]) == 2 and "has no metrics.jsonl" in capsys.readouterr().err


def test_the_alarm_is_raised_and_kept(tiny, problems, tmp_path, capsys, monkeypatch):
    golds = iter([0.9, 0.9, 0.5, 0.5, 0.1, 0.1])
    from vlrm.policy import grpo_train

    class Rising(Letters):
        def score(self, text):
            return Score(min(1.0, self.calls / 10))

    monkeypatch.setattr(grpo_train, "load_checker", lambda spec: lambda solution, problem: next(golds, 0.1) > 0.5)
    summary = train_grpo(
        tiny, problems[:4], tmp_path, rewards={"rising": Rising()}, eval_problems=problems[8:10], max_steps=1, eval_steps=1, **QUICK
    )
    assert len(summary["alarms"]) == 1 and "the reward rose from" in summary["alarms"][0]
    assert "vlrm: alarm: step 1" in capsys.readouterr().err


def test_lora_on_the_command_line(tiny, folder, tmp_path, capsys):
    settings = "--max_steps 1 --group_size 2 --batch_size 4 --gradient_accumulation 1 --max_tokens 6 --bf16 false --lora --progress false"
    command = [
        "train",
        "--method",
        "grpo",
        "--model",
        tiny,
        "--data",
        str(folder / "problems.jsonl"),
        "--output_dir",
        str(tmp_path / "out"),
    ]
    command += [*settings.split(), "--rewards", '{"answer": 1, "format": {"weight": 0.1}}', "--grpo", '{"loss_type": "dr_grpo"}']
    assert cli.main(command) == 2 and "loss_type has a key of its own" in capsys.readouterr().err
    command[-1] = '{"entropy_coef": 0.01}'
    assert cli.main(command) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "adapter_config.json").is_file() and (tmp_path / "out" / "policy.json").is_file()
    assert load_engine(str(tmp_path / "out"), device="cpu").name == load_engine(tiny, adapter=str(tmp_path / "out"), device="cpu").name


def test_settings_that_cannot_work_are_refused_before_anything_is_loaded(tiny, problems, tmp_path):
    def refused(message, **more):
        arguments = {"rewards": {"answer": 1}, **QUICK, **more}
        with pytest.raises(InputError, match=message):
            train_grpo(tiny, more.pop("problems", problems), tmp_path / "out", **{k: v for k, v in arguments.items() if k != "problems"})
        assert not (tmp_path / "out").exists()

    refused("must be a multiple of group_size", group_size=3)
    refused("group_size must be at least 2", group_size=1)
    refused("scale_rewards must be one of", scale_rewards="all")
    refused("did you mean 'max_tokens'", max_token=3)
    refused("unknown shaper", shapers={"x": {}})
    refused("step_advantage asks for the reward 'prm'; there are answer", shapers={"step_advantage": {"reward": "prm"}})
    refused("gave 1 score for 2 samples", rewards={"letters": lambda samples: [Score(1.0)]})
    refused("rewards is empty", rewards={})
    refused("no such folder", rewards={"prm": "no/where"})
    refused("reward letters fails on a first try", rewards={"letters": lambda samples: 1 / 0})
    refused("there are no problems", problems=[])
    refused("cut 2 iterations apart", iterations=2, save_steps=3)


def test_the_command_offers_what_the_function_takes(folder):
    said = ["--method", "grpo", "--model", "m", "--data", str(folder / "problems.jsonl"), "--output_dir", "o", "--rewards", '{"answer": 1}']
    assert train_settings(said) is TrainGRPO
    arguments = train_arguments(parse(TrainGRPO, said))
    taken = {p for p in inspect.signature(train_grpo).parameters if p != "recipe"} | set(Recipe.__dataclass_fields__)
    assert set(arguments) <= taken and len(arguments["problems"]) == 12
    assert set(Recipe.__dataclass_fields__) <= set(arguments)
    for name, item in Recipe.__dataclass_fields__.items():
        if isinstance(item.default, (int, float, str)):
            assert arguments[name] == item.default, name
    with pytest.raises(InputError, match="scorer_settings is not for"):
        train_arguments(parse(TrainGRPO, [*said, "--scorer_settings", '{"a": 1}']))


def test_problems_are_kept_side_by_side_and_pictures_made_smaller():
    from PIL import Image

    items = [Problem(f"{i}{kind}", "q", [], "7", {"item": str(i), "kind": kind}) for kind in ("probe", "solve") for i in range(6)]
    order = side_by_side(items, "item", 4, 0)
    assert sorted(p.id for p in order) == sorted(p.id for p in items) and [p.id for p in order] != [p.id for p in items]
    assert all(a.meta["item"] == b.meta["item"] for a, b in zip(order[::2], order[1::2], strict=True))
    assert side_by_side(items, "item", 4, 1) != order
    for wrong, message in ((3, "multiple of that"), (4, "no column other")):
        with pytest.raises(InputError, match=message):
            side_by_side(items, "item" if wrong == 3 else "other", wrong, 0)
    assert shrunk(Image.new("RGB", (200, 100)), 5000).size == (100, 50) and shrunk(Image.new("RGB", (20, 10)), 5000).size == (20, 10)
