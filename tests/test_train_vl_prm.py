"""Training a VL-PRM on a tiny random model: what is labelled, the loss, heads, the folder, interruptions."""

from __future__ import annotations

import json
import random

import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlrm import cli
from vlrm.policy.tiny import build_tiny
from vlrm.prm.record_files import write_records
from vlrm.prm.records import StepRecord
from vlrm.prm.step_head import StepHeadPRM
from vlrm.prm.step_head_engine import load_step_head
from vlrm.prm.train_vl_prm import Recipe, VerdictCollator, Verdicts, full_length, train_vl_prm
from vlrm.prm.verdicts import TargetRule, VerdictStyle
from vlrm.prm.vl_prm import VLPRM
from vlrm.rm.load import load_scorer
from vlrm.rm.sft import VerdictTrainer
from vlrm.types import InputError, Problem, Sample

torch.set_num_threads(1)
QUICK = {"batch_size": 4, "workers": 0, "progress": False, "bf16": False, "attention": "eager", "warmup": 0, "system": ""}
COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"), hidden=64, layers=2, vision_hidden=32, vision_layers=1)


@pytest.fixture(scope="module")
def processor(tiny):
    return AutoProcessor.from_pretrained(tiny)


def picture(color):
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 70, 70), fill=color)
    return image


def record(number, wrong=None, **more):
    """Two to four steps with a + and a - in the texts; the one at `wrong` is false."""
    n = 2 + number % 3
    steps = tuple(f"{k} + 1 - {number} is {'bad' if k == wrong else 'good'}." for k in range(n))
    labels = more or {"judge": tuple(k != wrong for k in range(n))}
    kinds = ("perception", *["reasoning"] * (n - 1))
    return StepRecord(f"r{number}", "What is + and - ?", steps, (picture(COLORS[number % 3]),), "7", kinds=kinds, **labels)


RECORDS = [record(i, (None, 0, 1)[i % 3]) for i in range(9)]


def collate(processor, items=RECORDS, rule=None, style=None):
    form = Verdicts(style or VerdictStyle(system="Say + or -."), rule or TargetRule())
    return VerdictCollator(processor, items, form)([{"index": i} for i in range(len(items))]), form


def test_exactly_the_verdicts_are_labelled_though_the_question_holds_plus_and_minus(processor):
    batch, _ = collate(processor)
    tokenizer = processor.tokenizer
    for row, item in enumerate(RECORDS):
        ids, labels, mask = batch["input_ids"][row], batch["labels"][row], batch["attention_mask"][row].bool()
        text = tokenizer.decode(ids[mask])
        expected = [{True: "+", False: "-"}[ok] for ok in item.judge]
        expected = expected[: expected.index("-") + 1] if "-" in expected else expected
        assert [tokenizer.decode([id]) for id in labels[labels != -100]] == expected
        assert text.count("+") > len(expected) and "Say + or -." in text
        turns = text.split("<|assistant|>")
        assert [turn[:1] for turn in turns[1:]] == expected and text.endswith("<|assistant|>" + expected[-1])
        for place in (labels != -100).nonzero()[:, 0]:
            assert tokenizer.decode([ids[place - 1]]) == "<|assistant|>" and ids[place] == labels[place]
        assert item.steps[len(expected) - 1] in text and all(step not in text for step in item.steps[len(expected) :])
        assert "[Visual Elements]\n0 + 1" in text and ("[Reasoning]" in text) == (len(expected) > 1)
        assert (ids == processor.image_token_id).sum() == 36
    assert batch["pixel_values"].shape == (9, 1, 3, 96, 96)


def test_targets_stand_where_the_labels_do(processor):
    items = [record(0, mc_scores=(0.75, 0.25)), record(2, mc_scores=(1.0, 0.5, 0.0, 0.0))]
    batch, _ = collate(processor, items, TargetRule("soft"))
    places = batch["labels"] != -100
    assert batch["verdict_targets"][places].tolist() == [[0.75, 0.25], [0.25, 0.75], [1, 0], [0.5, 0.5], [0, 1]]
    assert batch["verdict_targets"][~places].abs().sum() == 0
    three, _ = collate(processor, items, TargetRule("advantage"), VerdictStyle(words=("+", "=", "-"), system=""))
    said = [processor.tokenizer.decode([id]) for id in three["labels"][three["labels"] != -100]]
    assert said == ["+", "-", "+", "-", "-"] and three["verdict_targets"].shape[-1] == 3


