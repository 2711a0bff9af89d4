"""Training on a tiny random model: the batches, the loss, the output folder, interruptions."""

import json
from collections import Counter
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from vlrm.policy.tiny import build_tiny
from vlrm.prm.collate import Collator, Joined, TargetStyle, batch_order, open_records, picture_size, survey
from vlrm.prm.critique import StepCritique
from vlrm.prm.gm_prm import GMPRM
from vlrm.prm.records import StepRecord
from vlrm.prm.train import train_gm_prm
from vlrm.rm import cpu
from vlrm.rm.load import load_scorer
from vlrm.rm.sft import CritiqueTrainer, freeze_vision_tower, language_layers, last_complete_checkpoint
from vlrm.types import InputError, Problem, Sample

torch.set_num_threads(1)
QUICK = {"batch_size": 2, "learning_rate": 1e-3, "workers": 0, "progress": False, "bf16": False, "attention": "eager", "warmup": 0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return build_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def processor(tiny):
    return AutoProcessor.from_pretrained(tiny)


def picture(color):
    image = Image.new("RGB", (96, 96), "white")
    ImageDraw.Draw(image).ellipse((20, 20, 70, 70), fill=color)
    return image


def record(number, wrong=None, images=None):
    """Two to four steps, the one at `wrong` with an error in the picture or in the logic."""
    critiques = []
    for k in range(2 + number % 3):
        image, logic = not (k == wrong and k % 2 == 0), not (k == wrong and k % 2 == 1)
        critiques.append(StepCritique(f"read row {k}", f"red {k} | red {k} ok", image, "none", logic, image and logic))
    steps = tuple(f"row {k} is red {'circle ' * (number % 4)}" for k in range(len(critiques)))
    color = ("red", "green", "blue")[number % 3]
    correction = None if wrong is None else f"row {wrong} is blue"
    return StepRecord(
        f"r{number}", f"Which color is {color}?", steps, images or (picture(color),), "7", critiques=tuple(critiques), correction=correction
    )


RECORDS = [record(i, (None, 0, 1)[i % 3]) for i in range(8)]


def collate(processor, items=RECORDS, indices=None, weight=3.0, style=None):
    indices = range(len(items)) if indices is None else indices
    return Collator(processor, items, style or TargetStyle(), weight)([{"index": i} for i in indices])


def test_batches_hold_the_chat_and_only_the_answer_is_labelled(processor):
    batch = collate(processor)
    tokenizer = processor.tokenizer
    for row, item in enumerate(RECORDS):
        ids, labels, mask = (batch[name][row] for name in ("input_ids", "labels", "attention_mask"))
        expected = TargetStyle().target(item)
        assert tokenizer.decode(labels[labels != -100]) == expected + "<|end|>"
        text = tokenizer.decode(ids[mask.bool()])
        assert text.startswith("<|user|>") and text.endswith(f"Critique each step.<|end|><|assistant|>{expected}<|end|>")
        assert f"{item.question}\n\nSolution:\nStep 1: {item.steps[0].strip()}" in text
        assert (ids[mask == 0] == tokenizer.pad_token_id).all() and (labels[mask == 0] == -100).all()
        assert (ids == tokenizer.convert_tokens_to_ids("<image>")).sum() == 36
    assert batch["pixel_values"].shape == (len(RECORDS), 1, 3, 96, 96)


def test_weights_stand_exactly_on_the_verdict_words(processor):
    batch = collate(processor)
    for row, item in enumerate(RECORDS):
        weights, ids = batch["loss_weights"][row], batch["input_ids"][row]
        words = [processor.tokenizer.decode([id]) for id in ids[weights == 3]]
        expected = [w for c in item.critiques for w in (c.image_ok, c.logic_ok, c.ok)]
        assert words == [" Correct" if ok else " Incorrect" for ok in expected]
        assert ((weights > 0) == (batch["labels"][row] != -100)).all()
    assert set(collate(processor, weight=1.0)["loss_weights"].unique().tolist()) == {0.0, 1.0}


def test_weights_stand_exactly_on_the_corrected_step(processor):
    batch = Collator(processor, RECORDS, TargetStyle(), 1.0, 5.0)([{"index": i} for i in range(len(RECORDS))])
    for row, item in enumerate(RECORDS):
        heavy = processor.tokenizer.decode(batch["input_ids"][row][batch["loss_weights"][row] == 5])
        assert heavy.strip() == (item.correction or "")
        assert (batch["loss_weights"][row] > 0).sum() == (batch["labels"][row] != -100).sum()
    assert any(item.correction for item in RECORDS) and not all(item.correction for item in RECORDS)


def test_other_words_and_plain_solutions(processor):
    style = TargetStyle(words=("Yes", "No"), stop_at_first_error=True, instructions="Be brief.")
    items = [record(1, 0), Sample(Problem("p", "Why?", [picture("red")]), "Step 1: Correct\nAnswer: 3")]
    batch = collate(processor, items, style=style)
    first, second = (processor.tokenizer.decode(labels[labels != -100]) for labels in batch["labels"])
    assert first.endswith("=> No\nLogic: none => Yes\nVerdict: No\nCorrection: row 0 is blue<|end|>") and "Step 2" not in first
    assert second == "Step 1: Correct\nAnswer: 3<|end|>" and batch["loss_weights"][1].max() == 1
    assert "Be brief." in processor.tokenizer.decode(batch["input_ids"][0])
    assert "Critique" not in processor.tokenizer.decode(batch["input_ids"][1])


def test_text_only_and_several_pictures(processor):
    two = record(0, images=(picture("red"), picture("blue")))
    assert (collate(processor, [two, record(1)])["input_ids"] == processor.image_token_id).sum() == 3 * 36
    bare = StepRecord("t", "Why?", ("because",), mc_scores=(1.0,))
    batch = collate(processor, [bare])
    assert "pixel_values" not in batch and "Verdict: Correct" in processor.tokenizer.decode(batch["input_ids"][0])


def trl_rows(records):
    style = TargetStyle()
    for r in records:
        target = [{"role": "assistant", "content": [{"type": "text", "text": style.target(r)}]}]
        yield {"prompt": style.prompt(r).messages, "completion": target, "images": list(r.images)}


def make_trainer(cls, tiny, processor, folder, **extra):
    from datasets import Dataset

    model = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32)
    args = SFTConfig(
        str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to=[], max_length=None, remove_unused_columns=False
    )
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    dataset = Dataset.from_dict({"index": list(range(len(RECORDS)))})
    return cls(model, args, train_dataset=dataset, processing_class=processor, data_collator=lambda rows: rows, **extra)


