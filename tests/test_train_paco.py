"""Training a PaCo-Reward: the weighted likelihood, batches, the folder, its scorer."""

from __future__ import annotations

import json
import shlex

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig

from vlrm import InputError, Sample, cli, load_scorer
from vlrm.commands.train import TrainPaCo, train_arguments
from vlrm.config import parse
from vlrm.rm.paco import PaCo
from vlrm.rm.paco_loss import verdict_weights
from vlrm.rm.paco_prompt import PAIR, PairStyle, pair_problem
from vlrm.rm.pairs import PairRecord, pair_from_row, read_pairs, write_pairs
from vlrm.rm.sft import PairTrainer
from vlrm.rm.train_paco import Answers, PairCollator, survey_pairs, train_paco

torch.set_num_threads(1)
QUICK = {"batch_size": 2, "learning_rate": 1e-3, "workers": 0, "progress": False, "bf16": False, "attention": "eager", "warmup": 0}


def picture(number):
    return Image.new("RGB", (96, 96), (40 * number % 255, 90, 255 - 30 * number))


# Reasons of different lengths, one without any.
RECORDS = [
    PairRecord(f"p{i}", [picture(i), picture(i + 1)], i % 2 == 0, reasons=" ".join(["red circle"] * i), group=f"g{i // 2}")
    for i in range(4)
]


# The loss


def mask(*lengths, start=2, width=12):
    rows = [[start <= t < start + n for t in range(width)] for n in lengths]
    return torch.tensor(rows)