def test_steps_of_other_sections_are_shown_but_not_labelled(processor):
    batch, _ = collate(processor, [record(1, 0), record(4)], TargetRule(kinds=("reasoning",)))
    assert [(row != -100).sum().item() for row in batch["labels"]] == [1, 2]
    text = processor.tokenizer.decode(batch["input_ids"][0])
    assert "<|assistant|>+" in text and "<|assistant|>-" in text, "an error that is not trained on shows in the step after it"


def test_lengths_are_exact(processor):
    form = Verdicts(VerdictStyle(), TargetRule())
    collator = VerdictCollator(processor, RECORDS, form)
    lengths = list(collator.lengths(range(9)))
    batch = collator([{"index": i} for i in range(9)])
    assert lengths == batch["attention_mask"].sum(dim=1).tolist()


def test_the_order_of_batches_tells_nothing_of_the_labels(processor):
    """A chat ends with its first error, so batches of chats of like length would hold either errors or none."""
    from vlrm.prm.collate import survey

    form = Verdicts(VerdictStyle(), TargetRule())
    early, none = record(2, 0), record(2)
    found = survey([early, none], form, "", check=lambda item, _: form.fault(item), size=full_length)
    assert abs(found.lengths[0] - found.lengths[1]) <= 1
    assert len(form.chat(early)[1]) == 1 and len(form.chat(none)[1]) == 4


# The loss


def loss_of(tiny, processor, tmp_path, batch, choice_loss=False, network=None):
    from datasets import Dataset
    from trl import SFTConfig

    network = network or AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    args = SFTConfig(
        str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], max_length=None, remove_unused_columns=False
    )
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    trainer = VerdictTrainer(
        model=network, args=args, train_dataset=Dataset.from_dict({"index": [0]}), processing_class=processor,
        data_collator=lambda rows: rows, choice_loss=choice_loss,
    )  # fmt: skip
    trainer.model.train()
    return trainer.compute_loss(trainer.model, dict(batch)), network, trainer._metrics["train"]


def places_of(batch):
    return (batch["labels"] != -100).nonzero(as_tuple=True)


@pytest.mark.parametrize(("rule", "choice"), [(TargetRule(), False), (TargetRule(), True), (TargetRule("soft"), True)])
def test_the_loss_is_the_cross_entropy_at_the_verdicts(tiny, processor, tmp_path, rule, choice):
    items = [record(0, mc_scores=(0.75, 0.25)), record(2, mc_scores=(1.0, 0.5, 0.25, 0.0))]
    batch, _ = collate(processor, items, rule)
    loss, network, metrics = loss_of(tiny, processor, tmp_path, batch, choice)
    names = ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask")
    logits = network(**{name: batch[name] for name in names if name in batch}).logits
    rows, columns = places_of(batch)
    logits, targets = logits[rows, columns - 1], batch["verdict_targets"][rows, columns]
    words = logits[:, batch["verdict_ids"]]
    expected = -(targets * (words.log_softmax(-1) if choice else logits.log_softmax(-1)[:, batch["verdict_ids"]])).sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert metrics["verdict_accuracy"] == [pytest.approx((words.argmax(-1) == targets.argmax(-1)).float().mean().item())]
    loss.backward()
    assert network.get_input_embeddings().weight.grad.abs().sum() > 0


@pytest.mark.parametrize("labels", [1, 2])
def test_a_head_is_read_at_the_word_itself(tiny, processor, tmp_path, labels):
    items = [record(0, mc_scores=(0.75, 0.25)), record(1, mc_scores=(1.0, 0.5, 0.0))]
    batch, _ = collate(processor, items, TargetRule("soft"))
    network = load_step_head(tiny, num_labels=labels, dtype=torch.float32)
    assert type(network).__name__ == "Idefics3ForTokenClassification" and network.score.weight.shape == (labels, 64)
    loss, _, _ = loss_of(tiny, processor, tmp_path, batch, network=network)
    names = ("input_ids", "attention_mask", "pixel_values", "pixel_attention_mask")
    hidden = network.model(**{name: batch[name] for name in names if name in batch}).last_hidden_state
    rows, columns = places_of(batch)
    logits, targets = network.score(hidden[rows, columns]), batch["verdict_targets"][rows, columns]
    if labels == 1:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], targets[:, 0])
    else:
        expected = -(targets * logits.log_softmax(-1)).sum(-1).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


# The whole way


