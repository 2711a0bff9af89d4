"""Foreign step data in and out: fixtures written here in each format's shape, round trips, what is dropped and what is refused."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from vlrm import InputError, cli
from vlrm.prm.convert import convert_file, import_records
from vlrm.prm.critique import StepCritique
from vlrm.prm.exporters import critique_chat, dataset_info, verdict_messages
from vlrm.prm.importers import FORMATS, detect, tagged
from vlrm.prm.record_files import read_records, write_records
from vlrm.prm.records import StepRecord
from vlrm.prm.score_file import as_sample
from vlrm.prm.truth import error_kinds, step_truth

VL_PRM = {
    "uid": "v1",
    "image_path": "pic.png",
    "question": "<question>How many dots?</question>",
    "answer": "3",
    "response": "[Visual Elements]\n<step_1>\nA row of dots.\n</step_1>\n<step_2>\nIt is long.\n</step_2>\n\n"
    "[Reasoning]\n<step_1>\nIt is long.\n</step_1>\n<correct_answer>3</correct_answer>",
    "steps_with_score": [
        {"step": "A row of dots.", "score": 0.5, "num_mc_correct": 8, "num_mc_total": 16},
        {"step": "It is long.", "score": 0.25, "num_mc_correct": 4, "num_mc_total": 16},
        {"step": "It is long.", "score": 0.0, "num_mc_correct": 0, "num_mc_total": 16},
    ],
    "parsing_failed": False,
}
PRM800K = {
    "labeler": "x",
    "is_quality_control_question": False,
    "question": {"problem": "2+2?", "ground_truth_answer": "4", "pre_generated_steps": ["a", "b", "bad", "never rated"]},
    "label": {
        "finish_reason": "found_error",
        "steps": [
            {"completions": [{"text": "a", "rating": 1, "flagged": None}], "human_completion": None, "chosen_completion": 0},
            {
                "completions": [{"text": "no", "rating": -1}, {"text": "b", "rating": 0}],
                "human_completion": None,
                "chosen_completion": 1,
            },
            {
                "completions": [{"text": "x", "rating": -1}],
                "human_completion": {"text": "by hand", "rating": None},
                "chosen_completion": None,
            },
            {
                "completions": [{"text": "y", "rating": -1}, {"text": "bad", "rating": -1}],
                "human_completion": None,
                "chosen_completion": None,
            },
        ],
    },
}
PRM800K["question"]["pre_generated_steps"] = ["a", "b", "by hand", "bad"]
SHEPHERD = {
    "input": "Tom has 2 + 3 apples. How many? Step 1: 2 + 3 = 5 ки\nStep 2: So it is 6. The answer is: 6 ки",
    "label": "Tom has 2 + 3 apples. How many? Step 1: 2 + 3 = 5 +\nStep 2: So it is 6. The answer is: 6 -",
    "task": "GSM8K",
}
DUALMATH = {
    "image_url": "pic.png",
    "instruction": "You are given a problem. Check it.\nQuestion:What is x?\nStep 1: x is 2 и\nStep 2: so 3 и\n†Answer: 3",
    "output": "You are given a problem. Check it.\nQuestion:What is x?\nStep 1: x is 2 +\nStep 2: so 3 -\n†Answer: 3",
}
MMATHCOT = {"image_url": "pic.png", "instruction": "What is x?", "output": "Step 1: x is 2.\nStep 2: so 3.\n†Answer: 3"}
STEPWISE = {"prompt": "2+2?", "completions": ["2+2=4", "so 5"], "labels": [True, False]}
VISUAL = {
    "image": ["pic.png"],
    "question": "What?",
    "answer": "A",
    "response": {"steps": ["one", "two", "three"], "process_correctness": [1, 0, -1]},
    "policy_model": "p",
    "data_source": "MMMU",
}
VLRM = {"id": "SR-1", "image": None, "question": "Where?", "answer": None, "steps": ["l", "m"], "step_error": [0, 1],
        "category": "location_error", "task": "SR"}  # fmt: skip
BIGBENCH = {"input": "sort b a", "steps": ["s", "t", "u"], "mistake_index": 1, "target": "a b", "answer": "b a", "task": "word_sorting"}
VISUALPRM = {
    "id": 7,
    "image": "pic.png",
    "question": "<image>\nQ?",
    "answer": "1",
    "steps": [{"step": "one", "score": 1.0}, {"step": "two", "score": 0.0}],
}
CHAT = {
    "id": "c",
    "image": "pic.png",
    "conversations": [
        {"from": "system", "value": "judge"},
        {"from": "human", "value": "<image>\n### Question:\nQ + R?\n\n### Solution Process:\nStep 1: one"},
        {"from": "gpt", "value": "+"},
        {"from": "human", "value": "two"},
        {"from": "gpt", "value": "-"},
    ],
}
ROWS = {
    "vl_prm300k": VL_PRM, "prm800k": PRM800K, "math_shepherd": SHEPHERD, "ursa": DUALMATH, "trl_stepwise": STEPWISE,
    "visualprocessbench": VISUAL,
    "vlrmbench": VLRM, "bigbench_mistake": BIGBENCH, "records": VISUALPRM, "verdict_chat": CHAT,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (8, 6), "red").save(tmp_path / "pic.png")
    return tmp_path


def one(folder, row, name="auto", **options):
    (folder / "in.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    (record,) = import_records(folder / "in.jsonl", name, **options)
    return record


def test_every_format_has_a_fixture_and_is_known_by_its_columns():
    assert set(ROWS) == set(FORMATS)
    for name, row in ROWS.items():
        assert detect(row) == name
    assert detect(MMATHCOT) == "ursa"
    with pytest.raises(InputError, match="the columns a, b fit no known format"):
        detect({"a": 1, "b": 2})


EXPECTED = {
    "vl_prm300k": ("v1", "How many dots?", ["A row of dots.", "It is long.", "It is long."], None),
    "prm800k": ("in-1", "2+2?", ["a", "b", "by hand", "bad"], [1, None, 1, 0]),
    "math_shepherd": ("in-1", "Tom has 2 + 3 apples. How many?", ["2 + 3 = 5", "So it is 6. The answer is: 6"], [1, 0]),
    "ursa": ("in-1", "What is x?", ["x is 2", "so 3"], [1, 0]),
    "trl_stepwise": ("in-1", "2+2?", ["2+2=4", "so 5"], [1, 0]),
    "visualprocessbench": ("in-1", "What?", ["one", "two", "three"], [1, None, 0]),
    "vlrmbench": ("SR-1", "Where?", ["l", "m"], [1, 0]),
    "bigbench_mistake": ("in-1", "sort b a", ["s", "t", "u"], [1, 0, None]),
    "records": ("7", "Q?", ["one", "two"], None),
    "verdict_chat": ("c", "Q + R?", ["one", "two"], [1, 0]),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_each_format(folder, name):
    record = one(folder, ROWS[name])
    labels = None if record.labels is None else list(record.labels)
    assert (record.id, record.question, list(record.steps), labels) == EXPECTED[name]
    pictures = 1 if any(key in ROWS[name] and ROWS[name][key] for key in ("image", "image_path", "image_url")) else 0
    assert len(record.images) == pictures
    assert one(folder, ROWS[name], name) == record  # named instead of found out


def test_vl_prm_keeps_counts_and_sections_also_where_two_steps_have_the_same_text(folder):
    record = one(folder, VL_PRM)
    assert record.kinds == ("perception", "perception", "reasoning") and record.mc_scores == (0.5, 0.25, 0.0)
    assert record.mc_counts == ((8, 16), (4, 16), (0, 16)) and record.answer == "3"
    assert step_truth(record) == (True, True, False)
    flat = {f"rollout_{name}": value for name, value in VL_PRM.items()} | {"o4_mini_isVerified": False}
    flat["rollout_response"] = VL_PRM["response"].replace(
        "Visual Elements", "Perception"
    )  # the header that the paper's own code trips over
    again = one(folder, flat)
    assert again.kinds == record.kinds and again.steps == record.steps and again.meta == {"o4_mini_isVerified": False}


def test_vlrmbench_errors_have_a_kind_that_no_critic_sees(folder):
    record = one(folder, VLRM)
    assert error_kinds(record) == (None, "perception") and record.kinds is None
    assert "[Visual Elements]" not in str(verdict_messages(record)) and "perception" not in str(as_sample(record))
    with pytest.raises(InputError, match="meta error_kinds has 1 entries for 2 steps"):
        error_kinds(StepRecord("r", "Q", ("a", "b"), meta={"error_kinds": [None]}))


def test_what_is_left_out_is_counted(folder):
    rows = [VL_PRM, VL_PRM | {"uid": "v2", "parsing_failed": True}]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = convert_file(folder / "in.jsonl", folder / "out.jsonl", "records")
    assert counts == {"read": 2, "written": 1, "dropped: parsing had failed": 1}
    bad = json.loads(json.dumps(PRM800K))
    bad["label"]["finish_reason"] = "bad_problem"
    broken = SHEPHERD | {"label": SHEPHERD["label"].replace("5 +", "5 ки")}
    for row, reason in ((bad, "the labeller found the problem bad"), (broken, "label does not follow input")):
        (folder / "in.jsonl").write_text(json.dumps(row))
        assert convert_file(folder / "in.jsonl", folder / "out.jsonl", "records") == {"read": 1, "written": 0, f"dropped: {reason}": 1}


@pytest.mark.parametrize(("neutral", "label"), [("null", None), ("right", 1.0), ("wrong", 0.0)])
def test_neutral_ratings_are_a_setting(folder, neutral, label):
    assert one(folder, PRM800K, neutral=neutral).labels[1] == label
    assert one(folder, VISUAL, neutral=neutral).labels == (1.0, label, 0.0)


def test_a_path_that_ends_unknown_is_cut_there(folder):
    row = json.loads(json.dumps(PRM800K))
    row["label"]["steps"][1] = {"completions": [{"text": "q", "rating": None}], "human_completion": None, "chosen_completion": None}
    assert one(folder, row).steps == ("a",)


def test_mmathcot_has_steps_and_an_answer_but_no_labels(folder):
    record = one(folder, MMATHCOT)
    assert record.steps == ("x is 2.", "so 3.") and record.answer == "3" and step_truth(record) is None
    (folder / "in.jsonl").write_text(json.dumps(MMATHCOT))
    assert convert_file(folder / "in.jsonl", folder / "out.jsonl")["dropped: no labels"] == 1


def test_tagged_wants_the_same_text():
    assert tagged("a к b к", "a + b -", "к") == (["a", "b"], [1.0, 0.0])
    assert tagged("a + 1 к", "a + 1 -", "к") == (["a + 1"], [0.0])  # a plus in the text is not a label
    assert tagged("a к", "b +", "к") is None and tagged("a к", "a", "к") is None and tagged("a", "a", "к") is None


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (
            VISUAL | {"response": {"steps": ["a"], "process_correctness": [2]}},
            {},
            "line 1: process_correctness must hold -1, 0 and 1, got 2",
        ),
        (VLRM | {"step_error": [0, 3]}, {}, "step_error must hold 0 and 1"),
        (VLRM | {"step_error": [0]}, {}, "column labels has 1 entries for 2 steps"),
        (BIGBENCH | {"mistake_index": 9}, {}, "mistake_index must be a step index from 0 to 2"),
        (BIGBENCH, {"name": "prm800k"}, "the row is not of the format prm800k"),
        (SHEPHERD, {"name": "ursa"}, "no column 'instruction'"),
        (VISUAL | {"image": ["gone.png"]}, {}, "there is no file"),
        (VISUAL, {"name": "nothing"}, "format must be auto or one of records"),
        (VISUAL, {"neutral": "maybe"}, "neutral must be one of null, right, wrong"),
        (VISUAL, {"limit": 0}, "limit must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(folder, row, options, message):
    with pytest.raises(InputError) as caught:
        one(folder, row, **options)
    assert message in str(caught.value)


def test_two_rows_with_one_id_are_refused(folder):
    (folder / "in.jsonl").write_text(json.dumps(VLRM) + "\n" + json.dumps(VLRM))
    with pytest.raises(InputError, match="line 2: record SR-1: the id occurs twice"):
        list(import_records(folder / "in.jsonl"))


SECTIONED = StepRecord(
    "r1",
    "What is 1 + 1? + or -",
    ("two dots", "they are red", "so 2", "no: 3", "done"),
    labels=(1.0, None, 1.0, 0.0, 1.0),
    kinds=("perception", "perception", "reasoning", "reasoning", "reasoning"),
)


def test_verdict_chats_ask_for_labelled_steps_and_end_at_the_first_error():
    messages = verdict_messages(SECTIONED)
    assert [m["role"] for m in messages] == ["system", *["user", "assistant"] * 3]
    assert [m["content"] for m in messages[2::2]] == ["+", "+", "-"]
    assert messages[1]["content"].endswith("### Solution Process:\n[Visual Elements]\ntwo dots")
    # the unlabelled step is shown in the turn of the next labelled one
    assert messages[3]["content"] == "they are red\n[Reasoning]\nso 2"
    assert "done" not in str(messages) and "done" in str(verdict_messages(SECTIONED, stop_at_first_error=False))
    trailing = StepRecord("t", "Q", ("a", "b"), labels=(1.0, None))
    assert [m["content"] for m in verdict_messages(trailing, system="")][1:] == ["+"]
    assert verdict_messages(StepRecord("n", "Q", ("a",), labels=(None,))) == "no labels"
    soft = StepRecord("s", "Q", ("a", "b"), labels=(0.5, 0.25))
    assert [m["content"] for m in verdict_messages(soft, threshold=0.3)[2::2]] == ["+", "-"]


def test_critique_chats_are_what_vlrm_train_learns_from(folder):
    from vlrm.prm.collate import TargetStyle

    critiques = (StepCritique("see", "dots ok", True, "none", True, True), StepCritique("add", "none", True, "1+1=3 no", False, False))
    record = StepRecord("r", "Q", ("dots", "3"), critiques=critiques, correction="2")
    user, assistant = critique_chat(record)
    assert assistant["content"] == TargetStyle().target(record)
    assert user["content"] == TargetStyle().prompt(record).messages[0]["content"][-1]["text"]
    assert error_kinds(record) == (None, "reasoning")
    assert critique_chat(StepRecord("r", "Q", ("dots", "3"), critiques=critiques)) == "error without a correction"
    labelled = StepRecord("r", "Q", ("dots", "3"), labels=(1.0, 0.0))
    assert critique_chat(labelled)[1]["content"] == "Step 1\nVerdict: Correct\nStep 2\nVerdict: Incorrect"
    assert critique_chat(SECTIONED) == "a step without a label" and critique_chat(StepRecord("n", "Q", ("a",))) == "no labels"


@pytest.fixture
def records_file(folder):
    picture, other = str(folder / "pic.png"), Image.new("RGB", (5, 5), "blue")
    records = [
        StepRecord("a", "How many <image> marks?", ("two dots", "so 2"), (picture,), labels=(1.0, 0.0), kinds=("perception", "reasoning")),
        StepRecord("b", "Q + R?", ("one", "two\nlines", "three"), (), judge=(True, True, True)),
        StepRecord("c", "Two pictures", ("one", "two"), (picture, other), mc_scores=(0.5, 0.0)),
    ]
    write_records(folder / "records.jsonl", records)
    return folder / "records.jsonl"


@pytest.mark.parametrize(
    ("to", "name"), [("trl", "out.jsonl"), ("llamafactory", "out.json"), ("ms_swift", "out.jsonl"), ("trl", "out.parquet")]
)
def test_what_is_written_is_read_back_the_same(records_file, to, name):
    output = records_file.with_name(name)
    assert convert_file(records_file, output, to) == {"read": 3, "written": 3}
    before, after = read_records(records_file), list(import_records(output))
    for old, new in zip(before, after, strict=True):
        truth = step_truth(old)
        kept = truth.index(False) + 1 if False in truth else len(truth)
        assert (new.id, new.question, new.steps, new.kinds) == (old.id, old.question, old.steps[:kept], old.kinds and old.kinds[:kept])
        assert step_truth(new) == truth[:kept] and len(new.images) == len(old.images)


def test_records_go_through_themselves_unchanged(records_file):
    output = records_file.with_name("again.parquet")
    convert_file(records_file, output, "records")
    convert_file(output, records_file.with_name("back.jsonl"), "records")
    assert read_records(records_file.with_name("back.jsonl")) == read_records(records_file)


def test_image_marks_match_the_pictures(records_file):
    for to, name in (("llamafactory", "out.json"), ("ms_swift", "out.jsonl")):
        output = records_file.with_name(name)
        convert_file(records_file, output, to)
        text = output.read_text()
        rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
        for row in rows:
            turns = [turn.get("content") or turn.get("value") for turn in row.get("messages") or row["conversations"]]
            first = next(turn for turn in turns if "### Question" in turn)
            assert sum(turn.count("<image>") for turn in turns) == len(row["images"]) == first.count("<image>")
            assert all(Image.open(path).size for path in row["images"])


def test_llamafactory_gets_its_entry_and_keeps_the_others(records_file):
    info = records_file.with_name("dataset_info.json")
    info.write_text(json.dumps({"mine": {"file_name": "mine.json"}}))
    convert_file(records_file, records_file.with_name("steps.json"), "llamafactory")
    entries = json.loads(info.read_text())
    assert entries["mine"] == {"file_name": "mine.json"} and entries["steps"] == dataset_info("steps.json")
    row = json.loads(records_file.with_name("steps.json").read_text())[0]
    assert set(entries["steps"]["columns"].values()) <= set(row)
    turns = row[entries["steps"]["columns"]["messages"]]
    assert [turn[entries["steps"]["tags"]["role_tag"]] for turn in turns] == ["human", "gpt"] * 2  # alternating, the human first
    info.write_text("{")
    with pytest.raises(InputError, match=r"dataset_info.json: is not valid JSON"):
        convert_file(records_file, records_file.with_name("steps.json"), "llamafactory")


def test_trl_files_load_with_datasets_and_train(records_file, tiny_path, tmp_path):
    """The parquet file goes into SFTTrainer's own collator as it is; the JSONL file holds paths."""
    from datasets import load_dataset
    from transformers import AutoProcessor
    from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

    for name, loader in (("out.parquet", "parquet"), ("out.jsonl", "json")):
        convert_file(records_file, records_file.with_name(name), "trl")
        data = load_dataset(loader, data_files=str(records_file.with_name(name)), split="train", cache_dir=str(tmp_path / "cache"))
        assert data.column_names == ["id", "messages", "images"] and len(data) == 3
        assert data[0]["messages"][2] == {"role": "assistant", "content": "+"}
        if loader == "parquet":
            assert data[2]["images"][0].size == (8, 6) and data[2]["images"][1].size == (5, 5)
            processor = AutoProcessor.from_pretrained(tiny_path)
            batch = DataCollatorForVisionLanguageModeling(processor, max_length=None)([data[0], data[2]])
            assert batch["input_ids"].shape[0] == 2 and "pixel_values" in batch
        else:
            assert Image.open(data[2]["images"][1]).size == (5, 5)


def test_a_failed_conversion_leaves_what_was_there(folder):
    (folder / "out.jsonl").write_text("mine")
    (folder / "in.jsonl").write_text(json.dumps(VISUAL) + "\n" + json.dumps({"question": "x"}))
    for to in ("trl", "records"):
        with pytest.raises(InputError, match="line 2"):
            convert_file(folder / "in.jsonl", folder / "out.jsonl", to)
        assert (folder / "out.jsonl").read_text() == "mine" and len(list(folder.glob(".*tmp"))) == 0


def test_the_command(records_file, capsys):
    output = records_file.with_name("out.json")
    assert cli.main(["convert", "--input", str(records_file), "--to", "llamafactory", "--output", str(output)]) == 0
    assert "read 3; written 3" in capsys.readouterr().out.replace("\n", "")
    for arguments, message in (
        (["--to", "trl", "--output", "x.csv"], "trl is written as .jsonl or .parquet"),
        (["--to", "trll", "--output", "x.jsonl"], "invalid choice: 'trll' (choose from 'trl', 'llamafactory'"),
    ):
        assert cli.main(["convert", "--input", str(records_file), *arguments]) == 2
        assert message in capsys.readouterr().err
