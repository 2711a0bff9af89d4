"""The same commands, given only another model: `vlrm train` and `vlrm search` on a tiny Idefics3 and a tiny Qwen2.5-VL, full and LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_qwen import build_tiny_qwen

from vlrm import Sample, cli, load_scorer
from vlrm.data_synth import WORLDS, load_problems, make_problems, make_step_records
from vlrm.rm.preferences import Preference
from vlrm.rm.train_scalar import train_bradley_terry

CONFIGS = Path(__file__).parent.parent / "configs"


@pytest.fixture(scope="module", params=["idefics3", "qwen2_5_vl"])
def model(request, tmp_path_factory):
    if request.param == "idefics3":
        return request.getfixturevalue("tiny_path")
    pytest.importorskip("torchvision", reason="Qwen2.5-VL's processor needs torchvision")
    return str(build_tiny_qwen(tmp_path_factory.mktemp("qwen")))


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    folder = tmp_path_factory.mktemp("problems")
    make_problems(list(WORLDS), "test", 3, 0, folder)
    return folder / "problems.jsonl"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Our own step records, and a parquet file with the columns of VisualPRM400K."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("data")
    records = make_step_records(list(WORLDS), "train", 12, 0, folder / "own.jsonl")
    rows = [
        {
            "image": {"bytes": Path(record.images[0]).read_bytes(), "path": None},
            "question": f"<image>\n{record.question}",
            "answer": record.answer,
            "steps_with_score": [
                {"step": step, "score": float(c.ok), "num_mc_correct": 4 * c.ok, "num_mc_total": 4}
                for step, c in zip(record.steps, record.critiques, strict=True)
            ],
        }
        for record in records
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "visualprm400k.parquet")
    return folder


@pytest.mark.parametrize(("lora", "file"), [(False, "own.jsonl"), (True, "own.jsonl"), (False, "visualprm400k.parquet")])
def test_train_then_search(model, lora, file, data, problems, tmp_path):
    scorer, results = tmp_path / "scorer", tmp_path / "results.jsonl"
    train = ["train", str(CONFIGS / "train_tiny.yaml"), "--model", model, "--data", str(data / file), "--output_dir", str(scorer)]
    train += ["--max_steps", "3", "--batch_size", "4", "--logging_steps", "1", "--lora", str(lora)]
    assert cli.main(train) == 0
    assert (scorer / "adapter_config.json").exists() == lora and (scorer / "model.safetensors").exists() != lora
    losses = [row["loss"] for row in map(json.loads, (scorer / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert losses and all(0 < loss < 20 for loss in losses)

    search = ["search", str(CONFIGS / "search_tiny.yaml"), "--problems", str(problems), "--policy", model, "--scorer", str(scorer)]
    search += ["--output", str(results), "--n", "2", "--max_tokens", "16", "--scorer_settings", '{"max_tokens": 24}']
    assert cli.main(search) == 0
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert [row["problem_id"] for row in rows] == [problem.id for problem in load_problems(problems)]
    assert all(len(row["candidates"]) == 2 for row in rows)

    prm = load_scorer(scorer, max_tokens=24)
    (score,) = prm([Sample(load_problems(problems)[0], "Step 1: one\nStep 2: two\nAnswer: 2")])
    assert len(score.steps) == 2 and all(0 <= step <= 1 for step in score.steps)


def test_a_scalar_head_on_either(model, problems, tmp_path):
    pairs = [Preference(problem, f"It is {i}.", f"It is not {i}.") for i, problem in enumerate(load_problems(problems))]
    quick = {"batch_size": 3, "workers": 0, "bf16": False, "progress": False, "learning_rate": 1e-3, "attention": "eager"}
    summary = train_bradley_terry(model, pairs, tmp_path, max_steps=4, logging_steps=1, **quick)
    assert summary["metrics"]["loss"] < 0.69, "the last of four steps on the same three pairs"
    scorer = load_scorer(tmp_path, engine_options={"device": "cpu"})
    samples = [Sample(pair.problem, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    together = [score.value for score in scorer(samples)]
    assert together == pytest.approx([scorer([sample])[0].value for sample in samples], abs=1e-3)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"][0].endswith("ForSequenceClassification")