def lesson(count, seed=0):
    """Whether the picture is red: the text says the same every time."""
    rng, records = random.Random(seed), []
    for i in range(count):
        color = rng.choice(("red", "blue"))
        steps, labels = ("It is red.", "So it is."), (color == "red", True)
        records.append(StepRecord(f"l{seed}-{i}", "Color?", steps, (Image.new("RGB", (96, 96), color),), judge=labels))
    return records


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    summary = train_vl_prm(
        tiny, [*lesson(96), record(1, mc_scores=(0.5, 0.5, 0.5))], folder / "out", epochs=4, learning_rate=3e-3, freeze_vision=False,
        label_source="judge", **QUICK | {"batch_size": 16},
    )  # fmt: skip
    return folder / "out", summary


def test_it_learns_to_look(trained):
    folder, summary = trained
    assert summary["counts"]["records"] == 96 and summary["counts"]["dropped: no hard labels"] == 1
    assert summary["dropped_share"] == pytest.approx(1 / 97, abs=1e-4)
    assert summary["counts"]["steps trained on"] == summary["counts"]["steps"] - summary["counts"]["steps trained on, negative"] - 3
    scorer = load_scorer(folder)
    assert isinstance(scorer, VLPRM) and scorer.style.system == "" and scorer.style.words == ("+", "-")
    held_out = lesson(40, seed=1)
    scores = scorer([Sample(Problem(r.id, r.question, r.images), f"Step 1: {r.steps[0]}\nStep 2: {r.steps[1]}") for r in held_out])
    right = [(score.steps[0] >= 0.5) == r.judge[0] for score, r in zip(scores, held_out, strict=True)]
    assert sum(right) >= 38, "one that does not look gets half"
    card = json.loads((folder / "vlrm.json").read_text())
    assert card["scorer"].endswith("VLPRM") and "VL-PRM" in (folder / "README.md").read_text()


def test_a_finished_run_is_not_repeated_and_settings_are_stored(tiny, trained, tmp_path):
    folder, _ = trained
    with pytest.raises(InputError, match="other data"):
        train_vl_prm(
            tiny, lesson(4), folder, epochs=4, learning_rate=3e-3, freeze_vision=False, label_source="judge", **QUICK | {"batch_size": 16}
        )
    train_vl_prm(tiny, RECORDS, tmp_path, max_steps=1, scorer_settings={"score": "reward", "beta": 0.0}, **QUICK)
    assert load_scorer(tmp_path).score == "reward" and load_scorer(tmp_path, beta=0.5).beta == 0.5


class Stop(Exception):
    pass


def test_an_interrupted_run_ends_with_the_same_weights(tiny, tmp_path, monkeypatch):
    settings = {"epochs": 4, "learning_rate": 1e-3, "save_steps": 3, **QUICK}
    train_vl_prm(tiny, RECORDS, tmp_path / "quiet", **settings)
    usual, calls = VerdictTrainer.compute_loss, []

    def fails(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise Stop
        return usual(self, *args, **kwargs)

    monkeypatch.setattr(VerdictTrainer, "compute_loss", fails)
    with pytest.raises(Stop):
        train_vl_prm(tiny, RECORDS, tmp_path / "cut", **settings)
    monkeypatch.setattr(VerdictTrainer, "compute_loss", usual)
    summary = train_vl_prm(tiny, RECORDS, tmp_path / "cut", **settings)
    assert summary["resumed_from"] == 3
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("quiet", "cut")]
    assert weights[0] == weights[1]


def test_lora_and_the_frozen_tower(tiny, tmp_path):
    from safetensors.torch import load_file

    train_vl_prm(tiny, RECORDS, tmp_path / "lora", max_steps=2, lora={"r": 2}, **QUICK)
    scorer = load_scorer(tmp_path / "lora")
    assert (tmp_path / "lora" / "adapter_config.json").is_file()
    assert scorer([Sample(Problem("p", "Q", [picture("red")]), "Step 1: a\nStep 2: b")])[0].value is not None
    before = load_file(tiny / "model.safetensors")
    for freeze in (True, False):
        out = tmp_path / f"full{freeze}"
        train_vl_prm(tiny, RECORDS, out, max_steps=2, learning_rate=1e-2, freeze_vision=freeze, **QUICK)
        after = load_file(out / "model.safetensors")
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert any("text_model" in name for name in changed) and any("vision_model" in name for name in changed) != freeze