def test_the_papers_weights_sum_to_one_in_each_sequence():
    weights = verdict_weights(mask(1, 2, 5, 10), 0.1)
    assert weights.sum(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert weights[:, 2].tolist() == pytest.approx([1.0, 0.1, 0.1, 0.1])  # one token alone: -log p(y_0)
    assert weights[2, 3].item() == pytest.approx(0.9 / 4) and weights[3, 11].item() == pytest.approx(0.9 / 9)
    assert (weights[mask(1, 2, 5, 10) == 0] == 0).all()


@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_alpha_of_one_over_n_is_mean_cross_entropy(n):
    torch.manual_seed(n)
    nll = torch.rand(1, 12, dtype=torch.float64) * 5
    mean = nll[mask(n)].mean()
    plain = (verdict_weights(mask(n), None) * nll).sum()
    assert abs(plain - mean) < 1e-6
    if n > 1:
        assert abs((verdict_weights(mask(n), 1 / n) * nll).sum() - mean) < 1e-6


def test_the_released_codes_weights():
    weights = verdict_weights(mask(1, 2, 10), 0.1, code_compat=True)
    assert weights[0].sum() == 0  # a lone verdict counts for nothing there
    assert weights[1, 2:4].tolist() == pytest.approx([0.1, 2 * 0.9 / 1])
    assert weights[2, 2:4].tolist() == pytest.approx([0.1, 10 * 0.9 / 9])
    # Verdict against one other token: 0.056 for n = 2, about 0.11 beyond; the paper's ratio is 0.111 (n - 1).
    assert (weights[1, 2] / weights[1, 3]).item() == pytest.approx(0.0556, abs=1e-3)
    assert (weights[2, 2] / weights[2, 3]).item() == pytest.approx(0.1)
    paper = verdict_weights(mask(50, width=60), 0.1)
    assert (paper[0, 2] / paper[0, 3]).item() == pytest.approx(5.44, abs=0.01)
    assert verdict_weights(mask(1, 3), None, code_compat=True).sum() == 4


@pytest.mark.parametrize("alpha", [0, 1, -0.1, 1.5])
def test_alpha_lies_between_zero_and_one(alpha):
    with pytest.raises(InputError, match="alpha"):
        verdict_weights(mask(3), alpha)


# Batches


@pytest.fixture(scope="module")
def processor(tiny_path):
    return AutoProcessor.from_pretrained(tiny_path)


def collator(processor, alpha=0.1, code_compat=False, form=None, records=RECORDS):
    return PairCollator(processor, records, form or Answers(PairStyle()), alpha, code_compat)


def rows(*indices):
    return [{"index": i} for i in indices]


def test_a_batch_holds_both_pictures_and_an_answer_that_begins_with_the_verdict(processor):
    batch = collator(processor)(rows(0, 1, 3))
    for b, item in enumerate((RECORDS[0], RECORDS[1], RECORDS[3])):
        labels = batch["labels"][b]
        said = processor.tokenizer.decode(labels[labels != -100])
        word = "Yes" if item.label else "No"
        assert said == (f"{word}\n{item.reasons}<|end|>" if item.reasons else f"{word}.<|end|>")
        text = processor.tokenizer.decode(batch["input_ids"][b])
        assert text.startswith("<|user|><img1>:") and "<img2>:" in text and PAIR in text
        assert (batch["input_ids"][b] == processor.image_token_id).sum() == 2 * 36
        first = (labels != -100).nonzero()[0, 0]
        assert batch["loss_weights"][b, first].item() == pytest.approx(0.1) and batch["loss_weights"][b].sum().item() == pytest.approx(1)
    assert batch["pixel_values"].shape == (3, 2, 3, 96, 96)


def test_the_fast_variant_says_the_verdict_alone(processor):
    batch = collator(processor, None, form=Answers(PairStyle(), reasons=False))(rows(2, 3))
    said = [processor.tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]
    assert said == ["Yes.<|end|>", "No.<|end|>"]


def test_the_survey_counts_and_drops():
    same = PairRecord("same", ["a.png", "a.png"], True)
    found = survey_pairs([*RECORDS, same], Answers(PairStyle()))
    assert found.indices == [0, 1, 2, 3] and found.counts["dropped: both pictures are the same"] == 1
    assert (found.counts["pairs"], found.counts["consistent"], found.counts["pairs without reasons"]) == (4, 2, 1)
    assert len(set(found.lengths)) == 4
    turned = [PairRecord(r.id, r.images, not r.label, reasons=r.reasons) for r in RECORDS]
    assert survey_pairs(turned, Answers(PairStyle())).lengths == found.lengths  # batches by length must not tell the labels
    assert survey_pairs(turned, Answers(PairStyle())).digest != found.digest
    with pytest.raises(InputError, match="does not exist"):
        survey_pairs([PairRecord("x", ["a.png", "b.png"], True)], Answers(PairStyle()))


# The trainer


def sequence_losses(model, batch, weights):
    """Each row's weighted negative log-likelihood, by hand."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "loss_weights")}
    with torch.no_grad():
        logprobs = torch.log_softmax(model(**inputs).logits[:, :-1].float(), dim=-1)
    labels = batch["labels"][:, 1:]
    nll = -logprobs.gather(2, labels.clamp(min=0)[..., None])[..., 0] * (labels != -100)
    return (nll * weights[:, 1:]).sum(dim=1)


@pytest.mark.parametrize("code_compat", [False, True])
def test_the_trainers_loss_is_the_formula(tiny_path, processor, tmp_path, code_compat):
    from datasets import Dataset

    model = AutoModelForImageTextToText.from_pretrained(tiny_path, dtype=torch.float32)
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to=[], max_length=None, remove_unused_columns=False)
    args.dataset_kwargs = {"skip_prepare_dataset": True}
    collate = collator(processor, 0.1, code_compat)
    dataset = Dataset.from_dict({"index": list(range(4))})
    trainer = PairTrainer(
        model, args, train_dataset=dataset, processing_class=processor, data_collator=collate, by_sequence=not code_compat
    )
    first, second = collate(rows(0, 1)), collate(rows(2, 3))
    parts = [sequence_losses(model.eval(), batch, batch["loss_weights"]) for batch in (first, second)]
    model.train()
    if code_compat:
        counts = [(batch["labels"][:, 1:] != -100).sum() for batch in (first, second)]
        alone, together = parts[0].sum() / counts[0], (parts[0].sum() + parts[1].sum()) / sum(counts)
    else:
        alone, together = parts[0].mean(), torch.cat(parts).mean()
    model.eval()
    loss = trainer.compute_loss(model, {name: value.clone() for name, value in first.items()})
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
    model.train()
    items = trainer._get_num_items_in_batch([first, second], torch.device("cpu"))
    assert int(items) == (sum(counts) if code_compat else 4)
    accumulated = sum(
        trainer.compute_loss(model, {name: value.clone() for name, value in batch.items()}, num_items_in_batch=items).item()
        for batch in (first, second)
    )
    assert accumulated == pytest.approx(together.item(), rel=1e-4)
    assert 0 <= trainer._metrics["train"]["first_token_accuracy"][0] <= 1


def test_training_writes_a_scorer_that_asks_as_it_was_trained(tiny_path, tmp_path):
    out = tmp_path / "paco"
    summary = train_paco(tiny_path, RECORDS, out, eval_records=RECORDS[:2], ending="", marks=("A:", "B:"), max_steps=3, save_steps=2,
                         freeze_vision=False, scorer_settings={"both_orders": False}, **QUICK)  # fmt: skip
    assert summary["steps"] == 3 and summary["counts"]["pairs"] == 6
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_loss" in line for line in lines) and "pairwise consistency reward" in (out / "README.md").read_text()
    scorer = load_scorer(out)
    assert isinstance(scorer, PaCo) and scorer.style == PairStyle(marks=("A:", "B:"), ending="") and not scorer.both_orders
    assert 0 < scorer([Sample(pair_problem(*RECORDS[0].images), "")])[0].value < 1
    assert train_paco(tiny_path, RECORDS, out, eval_records=RECORDS[:2], ending="", marks=("A:", "B:"), max_steps=3, save_steps=2,
                      freeze_vision=False, **QUICK) == summary  # fmt: skip
    with pytest.raises(InputError, match="alpha"):
        train_paco(tiny_path, RECORDS, out, eval_records=RECORDS[:2], alpha=0.3, ending="", marks=("A:", "B:"), max_steps=3,
                   freeze_vision=False, **QUICK)  # fmt: skip
    with pytest.raises(InputError, match="did you mean 'alpha'"):
        train_paco(tiny_path, RECORDS, out, alpah=0.3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_is_cut_off_is_told_before_anything_is_written(tiny_path, tmp_path, format):
    path, noise = tmp_path / f"cut.{format.lower()}", torch.randint(0, 255, (64, 64, 3), dtype=torch.uint8).numpy()
    Image.fromarray(noise).save(path, format=format)
    pairs = [PairRecord("p", [picture(0), str(path)], True)]
    assert survey_pairs(pairs, Answers(PairStyle())).indices == [0]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match="truncated or damaged"):
        train_paco(tiny_path, pairs, tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()


def test_lora_leaves_an_adapter_that_the_scorer_loads(tiny_path, tmp_path):
    full = train_paco(tiny_path, RECORDS, tmp_path / "lora", lora={"r": 4}, max_steps=2, **QUICK)
    assert full["steps"] == 2 and (tmp_path / "lora" / "adapter_config.json").is_file()
    scorer = load_scorer(tmp_path / "lora")
    [score] = scorer([Sample(pair_problem(picture(0), picture(1)), "")])
    assert 0 < score.value < 1


def test_the_commands_settings_are_the_functions():
    settings = parse(TrainPaCo, ["--model", "m", "--data", "d", "--output_dir", "o", "--method", "paco", "--alpha", "0"])
    arguments = train_arguments(settings)
    assert arguments["alpha"] is None and arguments["records"] == "d" and arguments["marks"] == ["<img1>:", "<img2>:"]


# Files of pairs


def test_pairs_come_back_as_they_were(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    record = PairRecord("p", paths, True, "a fox", "theme", "because", "g", {"dimension": "style"})
    assert write_pairs(tmp_path / "pairs.jsonl", [record]) == 1
    assert read_pairs(tmp_path / "pairs.jsonl") == [record]
    assert json.loads((tmp_path / "pairs.jsonl").read_text())["images"] == ["a.png", "b.png"]
    with pytest.raises(InputError, match="save them first"):
        write_pairs(tmp_path / "x.jsonl", [RECORDS[0]])


def test_llama_factorys_chats_are_read(tmp_path):
    user = "<img1>: <image>\n<img2>: <image>\nAre they consistent? Answer first."
    row = {"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": "No, the hats differ.\nOne is red."}],
           "images": ["a.png", "b.png"]}  # fmt: skip
    record = pair_from_row(row, "pair-1", tmp_path)
    assert (record.label, record.question, record.reasons) == (False, "Are they consistent? Answer first.", "the hats differ.\nOne is red.")
    share = {"conversations": [{"from": "human", "value": "<image><image>Same?"}, {"from": "gpt", "value": "Yes."}], "images": ["a", "b"]}
    record = pair_from_row(share, "pair-2", tmp_path)
    assert (record.label, record.question, record.reasons) == (True, "Same?", "")
    row["messages"][1]["content"] = "Perhaps."
    with pytest.raises(InputError, match="begin with Yes or No"):
        pair_from_row(row, "x", tmp_path)


@pytest.mark.parametrize(("row", "message"), [
    ({"images": ["a.png"], "label": True}, "must hold two pictures, got 1"),
    ({"images": "a.png", "label": True}, "must hold two pictures"),
    ({"images": ["a.png", "b.png"]}, "column label is missing"),
    ({"images": ["a.png", "b.png"], "label": 0.5}, "label must be true or false"),
    ({"images": ["a.png", "b.png"], "label": float("nan")}, "label must be true or false"),
    ({"images": ["a.png", None], "label": True}, "column images must hold paths"),
    ({"images": ["a.png", "b.png"], "label": True, "task": "dance"}, "unknown task"),
])  # fmt: skip
def test_faulty_rows_say_what_to_change(tmp_path, row, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=rf"pairs.jsonl, line 1: .*{message}"):
        read_pairs(path)


@pytest.mark.parametrize(("said", "label"), [("Yes", True), ("no", False), (1, True), (0.0, False), (True, True), ("true", True)])
def test_labels_are_read_in_many_forms(tmp_path, said, label):
    assert pair_from_row({"images": ["a", "b"], "label": said}, "x", tmp_path).label is label


def test_the_whole_way_by_the_command_line(tiny_path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split("synth pairs --n 1 --instances 1 --criteria 3 --rankings 2 --output pairs")) == 0
    train = f"train --method paco --model {tiny_path} --data pairs/pairs.jsonl --output_dir paco --max_steps 1 --batch_size 2"
    recipe = ["--workers", "0", "--progress", "false", "--ending", "", "--marks", "", "", "--no_reasons", "--bf16", "false"]
    assert cli.main([*train.split(), *recipe]) == 0
    assert load_scorer("paco").style == PairStyle(marks=("", ""), ending="")
    assert cli.main(shlex.split("eval ranks --data pairs/ranks.jsonl --scorer paco --output eval --resamples 20")) == 0
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert results["instances"] == 2 and results["groups"] == 1 and set(results["metrics"]) == {"scorer", "pixels", "chance"}
    assert "2 instances of 1 groups" in capsys.readouterr().out
    assert cli.main([*train.split(), "--instructions", "x"]) == 2
    assert "instructions belongs to --method gm_prm and dpo_judge, not paco" in capsys.readouterr().err
