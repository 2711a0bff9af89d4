"""Scalar reward heads on a tiny random model: the columns, the losses, what is learnt, the folder, interruptions, bad input."""

from __future__ import annotations

import json
import math

import pytest
import torch
from PIL import Image, ImageDraw

from vlrm import InputError, Problem, Sample, cli, load_scorer
from vlrm.policy.tiny import build_tiny
from vlrm.rm.preferences import Preference, Rating, preference_from_row, read_preferences, read_ratings
from vlrm.rm.scalar import ScalarRM
from vlrm.rm.scores import bradley_terry, regression
from vlrm.rm.train_scalar import spread, train_bradley_terry, train_regression

torch.set_num_threads(1)
COLORS = ("red", "green", "blue")
QUICK = {"batch_size": 4, "workers": 0, "progress": False, "bf16": False, "attention": "eager", "warmup": 0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return str(build_tiny(tmp_path_factory.mktemp("tiny"), hidden=64, layers=2, vision_hidden=32, vision_layers=1))


def picture(color):
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).rectangle((8, 8, 88, 88), fill=color)
    return image


PICTURES = {color: picture(color) for color in COLORS}


def preference(number):
    color = COLORS[number % 3]
    return Preference(Problem(f"p{number}", f"Color {number}?", [PICTURES[color]]), f"It is {color}, yes.", f"It is {color}, no, no.")


PAIRS = [preference(i) for i in range(24)]


TWO = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Same?"}]}]


# The columns


def test_rows_of_other_trainers_are_read(tmp_path):
    PICTURES["red"].save(tmp_path / "red.png")
    user = {"role": "user", "content": "<image>\nColor?"}
    said = [{"role": "assistant", "content": "It is red."}]
    plain = {"prompt": "Color?", "chosen": "It is red.", "rejected": "It is blue.", "images": ["red.png"], "margin": 0.5}
    chat = {**plain, "prompt": [user], "chosen": said, "rejected": [{"role": "assistant", "content": "It is blue."}]}
    implicit = {**chat, "chosen": [user, *chat["chosen"]], "rejected": [user, *chat["rejected"]]}
    del implicit["prompt"]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(row) for row in (plain, chat, implicit)))
    items = read_preferences(tmp_path / "data.jsonl")
    assert [(i.chosen, i.rejected, i.margin, i.problem.question) for i in items] == [("It is red.", "It is blue.", 0.5, "Color?")] * 3
    assert all(item.problem.images == [str(tmp_path / "red.png")] for item in items)
    assert items[1].problem.meta["messages"][0]["content"] == [{"type": "image"}, {"type": "text", "text": "Color?"}]
    rated = {"question": "Color?", "completion": "It is red.", "label": 3, "image": "red.png"}
    (tmp_path / "rated.json").write_text(json.dumps([rated]))
    assert (read_ratings(tmp_path / "rated.json")[0].value, len(read_ratings(tmp_path / "rated.json"))) == (3.0, 1)


def test_data_sets_are_read_wherever_they_lie(tmp_path, monkeypatch):
    from datasets import Dataset, Features, List, Value
    from datasets import Image as ImageColumn

    features = Features(prompt=Value("string"), chosen=Value("string"), rejected=Value("string"), images=List(ImageColumn()))
    rows = [{"prompt": "Color?", "chosen": c, "rejected": "no", "images": [PICTURES[c]]} for c in COLORS]
    dataset = Dataset.from_list(rows, features=features)
    dataset.save_to_disk(tmp_path / "saved")
    (tmp_path / "folder").mkdir()
    dataset.to_parquet(tmp_path / "folder" / "train-0.parquet")
    for source in (dataset, {"train": dataset}, tmp_path / "saved", tmp_path / "folder", tmp_path / "folder" / "train-0.parquet"):
        items = read_preferences(source)
        assert [item.chosen for item in items] == list(COLORS), source
        assert all(isinstance(item.problem.images[0], bytes) for item in items)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="nobody/nothing is no folder here, and the hub does not give it"):
        read_preferences("nobody/nothing")
    with pytest.raises(InputError, match="does not exist"):
        read_preferences("./nothing")
    with pytest.raises(InputError, match="splits a, b"):
        read_preferences({"a": dataset, "b": dataset})


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "chosen": "a"}, "column rejected is missing"),
        ({"chosen": "a", "rejected": "b"}, "column prompt is missing"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "margin": "much"}, "margin must be a number"),
        ({"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"}, "must hold messages"),
        ({"prompt": "x", "chosen": [], "rejected": "b"}, "column chosen must be text or messages"),
        ({"prompt": "x", "chosen": "a", "rejected": "b", "images": [None]}, "empty entry"),
        ({"prompt": TWO, "chosen": "a", "rejected": "b", "images": ["a.png"]}, "2 image parts, but there are 1 images"),
    ],
)
def test_what_is_missing_is_said(row, message, tmp_path):
    with pytest.raises(InputError, match=message):
        preference_from_row(row, "r", tmp_path)