@pytest.mark.parametrize(("labels", "lora"), [(1, False), (2, {"r": 2})])
def test_a_head_is_trained_saved_and_loaded(tiny, tmp_path, labels, lora):
    out = tmp_path / "head"
    train_vl_prm(tiny, lesson(48), out, max_steps=8, head=labels, lora=lora, learning_rate=3e-3, **QUICK)
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["Idefics3ForTokenClassification"] and not (out / "adapter_config.json").exists()
    assert load_step_head(out).score.weight.shape[0] == labels
    scorer = load_scorer(out)
    assert isinstance(scorer, StepHeadPRM)
    problem = Problem("p", "Color?", [picture("red")])
    texts = ["Step 1: It is red.\nStep 2: So it is.\nStep 3: Yes.", "Step 1: It is blue."]
    scores = scorer([Sample(problem, text) for text in texts])
    assert [len(score.steps) for score in scores] == [3, 1] and all(0 < p < 1 for score in scores for p in score.steps)
    alone = [scorer([Sample(problem, text)])[0] for text in ("Step 1: It is red.", "Step 1: It is red.\nStep 2: So it is.")]
    assert scores[0].steps[:2] == pytest.approx((alone[0].steps[-1], alone[1].steps[-1]), abs=1e-4)
    assert scores[0].steps[0] != pytest.approx(scores[1].steps[0], abs=1e-6)


# Bad input, and the command


def test_what_cannot_be_trained_on_is_said(tiny, tmp_path):
    bare = StepRecord("b", "Q", ("a",))
    with pytest.raises(InputError, match=r"no record is left to train on \(.*1 dropped: no hard labels"):
        train_vl_prm(tiny, [bare], tmp_path, **QUICK)
    for wrong in (
        {"head": 3},
        {"loss": "mse"},
        {"head": 1, "loss": "vocabulary"},
        {"target": "advantage", "words": ("+", "-")},
        {"targets": 1},
    ):
        with pytest.raises(InputError):
            train_vl_prm(tiny, RECORDS, tmp_path, **QUICK | wrong)
    with pytest.raises(InputError, match="tokens"):
        train_vl_prm(tiny, RECORDS, tmp_path / "words", words=("excellent", "-"), **QUICK)
    assert not (tmp_path / "words" / "vlrm.json").exists() and not (tmp_path / "vlrm.json").exists()


def test_the_train_command_offers_what_the_function_takes():
    import inspect
    from dataclasses import fields

    from vlrm.commands.train import train_arguments, train_settings
    from vlrm.config import parse

    asked = ["--model", "m", "--data", "d", "--output_dir", "o", "--method", "vl_prm"]
    arguments = train_arguments(parse(train_settings(asked), [*asked, "--system", "S"]))
    recipe = {item.name: item.default for item in fields(Recipe)}
    assert set(arguments) == set(recipe) | set(inspect.signature(train_vl_prm).parameters) - {"recipe"}
    for name, default in recipe.items():
        if name != "system":
            assert arguments[name] == (list(default) if isinstance(default, tuple) else default), name
    with pytest.raises(InputError, match="instructions belongs to --method gm_prm"):
        train_settings([*asked, "--instructions", "x"])


def test_train_and_search_from_the_command_line(tiny, tmp_path):
    from vlrm.data_synth import make_problems

    for i, one in enumerate(RECORDS):
        one.images[0].save(tmp_path / f"{i}.png")
    saved = [StepRecord(r.id, r.question, r.steps, (str(tmp_path / f"{i}.png"),), judge=r.judge) for i, r in enumerate(RECORDS)]
    write_records(tmp_path / "steps.jsonl", saved)
    command = ["train", "--method", "vl_prm", "--model", str(tiny), "--data", str(tmp_path / "steps.jsonl"), "--max_steps", "1"]
    command += ["--output_dir", str(tmp_path / "out"), "--progress", "false", "--workers", "0", "--system", ""]
    assert cli.main(command) == 0
    make_problems(["bars"], "dev", 2, 0, tmp_path / "problems")
    for method in ("guided_greedy", "one_shot"):
        command = ["search", "--problems", str(tmp_path / "problems" / "problems.jsonl"), "--policy", "tiny-policy", "--n", "2"]
        command += [
            "--scorer",
            str(tmp_path / "out"),
            "--method",
            method,
            "--output",
            str(tmp_path / f"{method}.jsonl"),
            "--max_tokens",
            "120",
        ]
        assert cli.main(command) == 0
        rows = [json.loads(line) for line in (tmp_path / f"{method}.jsonl").read_text().splitlines()]
        assert len(rows) == 2 and all(row["details"]["method"] == method for row in rows)
