"""The built-in model: its tokenizer loses nothing, its pretraining data are functions of a number, its processor agrees with them."""

import random

import pytest

from vlrm.data_synth.teacher import comparison
from vlrm.data_synth.worlds import WORLDS, sample_scene
from vlrm.data_synth.worlds.base import format_solution, right_solution
from vlrm.policy.tiny import CHECKPOINTS, build_processor, build_tokenizer
from vlrm.serving.load import TINY

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_tokenizer_gives_every_text_back(processor):
    rng = random.Random(0)
    for world in WORLDS.values():
        scene = sample_scene(world, "test", rng)
        steps = right_solution(world, scene)
        for text in (world.question(scene), world.describe(scene), format_solution(steps), comparison(world.check(scene, steps))):
            assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text
    strange = "naïve 漢字 x² \n\n\ttab  two  spaces"
    assert processor.tokenizer.decode(processor.tokenizer(strange).input_ids) == strange


def test_words_of_the_worlds_and_verdicts_are_single_tokens(processor):
    for word in (" red", " circle", "\nStep", "\nVerdict:", " Correct", " Incorrect", " =>", " straight", "\nAnswer:"):
        assert len(processor.tokenizer(word).input_ids) == 1


def test_tokenizer_is_the_same_each_time_and_the_one_shipped(processor):
    from transformers import AutoTokenizer

    assert build_tokenizer().get_vocab() == build_tokenizer().get_vocab()
    for name in TINY:
        assert AutoTokenizer.from_pretrained(CHECKPOINTS / name).get_vocab() == processor.tokenizer.get_vocab()


def test_pretraining_samples_repeat_and_match_the_processor(processor):
    from vlrm.policy.pretrain import BASE, POLICY
    from vlrm.policy.pretrain_data import Samples, collate, pixels, solving_sample

    data = Samples(POLICY, 4, 0, processor.tokenizer)
    assert data[7]["ids"] == data[7]["ids"] and data[7]["labels"] == data[7]["labels"]
    assert torch.equal(data[7]["pixels"], data[7]["pixels"])
    batch = collate([data[i] for i in range(8)])
    assert batch["input_ids"].shape == batch["labels"].shape and batch["pixel_values"].shape == (8, 1, 3, 96, 96)
    assert ((batch["labels"] == -100) | (batch["labels"] == batch["input_ids"])).all()
    question, solution, picture = solving_sample(3)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(text=[text], images=[[picture]], return_tensors="pt")
    assert torch.allclose(inputs["pixel_values"][0, 0], pixels(picture), atol=1e-5)
    assert BASE.replay == POLICY.samples and solution.startswith("Step 1: ")  # no solving data beyond the policy's own


def test_shipped_checkpoints_stay_within_their_size():
    weights = list(CHECKPOINTS.glob("*/model.safetensors"))
    assert {path.parent.name for path in weights} == set(TINY)
    assert sum(path.stat().st_size for path in weights) <= 12 * 2**20


def test_pretraining_and_its_card(tmp_path, monkeypatch):
    """The whole way of pretraining, with eight samples a stage; a second run makes nothing again."""
    import json
    from dataclasses import replace

    from vlrm.policy import pretrain

    monkeypatch.setattr(pretrain, "STAGES", {name: replace(stage, samples=8) for name, stage in pretrain.STAGES.items()})
    arguments = ["--out", str(tmp_path), "--batch-size", "4", "--card-pictures", "2"]
    pretrain.main(arguments)
    card = json.loads((tmp_path / "card.json").read_text())
    assert list(card["built"]["stages"]) == list(pretrain.STAGES) and card["built"]["stages"]["tiny"]["samples"] == 8
    assert len(card["rows"]) >= 3 * (3 + 5 + 1) + 4 and "| tiny | comparing |" in (tmp_path / "README.md").read_text()
    written = (tmp_path / "tiny" / "model.safetensors").stat().st_mtime_ns
    pretrain.main(arguments)
    assert (tmp_path / "tiny" / "model.safetensors").stat().st_mtime_ns == written