# The losses, worked out by hand


def test_the_losses_are_the_papers():
    scores, margins = torch.tensor([2.0, 0.0, 1.0, 0.0]), torch.tensor([0.0, 0.5])
    loss, figures = bradley_terry()(scores, {"margins": margins})
    by_hand = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.5))) / 2
    assert loss.item() == pytest.approx(by_hand, abs=1e-6) and figures["accuracy"].item() == 0.75
    centred, _ = bradley_terry(0.1)(scores, {"margins": margins})
    assert centred.item() == pytest.approx(by_hand + 0.1 * (9 + 0) / 2, abs=1e-6)
    loss, figures = regression()(torch.tensor([1.0, 3.0]), {"targets": torch.tensor([0.0, 1.0])})
    assert loss.item() == 2.5 and figures["absolute_error"].item() == 1.5
    loss, _ = regression("bce")(torch.tensor([0.0]), {"targets": torch.tensor([0.25])})
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    assert spread([1.0, 3.0, math.nan]) == (1.0, 2.0) and spread([2.0]) == (1.0, 2.0)


# What is learnt


def test_a_head_learns_which_answers_are_better(tiny, tmp_path):
    summary = train_bradley_terry(tiny, PAIRS, tmp_path, eval_preferences=PAIRS[:6], epochs=4, learning_rate=3e-3, save_steps=12, **QUICK)
    assert summary["metrics"]["loss"] < 0.2 and summary["metrics"]["eval_accuracy"] == 1, summary["metrics"]
    scorer = load_scorer(tmp_path, engine_options={"device": "cpu"})
    assert isinstance(scorer, ScalarRM)
    scores = scorer([Sample(p.problem, answer) for p in PAIRS[:6] for answer in (p.chosen, p.rejected)])
    assert all(good.value > bad.value for good, bad in zip(scores[::2], scores[1::2], strict=True))
    assert scorer.usage.calls == 12 and scores[0].details["tokens"] > 36
    blind = scorer([Sample(Problem("b", PAIRS[0].problem.question, [PICTURES["blue"]]), PAIRS[0].chosen)])[0]
    assert blind.value != scores[0].value, "the picture is read"
    (empty,) = scorer([Sample(PAIRS[0].problem, " ")])
    assert empty.value is None and "no text" in empty.error
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["Idefics3ForSequenceClassification"]
    card = (tmp_path / "README.md").read_text()
    assert "eval_accuracy" in card and "scalar head" in card


def test_scores_do_not_hang_on_the_batch(tiny, tmp_path):
    train_bradley_terry(tiny, PAIRS, tmp_path, max_steps=1, learning_rate=1e-3, **QUICK)
    scorer = load_scorer(tmp_path, engine_options={"device": "cpu"})
    samples = [Sample(PAIRS[0].problem, "It is red." * k) for k in (1, 9, 3)] + [Sample(Problem("t", "No picture?"), "So.")]
    together = [score.value for score in scorer(samples)]
    assert together == pytest.approx([scorer([sample])[0].value for sample in samples], abs=1e-4)
    assert len({round(value, 4) for value in together}) == 4


def test_regression_gives_ratings_in_their_own_units(tiny, tmp_path):
    ratings = [Rating(Problem(f"p{i}", "Color?", []), "Yes, it is." if i % 2 else "No, no, no.", 10.0 + 10 * (i % 2)) for i in range(12)]
    bad = [Rating(Problem("n", "Color?", []), "It is red.", math.nan), Rating(Problem("e", "Color?", []), "", 1.0)]
    summary = train_regression(tiny, [*ratings, *bad], tmp_path, epochs=12, learning_rate=3e-3, **QUICK)
    assert summary["counts"] == {"ratings": 12, "dropped: the score is not a finite number": 1, "dropped: an answer has no text": 1}
    scores = load_scorer(tmp_path, engine_options={"device": "cpu"})([Sample(r.problem, r.response) for r in ratings[:2]])
    assert [score.value for score in scores] == pytest.approx([10, 20], abs=2)