@pytest.fixture(scope="module")
def trainers(tiny, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainers")
    return [make_trainer(cls, tiny, processor, folder) for cls in (SFTTrainer, CritiqueTrainer)]


@pytest.mark.parametrize("count", [None, 500])
def test_with_weight_one_the_loss_is_trls_own(processor, trainers, count):
    """TRL's collator and loss against ours, in value and in gradient."""
    theirs, ours = trainers
    plain = DataCollatorForVisionLanguageModeling(processor, completion_only_loss=True)(list(trl_rows(RECORDS)))
    batch = collate(processor, weight=1.0)
    assert (plain["input_ids"] == batch["input_ids"]).all() and (plain["labels"] == batch["labels"]).all()
    gradients = []
    losses = []
    for trainer, inputs in ((theirs, dict(plain)), (ours, batch)):
        loss = trainer.compute_loss(trainer.model.train(), inputs, num_items_in_batch=count)
        trainer.model.zero_grad()
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert torch.allclose(*gradients, atol=1e-6)
    names = [name for name, p in ours.model.named_parameters() if p.grad is None]
    assert names == [name for name, p in theirs.model.named_parameters() if p.grad is None]
    assert theirs._metrics["train"]["mean_token_accuracy"][-1] == pytest.approx(ours._metrics["train"]["mean_token_accuracy"][-1])


def test_weights_multiply_the_tokens_loss(processor, trainers):
    _, ours = trainers
    ours.model.train()
    batch = collate(processor, weight=3.0)
    with torch.no_grad():
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "loss_weights")}
        logits = ours.model(**inputs).logits[:, :-1]
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
        expected = (nll * batch["loss_weights"][:, 1:]).sum() / (batch["labels"] != -100).sum()
        loss = ours.compute_loss(ours.model, dict(batch))
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert 0 <= ours._metrics["train"]["weighted_token_accuracy"][-1] <= 1 and "entropy" not in ours._metrics["train"]