def test_card_of_the_shipped_checkpoints(tmp_path):
    from vlrm.policy.tiny_card import lines_right, measure, outside

    rows = measure(CHECKPOINTS / "tiny-policy", ["solving"], 6, 0)
    captions = [row["share"] for row in rows if row["task"] == "captions"]
    assert len(rows) == 9 and min(captions) > 0.3  # it can see
    assert lines_right("a\nb\nX", "a\nb\nc") == 2 / 3 and lines_right("a", "Image: x no\nImage: y", "Image: ", holding=" no") == 0
    moved = [{**rows[0], "ci95": [rows[0]["share"] + 0.01, 1.0]}, *rows[1:]]
    assert outside({"rows": rows}, {"rows": rows}) == [] and len(outside({"rows": rows}, {"rows": moved})) == 1


def test_dialogues_of_checking_answer_with_the_truth(processor):
    from vlrm.data_synth.checks import RIGHT, WRONG, check_claims, check_facts, check_steps
    from vlrm.policy.pretrain import CHECKER
    from vlrm.policy.pretrain_data import DIALOGUES, Samples

    for world in WORLDS.values():
        for i in range(20):
            scene, rng = sample_scene(world, "train", random.Random(i)), random.Random(i)
            said = {f"{head} {value}." for line in world.facts(scene) for head, value in line}
            for stated, answer in check_facts(world, scene, rng):
                assert (stated in said) == (answer == RIGHT)
                assert answer == RIGHT or answer[1:] in world.describe(scene)
            assert {answer for _, answer in check_facts(world, scene, rng, signs=True)} <= {RIGHT, WRONG}
            turns = check_steps(world, scene, random.Random(i))
            truths = world.check(scene, [step for step, _ in turns])
            assert [answer == RIGHT for _, answer in turns] == [truth.right for truth in truths]
            claims = check_claims(world, scene, random.Random(i))
            assert "".join(stated for stated, _ in claims) == "".join(step for step, _ in turns)
            assert len(claims) > len(turns) or world.name == "ladder"
            assert {answer for _, answer in claims} >= {answer for _, answer in turns}
    stage = Samples(CHECKER, 4, 0, processor.tokenizer)
    for task in DIALOGUES:
        ids, labels, _ = stage.dialogue(task, random.Random(5))
        text = processor.tokenizer.decode([token for token, label in zip(ids, labels, strict=True) if label != -100])
        assert "+" in text and "<|" not in text and len(ids) == len(labels)


def test_dialogues_about_pairs_answer_with_the_truth(processor):
    from vlrm.data_synth.consistency_world import DIMENSIONS
    from vlrm.data_synth.pair_dialogues import compare_pair, read_pair
    from vlrm.policy.pretrain import PAIRS
    from vlrm.policy.pretrain_data import Samples, collate

    answers = set()
    for i in range(60):
        turns, (first, second) = compare_pair(random.Random(i))
        assert {text for text, _ in turns} == {f"{d}?" for d in DIMENSIONS}
        for text, answer in turns:
            d = text[:-1]
            assert answer == ("+" if first.values[d] == second.values[d] else f" {second.values[d]}")
            answers.add(answer == "+")
        signs, _ = compare_pair(random.Random(i), signs=True)
        assert [answer == "+" for _, answer in signs] == [answer == "+" for _, answer in turns]
        readings, figures = read_pair(random.Random(i))
        assert sorted(answer[1:] for _, answer in readings) == sorted(f.values[d] for f in figures for d in DIMENSIONS)
    assert answers == {True, False}
    stage = Samples(PAIRS, 4, 0, processor.tokenizer)
    batch = collate([stage[i] for i in range(4)])
    assert batch["pixel_values"].shape == (4, 2, 3, 96, 96) and not torch.equal(batch["pixel_values"][0, 0], batch["pixel_values"][0, 1])
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": turns[0][0]}]}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    from vlrm.data_synth.pair_dialogues import pair_pictures

    shown = pair_pictures([first, second], random.Random(0))
    inputs = processor(text=[text], images=[shown], return_tensors="pt")
    ids, _, _ = stage.dialogue("pairs", random.Random(59))
    assert inputs["input_ids"][0].tolist() == ids[: inputs["input_ids"].shape[1]]  # training asks as a scorer will