def test_lora_trains_the_head_too_and_leaves_a_whole_model(tiny, tmp_path):
    lora = {"r": 4, "lora_alpha": 8}
    train_bradley_terry(tiny, PAIRS, tmp_path, lora=lora, max_steps=3, learning_rate=1e-2, **QUICK)
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "adapter_config.json").exists()
    from safetensors import safe_open

    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.get_tensor("score.weight").shape == (1, 64) and not any("lora" in name for name in file.keys())  # noqa: SIM118
    (score,) = load_scorer(tmp_path, engine_options={"device": "cpu"})([Sample(PAIRS[0].problem, "It is red.")])
    assert score.value is not None


# Interruptions, bad input, the command


def test_an_interrupted_run_ends_as_if_nothing_had_happened(tiny, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from vlrm.rm import sft

    settings = {**QUICK, "save_steps": 2, "logging_steps": 1, "max_steps": 6, "learning_rate": 1e-3}
    train_bradley_terry(tiny, PAIRS, tmp_path / "whole", **settings)

    def killed(self, args, state, control, logs=None, **kwargs):
        if state.global_step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(sft.MetricsFile, "on_log", killed)
    with pytest.raises(KeyboardInterrupt):
        train_bradley_terry(tiny, PAIRS, tmp_path / "cut", **settings)
    monkeypatch.undo()
    summary = train_bradley_terry(tiny, PAIRS, tmp_path / "cut", **settings)
    assert summary["resumed_from"] == 4
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert train_bradley_terry(tiny, PAIRS, tmp_path / "cut", **settings) == summary
    with pytest.raises(InputError, match="another folder"):
        train_bradley_terry(tiny, PAIRS[1:], tmp_path / "cut", **settings)


def test_useless_pairs_are_counted_and_damaged_pictures_named(tiny, tmp_path):
    problem = Problem("x", "Color?", [])
    bad = [Preference(problem, "same", " same "), Preference(problem, "", "b"), Preference(problem, "a", "b", margin=math.inf)]
    summary = train_bradley_terry(tiny, PAIRS[:4] + bad, tmp_path / "a", max_steps=1, **QUICK)
    assert summary["counts"] == {
        "pairs": 4,
        "dropped: chosen and rejected are the same": 1,
        "dropped: an answer has no text": 1,
        "dropped: the margin is not a finite number": 1,
    }
    (tmp_path / "torn.png").write_bytes(b"\x89PNG not really")
    torn = Preference(Problem("t", "Color?", [str(tmp_path / "torn.png")]), "a", "b")
    with pytest.raises(InputError, match=r"torn\.png"):
        train_bradley_terry(tiny, [*PAIRS[:4], torn], tmp_path / "b", max_steps=1, **QUICK)
    assert not (tmp_path / "b").exists(), "nothing is half-written"


def test_the_command_takes_both_methods(tiny, tmp_path, capsys):
    rows = [{"prompt": "Color?", "chosen": f"good {i}", "rejected": f"bad {i}", "response": f"good {i}", "score": i} for i in range(4)]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    common = ["--model", tiny, "--data", str(tmp_path / "data.jsonl"), "--max_steps", "1", "--batch_size", "2", "--progress", "false"]
    common += ["--workers", "0", "--bf16", "false"]
    for method, own in (("bradley_terry", ["--centre", "0.01"]), ("regression", ["--loss", "mse"])):
        out = str(tmp_path / method)
        assert cli.main(["train", "--method", method, "--output_dir", out, *own, *common]) == 0, capsys.readouterr().err
        assert json.loads((tmp_path / method / "vlrm.json").read_text())["training"]["run"]["objective"] == method
    assert cli.main(["train", "--method", "regression", "--output_dir", "x", "--centre", "1", *common]) == 2
    assert "centre belongs to --method bradley_terry" in capsys.readouterr().err