def test_the_quick_decoder_is_the_decoder(tiny, processor):
    """Attention, norms and positions for CPUs give what transformers' own give, up to bfloat16, gradients included."""
    batch = {name: value for name, value in collate(processor).items() if name != "loss_weights"}
    results = []
    for quick in (False, True):
        options = {"attn_implementation": cpu.register_attention() if quick else "eager"}
        model = AutoModelForImageTextToText.from_pretrained(tiny, dtype=torch.float32, **options)
        if quick:
            cpu.quicken_decoder(model)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(**batch)
        output.loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        results.append((output.logits[batch["attention_mask"].bool()], gradients))
    for usual, quick in zip(*results, strict=True):
        assert (usual - quick).norm() < 0.03 * usual.norm()


def test_the_quick_attention_bears_rows_of_padding_and_float32():
    """Generation pads on the left and runs outside of autocast."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 3, 8) for _ in range(3))
    mask = torch.zeros(1, 1, 3, 3).masked_fill(torch.ones(3, 3).triu(1).bool(), torch.finfo(torch.float32).min)
    mask[..., 0] = torch.finfo(torch.float32).min  # the first place is padding: its own row has nothing to look at
    found, _ = cpu._attention(torch.nn.Identity(), query, key, value, mask)
    expected = torch.nn.functional.scaled_dot_product_attention(query[:, :, 1:], key[:, :, 1:], value[:, :, 1:], mask[..., 1:, 1:])
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert torch.allclose(found.transpose(1, 2)[:, :, 1:], expected, atol=0.03)


def test_rms_norm_and_its_gradient():
    x, weight = torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True), torch.randn(8, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.rms_norm(x, (8,), weight, 1e-6)
    assert torch.allclose(cpu.RMSNorm.apply(x, weight, 1e-6), expected)
    assert torch.autograd.gradcheck(lambda x, weight: cpu.RMSNorm.apply(x, weight, 1e-6), (x, weight))


@given(st.lists(st.integers(1, 99), min_size=1, max_size=60), st.integers(1, 7), st.integers(1, 3), st.integers(0, 9))
def test_batch_order(lengths, batch_size, epochs, seed):
    order = batch_order(lengths, batch_size, epochs, seed)
    assert Counter(order) == Counter({i: epochs for i in range(len(lengths))})
    assert order == batch_order(lengths, batch_size, epochs, seed)


def test_batch_order_changes_with_the_seed():
    assert len({tuple(batch_order([i % 9 for i in range(100)], 4, 1, seed)) for seed in range(5)}) == 5


def test_batches_are_of_like_lengths():
    lengths = [i % 100 for i in range(1000)]
    order = iter(batch_order(lengths, 10, 1, 0))
    spreads = [max(batch) - min(batch) for batch in iter(lambda: [lengths[i] for i in islice(order, 10)], [])]
    assert sum(spreads) / len(spreads) < 5


def test_exact_lengths(processor):
    collator = Collator(processor, RECORDS, TargetStyle(), 3.0)
    batch = collate(processor)
    assert list(collator.lengths(range(len(RECORDS)))) == batch["attention_mask"].sum(1).tolist()
    longest = int((batch["labels"] != -100).sum(1).max())
    assert longest < collator.longest_target(range(len(RECORDS))) < 1.3 * longest + 1


def test_surveys(tmp_path):
    bad = StepRecord("bad", "Q?", ("a", "b"), critiques=(StepCritique(ok=True), StepCritique(ok=False)))
    found = survey(Joined([RECORDS[0], bad], [Sample(Problem("p", "Why?"), "x")]), TargetStyle(), "first_error")
    assert found.indices == [0, 2] and found.counts == {"records": 1, "solutions": 1, "dropped: error without a correction": 1}
    other = survey([RECORDS[1]], TargetStyle(), "first_error")
    assert found.digest != other.digest == survey([RECORDS[1]], TargetStyle(), "exact").digest
    picture("red").save(tmp_path / "a.png")
    assert picture_size(str(tmp_path / "a.png")) == picture_size((tmp_path / "a.png").read_bytes()) == (96, 96)
    with pytest.raises(InputError, match=r"gone\.png"):
        survey([record(0, images=(str(tmp_path / "gone.png"),))], TargetStyle(), "exact")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match="not an image"):
        survey([record(0, images=(str(tmp_path / "text.png"),))], TargetStyle(), "exact")


def test_datasets_are_read_row_by_row(tmp_path):
    from datasets import Dataset, Features, Value
    from datasets import Image as ImageFeature

    picture("red").save(tmp_path / "a.png")
    features = Features(
        {"image": ImageFeature(), "question": Value("string"), "steps": [{"step": Value("string"), "score": Value("float64")}]}
    )
    rows = {"image": [str(tmp_path / "a.png")] * 2, "question": ["Q?"] * 2, "steps": [[{"step": "a", "score": 1.0}]] * 2}
    records = open_records(Dataset.from_dict(rows, features=features))
    assert len(records) == 2 and records[1].steps == ("a",) and picture_size(records[1].images[0]) == (96, 96)
    broken = open_records(Dataset.from_dict({"question": ["Q?", "Q?"], "steps": [["a"], []]}))
    with pytest.raises(InputError, match="dataset, row 2: record row-2: column steps"):
        list(broken)
    with pytest.raises(InputError, match="records must be"):
        open_records([{"question": "Q?"}])


def test_which_parameters_learn(tiny):
    model = AutoModelForImageTextToText.from_pretrained(tiny)
    freeze_vision_tower(model)
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning and not any("vision_model" in name for name in learning) and any("connector" in name for name in learning)
    pattern = language_layers(model)
    import re

    adapted = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    assert len(adapted) == 4 * 7 and all("text_model" in name for name in adapted)


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_run_writes_a_scorer_that_says_what_it_was_taught(tiny, tmp_path):
    taught = [record(0, 1), record(1)]
    settings = {**QUICK, "learning_rate": 4e-3, "max_steps": 120, "logging_steps": 20}
    summary = train_gm_prm(tiny, taught, tmp_path / "out", **settings)
    assert summary["counts"] == {"records": 2} and summary["steps"] == 120 and summary["metrics"]["mean_token_accuracy"] > 0.9
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert len(losses) == 6 and losses[-1] < 0.1 * losses[0]
    written = {p.name for p in (tmp_path / "out").iterdir()}
    assert written >= {"vlrm.json", "model.safetensors", "tokenizer.json", "README.md", "metrics.jsonl"}
    assert not (tmp_path / "out" / "checkpoints").exists() and not list((tmp_path / "out").glob(".*"))
    assert '"records"' not in (card := (tmp_path / "out" / "README.md").read_text()) and "| records | 2 |" in card

    scorer = load_scorer(tmp_path / "out", "transformers")
    assert isinstance(scorer, GMPRM) and scorer.max_tokens < 200
    samples = [Sample(Problem(r.id, r.question, r.images), "\n".join(f"Step {k + 1}: {s}" for k, s in enumerate(r.steps))) for r in taught]
    wrong, right = scorer(samples)
    assert [v.correct for v in wrong.verdicts] == [True, False] and (wrong.first_error, wrong.correction) == (1, "row 1 is blue")
    assert [v.correct for v in right.verdicts] == [True] * 3 and right.correction is None
    assert wrong.steps[1] < 0.3 and min(right.steps) > 0.7 and wrong.details["hard"] == wrong.details["parse_failed"] == 0
    assert scorer.usage.completion_tokens > 0


class Killed(Exception):
    pass


def test_an_interrupted_run_ends_as_if_nothing_had_happened(tiny, tmp_path, monkeypatch):
    from vlrm.rm import sft

    settings = {**QUICK, "epochs": 2, "save_steps": 2, "logging_steps": 1, "keep_checkpoints": True}  # 8 steps
    whole = train_gm_prm(tiny, RECORDS, tmp_path / "whole", **settings)

    def killed(self, args, state, control, logs=None, **kwargs):
        real(self, args, state, control, logs, **kwargs)
        if state.global_step == 7:
            raise Killed

    real = sft.MetricsFile.on_log
    monkeypatch.setattr(sft.MetricsFile, "on_log", killed)
    with pytest.raises(Killed):
        train_gm_prm(tiny, RECORDS, tmp_path / "cut", **settings)
    monkeypatch.undo()
    with pytest.raises(InputError, match="no training finished here"):
        load_scorer(tmp_path / "cut")
    work = tmp_path / "cut" / "checkpoints"
    assert last_complete_checkpoint(work).name == "checkpoint-6"
    state = work / "checkpoint-6" / "trainer_state.json"
    state.write_text(state.read_text()[:50])  # killed while saving: the one before it counts
    assert last_complete_checkpoint(work).name == "checkpoint-4"
    again = train_gm_prm(tiny, RECORDS, tmp_path / "cut", **settings)
    assert (again["resumed_from"], again["steps"]) == (4, 8) == (4, whole["steps"])
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(tmp_path / "cut")[name]), name
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6, 7, 8, 8]

    assert train_gm_prm(tiny, RECORDS, tmp_path / "cut", **settings) == again  # finished: nothing is done twice
    with pytest.raises(InputError, match="epochs 2, not 3"):
        train_gm_prm(tiny, RECORDS, tmp_path / "cut", **{**settings, "epochs": 3})
    with pytest.raises(InputError, match="other data"):
        train_gm_prm(tiny, RECORDS[1:], tmp_path / "cut", **settings)


def test_lora_with_evaluation_and_solutions(tiny, tmp_path):
    solved = [Sample(Problem("p", "Why?", [picture("red")]), "Step 1: x\nAnswer: 3")]
    summary = train_gm_prm(
        tiny, RECORDS, tmp_path / "out", **QUICK, lora={"r": 4}, eval_records=RECORDS[:3], solutions=solved, max_steps=2, save_steps=1,
        scorer_settings={"aggregation": "min"},
    )  # fmt: skip
    assert summary["counts"] == {"records": 11, "solutions": 1} and summary["metrics"]["eval_loss"] > 0
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["r"] == 4 and "text_model" in config["target_modules"] and not (tmp_path / "out" / "model.safetensors").exists()
    card = json.loads((tmp_path / "out" / "vlrm.json").read_text())
    assert card["base"] == str(tiny.resolve()) and card["settings"]["aggregation"] == "min"
    assert load_scorer(tmp_path / "out", "transformers").correct(solved[0].problem, "Step 1: x") is None


def test_over_long_samples_are_dropped_not_cut(tiny, tmp_path, processor):
    lengths = collate(processor)["attention_mask"].sum(1)
    limit = int(lengths.median())
    summary = train_gm_prm(tiny, RECORDS, tmp_path / "out", **QUICK, max_steps=1, max_length=limit)
    assert summary["counts"]["dropped: longer than max_length"] == int((lengths > limit).sum())
    with pytest.raises(InputError, match=r"no record is left to train on.*longer than max_length"):
        train_gm_prm(tiny, RECORDS, tmp_path / "none", **QUICK, max_length=3)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_ends_in_one_line(tiny, tmp_path, workers):
    picture("red").save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:200])
    with pytest.raises(InputError) as error:
        train_gm_prm(tiny, [record(0, images=(str(tmp_path / "a.png"),))], tmp_path / "out", **{**QUICK, "workers": workers})
    assert "truncated or damaged" in str(error.value) and "a.png" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out" / "vlrm.json").exists()


def test_what_cannot_be_used(tiny, tmp_path):
    with pytest.raises(InputError, match="did you mean 'learning_rate'"):
        train_gm_prm(tiny, RECORDS, tmp_path / "out", learning_rte=1)
    for bad in (
        {"batch_size": 0},
        {"epochs": 0},
        {"max_steps": 0},
        {"verdict_weight": -1},
        {"correction_weight": 0},
        {"learning_rate": 0.0},
    ):
        with pytest.raises(InputError, match=next(iter(bad))):
            train_gm_prm(tiny, RECORDS, tmp_path / "out", **bad)
    with pytest.raises(InputError, match="does not exist"):
        train_gm_prm("./gone", RECORDS, tmp_path / "out")
    with pytest.raises(InputError, match="no such file"):
        train_gm_prm(tiny, tmp_path / "gone.jsonl", tmp_path / "out")
    with pytest.raises(InputError, match="peft"):
        train_gm_prm(tiny, RECORDS, tmp_path / "out", **QUICK, lora={"rank": 4})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        train_gm_prm(tiny, RECORDS, tmp_path / "file", **QUICK)
