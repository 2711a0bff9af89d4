import json
from pathlib import Path

import pytest
from PIL import Image

from vlrm.prm.critique import StepCritique, format_critique
from vlrm.prm.record_files import read_records, write_records
from vlrm.prm.records import StepRecord, filter_records, record_critique, same_text
from vlrm.types import InputError

RIGHT = StepCritique("read", "a | a ok", True, "none", True, True)
WRONG = StepCritique("read", "a | b no", False, "none", True, False)


def make(**changes):
    fields = {"id": "r", "question": "How many?", "steps": ("one", "two", "three"), "answer": "3", "critiques": (RIGHT, WRONG, RIGHT)}
    return StepRecord(**{**fields, "correction": "two!", **changes})


def write_lines(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_round_trip(tmp_path, picture, suffix):
    records = [
        make(id="a", images=(str(picture),), first_error=1, source="here"),
        make(id="b", images=(Image.new("RGB", (4, 4)), picture.read_bytes()), critiques=None, correction=None, mc_scores=(1.0, 0.5, 0.0)),
        make(id="c", answer=None, critiques=None, correction=None, judge=(True, True, False)),
        make(id="d", kinds=("perception", None, "reasoning"), mc_counts=((4, 4), (0, 4), None), labels=(1.0, 0.0, None), meta={"seed": 3}),
    ]  # fmt: skip
    path = tmp_path / f"sub/records.{suffix}"
    assert write_records(path, records) == 4
    back = read_records(path)
    assert [vars(r) | {"images": ()} for r in back] == [vars(r) | {"images": ()} for r in records]
    assert [len(r.images) for r in back] == [1, 2, 0, 0] and Path(back[0].images[0]).samefile(picture)
    if suffix == "parquet":
        assert back[1].images[1] == picture.read_bytes() and back[1].images[0][:4] == b"\x89PNG"
    assert not [p for p in path.parent.iterdir() if "tmp" in p.name]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.jsonl"
    write_records(path, [make()])
    before = path.read_text()
    with pytest.raises(AttributeError):
        write_records(path, [make(images=(object(),))])
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == ["r.jsonl"]


@pytest.mark.parametrize(
    "row",
    [
        {
            "image": "a.png",
            "question": "<image>\nQ?",
            "answer": "3",
            "steps": [{"step": "one", "score": 1.0}, {"step": "two", "score": 0.0}],
        },
        {"image": ["a.png"], "question": "Q?", "steps_with_score": [{"step": "Step 1: one", "score": 0.06}, {"step": "two", "score": 0}]},
        {"image_path": "a.png", "prompt": "Q?", "uid": 7, "steps": json.dumps([{"step": "one", "score": 1}, {"step": "two", "score": 0}])},
    ],
)
def test_visualprm400k_shapes(tmp_path, picture, row):
    (record,) = read_records(write_lines(tmp_path / "vp.jsonl", row))
    assert (record.question, record.steps, record.images) == ("Q?", ("one", "two"), (str(picture),))
    assert [score > 0 for score in record.mc_scores] == [True, False]
    critique = record_critique(record)
    assert format_critique(critique) == "Step 1\nVerdict: Correct\nStep 2\nVerdict: Incorrect" and critique.first_error == 1
    assert record.id == ("7" if "uid" in row else "vp-1")


def test_parquet_of_someone_else(tmp_path, picture):
    import pyarrow as pa
    import pyarrow.parquet as pq

    row = {
        "image": {"bytes": picture.read_bytes(), "path": "x.png"},
        "question": "Q?",
        "answer": "3",
        "steps": [{"step": "one", "score": 1.0, "num_mc": 16}],
        "extra": 5,
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "r.parquet")
    (record,) = read_records(tmp_path / "r.parquet")
    assert record.images == (picture.read_bytes(),) and record.mc_scores == (1.0,)


def test_nested_critiques_of_a_teacher(tmp_path):
    def step(image, logic, overall, fix):
        return {
            "step_intent": "see",
            "image_alignment": {"analysis": "a", "judgment": image},
            "reasoning_logic": {"analysis": "b", "judgment": logic},
            "judgment": overall,
            "step_refinement": fix,
        }

    critiques = [step("Correct", "Correct", "Correct", None), step("Incorrect", "Correct", None, "TWO")]
    (record,) = read_records(write_lines(tmp_path / "t.jsonl", {"question": "Q?", "steps": ["one", "two"], "critiques": critiques}))
    assert record.critiques == (StepCritique("see", "a", True, "b", True, True), StepCritique("see", "a", False, "b", True, False))
    assert record.correction == "TWO"


GOOD = {"id": "x", "question": "Q?", "steps": ["one", "two"], "mc_scores": [1, 0], "answer": "1"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": []}, "column steps must be a non-empty list"),
        ({"steps": None}, "column steps must be a non-empty list"),
        ({"steps": "one two"}, "column steps must be a list of strings, got one string"),
        ({"steps": ["", " "]}, "column steps holds no text"),
        ({"steps": ["one", 2]}, "column steps: every step must be a string"),
        ({"answer": 7}, "answer must be a string"),
        ({"question": None}, "column question must be a string"),
        ({"question": " "}, "question must be a non-empty string"),
        ({"images": ["gone.png"]}, "column images: there is no file"),
        ({"images": [None]}, "column images holds an empty entry"),
        ({"mc_scores": [1]}, "column mc_scores has 1 entries for 2 steps"),
        ({"mc_scores": [1, 2]}, "between 0 and 1"),
        ({"mc_scores": 1}, "column mc_scores must be a list"),
        ({"judge": ["yes", "no"]}, "column judge must hold true or false"),
        ({"critiques": [{"ok": True}]}, "column critiques has 1 entries for 2 steps"),
        ({"critiques": [{"ok": True}, {}]}, "entry 2 has no overall verdict"),
        ({"critiques": [{"ok": True}, {"ok": "maybe"}]}, "entry 2: unknown verdict 'maybe'"),
        ({"first_error": 2}, "column first_error must be a step index from 0 to 1"),
        ({"critiques": [{"ok": True}, {"ok": False}], "first_error": 0}, "the first step judged wrong in column critiques is 1"),
        ({"labels": [1, 2]}, "column labels must hold numbers between 0 and 1"),
        ({"kinds": ["visual", None]}, "column kinds must hold"),
        ({"mc_counts": [[1, 1], [2, 1]]}, "column mc_counts must hold [right, all]"),
        ({"mc_counts": [[1, 1], 1]}, "column mc_counts must hold [right, all]"),
        ({"meta": "x"}, "column meta must be an object"),
        ({"correction": 5}, "column correction must be a string"),
    ],
)
def test_errors_name_file_line_record_and_column(tmp_path, changes, message):
    path = write_lines(tmp_path / "bad.jsonl", {**GOOD, "id": "ok"}, {**GOOD, **changes})
    with pytest.raises(InputError) as error:
        read_records(path)
    text = str(error.value)
    assert message in text and text.startswith(f"{path}, line 2: ") and " x" in text and "\n" not in text


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"question": "Q?"\n')
    (tmp_path / "b.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "c.jsonl").write_text("\n")
    (tmp_path / "d.jsonl").write_text("[1]\n")
    (tmp_path / "e.csv").write_text("x")
    write_lines(tmp_path / "f.jsonl", GOOD, GOOD)
    messages = [
        "not valid JSON",
        "cannot be read as parquet",
        "holds no records",
        "expected a JSON object",
        ".jsonl, .json or .parquet",
        "twice",
    ]
    for name, message in zip(["a.jsonl", "b.parquet", "c.jsonl", "d.jsonl", "e.csv", "f.jsonl"], messages, strict=True):
        with pytest.raises(InputError, match=message):
            read_records(tmp_path / name)
    with pytest.raises(InputError, match="no such file"):
        read_records(tmp_path / "none.jsonl")


def test_targets():
    critique = record_critique(make())
    assert (critique.first_error, critique.correction) == (1, "two!")
    assert record_critique(make(critiques=None, mc_scores=(1.0, 0.1, 0.0))).first_error == 2
    assert record_critique(make(critiques=None, mc_scores=(1.0, 0.1, 0.0), judge=(False, True, True))).first_error == 0
    with pytest.raises(InputError, match="no labels"):
        record_critique(make(critiques=None, correction=None))


@pytest.mark.parametrize(
    ("scores", "agreeing"),
    [
        ((1.0, 0.0, 0.5), {"exact", "first_error", "outcome"}),
        ((1.0, 0.0, 0.0), {"first_error", "outcome"}),
        ((0.0, 0.0, 0.0), {"outcome"}),
        ((1.0, 1.0, 1.0), set()),
    ],
)
def test_consistency(scores, agreeing):
    for name in ("exact", "first_error", "outcome"):
        kept, counts = filter_records([make(mc_scores=scores)], name)
        assert bool(kept) == (name in agreeing)
        assert counts == ({"kept": 1} if kept else {"dropped: verdicts disagree with Monte-Carlo labels": 1})
    with pytest.raises(InputError, match="first_error"):
        filter_records([make()], "first")


def test_faults_of_a_teacher_are_dropped_and_counted():
    records = [
        make(),
        make(correction=None),
        make(correction="Step 2:  two"),
        make(critiques=(RIGHT,) * 3),
        make(critiques=(RIGHT,) * 3, correction=None),
        make(critiques=None, correction=None),
        make(critiques=None, correction=None, mc_scores=(1.0, 0.0, 0.0)),
    ]
    kept, counts = filter_records(records)
    assert len(kept) == 3 and counts == {
        "kept": 3,
        "dropped: error without a correction": 1,
        "dropped: correction equals the step": 1,
        "dropped: correction without an error": 1,
        "dropped: no labels": 1,
    }
    assert same_text("Step 2: a  b", "a b") and not same_text("a", "b")
