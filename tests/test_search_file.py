"""Problem files, and searches over them that are interrupted, repeated and refused."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import pytest

from vlrm import EngineError, InputError, Problem, Score, Usage, cli
from vlrm.policy import best_of_n
from vlrm.policy.search_file import report, search_file
from vlrm.rm.problems import read_problems
from vlrm.rm.rows import read_rows, write_jsonl
from vlrm.serving.engine import Completion

SETTINGS = {"n": 2, "policy": "scripted", "stop": ()}


def png(width: int = 4, height: int = 4) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="PNG")
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds next to nothing: a decompression bomb."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def write(folder: Path, *rows: dict, name: str = "problems.jsonl") -> str:
    (folder / "a.png").write_bytes(png())
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(**columns) -> dict:
    return {"id": "1", "question": "How many?", "images": ["a.png"], "answer": "3", **columns}


# Problem files


def test_problems_are_read_with_their_pictures_beside_the_file(tmp_path):
    path = write(tmp_path, row(world="grid"), row(id="2", question="<image>\nWhat?", images=[], answer=None))
    first, second = read_problems(path)
    assert (first.images, first.answer, first.meta) == ([str(tmp_path / "a.png")], "3", {"world": "grid"})
    assert (second.question, second.images, second.answer) == ("What?", [], None)
    assert len(read_problems(path, limit=1)) == 1
    single = write(tmp_path, {"id": "1", "question": "q", "image": "a.png"}, name="single.json")
    assert read_problems(single)[0].images == [str(tmp_path / "a.png")]
    (tmp_path / "sub").mkdir()
    moved = write(tmp_path / "sub", row(images=["../sub/a.png"]))
    assert read_problems(moved, image_root=tmp_path / "sub")[0].images == [str(tmp_path / "sub/../sub/a.png")]


def test_problems_are_read_from_parquet_with_embedded_pictures(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [row(images=[{"bytes": png(), "path": None}]), row(id="2", images=[{"bytes": None, "path": "a.png"}])]
    write(tmp_path)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    problems = read_problems(tmp_path / "p.parquet")
    assert problems[0].images == [png()] and problems[1].images == [str(tmp_path / "a.png")]


@pytest.mark.parametrize(("rows", "message"), [
    ([{"question": "q", "images": []}], "line 1: column id is missing"),
    ([{"id": "1", "images": []}], "column question is missing"),
    ([{"id": "1", "question": "q"}], "column images is missing"),
    ([row(id=7)], "column id must be a string, got int 7"),
    ([row(answer=3)], "answer must be a string or None, got int 3"),
    ([row(), row()], "line 2: column id: '1' is also the id in line 1"),
    ([row(images=["none.png"])], "none.png' does not exist"),
    ([row(images=[3])], "column images must hold paths, got int"),
    ([row(images=["cut.png"])], "cut.png' is truncated"),
    ([row(images=["bomb.png"])], "bomb.png' has"),
    ([row(images=["text.png"])], "text.png' is not an image"),
    ([row(question=" ")], "question must be a non-empty string"),
    ([], "holds no problems"),
])  # fmt: skip
def test_bad_problems_are_named_with_file_line_and_column(tmp_path, rows, message):
    (tmp_path / "cut.png").write_bytes(png(64, 64)[:-40])
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    (tmp_path / "text.png").write_text("hello")
    path = write(tmp_path, *rows)
    with pytest.raises(InputError) as error:
        read_problems(path)
    assert message in str(error.value) and str(error.value).startswith(path)


def test_bad_files(tmp_path):
    for name, content, message in [
        ("a.csv", b"id", "are read from .jsonl"),
        ("b.jsonl", b'{"id": "1"\n', "line 1: not valid JSON"),
        ("c.jsonl", b"\n[1]\n", "expected a JSON object, got int"),
        ("d.parquet", b"nonsense", "cannot be read as parquet"),
        ("e.jsonl", b"\xff\xfe\x00", "is not UTF-8"),
        ("f.jsonl", None, "no such file"),
    ]:
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            list(read_rows(tmp_path / name))
    with pytest.raises(InputError, match="limit"):
        read_problems(write(tmp_path, row()), limit=0)


def test_rows_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    assert write_jsonl(path, [{"a": "\u2028ü"}, {"a": 2}]) == 2
    assert [r for _, r in read_rows(path)] == [{"a": "\u2028ü"}, {"a": 2}]
    with pytest.raises(TypeError):
        write_jsonl(path, [{"a": 3}, {"a": object()}])
    assert len(list(read_rows(path))) == 2 and [p.name for p in path.parent.iterdir()] == ["rows.jsonl"]


# Searches over a file


class Policy:
    usage = Usage()

    def __init__(self, fail_at: int | None = None):
        self.asked, self.fail_at = 0, fail_at

    def generate(self, requests):
        self.asked += len(requests)
        if self.fail_at is not None and self.asked >= self.fail_at:
            raise EngineError("the server is gone")
        return [[Completion(f"Step 1: x\nAnswer: {request.seed % 3}", completion_tokens=5)] for request in requests]


PROBLEMS = [Problem(f"p{i}", "q", answer="1") for i in range(10)]


def searched(output, policy, problems=PROBLEMS, settings=SETTINGS, chunk=3):
    def scorer(samples):
        return [Score(float(sample.solution[-1]) / 2) for sample in samples]

    return search_file(problems, lambda batch: best_of_n(batch, policy, scorer, n=2), output, settings=settings, chunk=chunk)


def timeless(records):
    return json.loads(json.dumps(records), object_hook=lambda found: {key: v for key, v in found.items() if key != "seconds"})


def test_the_file_holds_the_records_in_order(tmp_path):
    told = []
    records = searched(tmp_path / "new" / "out.jsonl", Policy())
    assert [record["problem_id"] for record in records] == [problem.id for problem in PROBLEMS]
    assert [r for _, r in read_rows(tmp_path / "new" / "out.jsonl")] == records
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.jsonl"]
    assert all(record["right"] == (record["answer"] == "1") and record["gold"] == "1" for record in records)
    search_file(PROBLEMS, lambda batch: None, tmp_path / "new" / "out.jsonl", settings=SETTINGS, chunk=4, progress=told.append)
    assert told == [4, 8, 10]


def test_an_interrupted_search_goes_on_and_ends_as_if_it_had_not_been(tmp_path):
    whole = searched(tmp_path / "whole.jsonl", Policy())
    output = tmp_path / "out.jsonl"
    with pytest.raises(EngineError):
        searched(output, Policy(fail_at=13))
    part = tmp_path / "out.jsonl.part"
    assert not output.exists() and len(part.read_text().splitlines()) == 6
    with part.open("a") as file:
        file.write('{"problem_id": "p6", "cut off by a ki')
    policy = Policy()
    assert timeless(searched(output, policy)) == timeless(whole)
    assert policy.asked == 8 and not part.exists()
    policy = Policy()
    assert timeless(searched(output, policy)) == timeless(whole) and policy.asked == 0


def test_a_kill_between_the_last_chunk_and_the_move_loses_nothing(tmp_path):
    output = tmp_path / "out.jsonl"
    whole = searched(output, Policy())
    output.rename(tmp_path / "out.jsonl.part")
    policy = Policy()
    assert searched(output, policy) == whole and policy.asked == 0 and output.exists()


def test_more_problems_are_added_and_fewer_take_nothing_away(tmp_path):
    output = tmp_path / "out.jsonl"
    searched(output, Policy(), PROBLEMS[:4])
    policy = Policy()
    assert len(searched(output, policy, chunk=2)) == 10 and policy.asked == 12
    assert len(searched(output, Policy(), PROBLEMS[:2])) == 2
    assert len(list(read_rows(output))) == 10


def test_other_settings_other_problems_and_foreign_files_are_refused_and_left_alone(tmp_path):
    output = tmp_path / "out.jsonl"
    searched(output, Policy())
    before = output.read_text()
    with pytest.raises(InputError, match=r"other settings \(n was 2, is 4\)"):
        searched(output, Policy(), settings={**SETTINGS, "n": 4})
    with pytest.raises(InputError, match="earlier version of problem p3"):
        searched(output, Policy(), [Problem("p3", "another question", answer="1")])
    assert output.read_text() == before
    output.write_text("my notes")
    with pytest.raises(InputError, match="line 1: is not a search result"):
        searched(output, Policy())
    assert output.read_text() == "my notes"
    with pytest.raises(InputError, match=r"must be a \.jsonl file"):
        searched(tmp_path / "out.txt", Policy())
    with pytest.raises(InputError, match="chunk"):
        searched(tmp_path / "new.jsonl", Policy(), chunk=0)


def test_the_report_counts_what_has_a_gold_answer(tmp_path):
    problems = [*PROBLEMS, Problem("unknown", "q")]
    records = searched(tmp_path / "out.jsonl", Policy(), problems)
    figures = report(records)
    right = [record["answer"] == "1" for record in records[:10]]
    any_right = [any(c["answer"] == "1" for c in record["candidates"]) for record in records[:10]]
    assert figures["accuracy"] == sum(right) / 10 and figures["oracle"] == sum(any_right) / 10
    assert (figures["problems"], figures["with_gold"], figures["policy_tokens"], figures["calls"]) == (11, 10, 110, 22)
    assert figures["ci95"][0] <= figures["accuracy"] <= figures["ci95"][1]
    assert report(searched(tmp_path / "none.jsonl", Policy(), problems[-1:]))["accuracy"] is None


# The command


@pytest.fixture
def models(monkeypatch):
    """Engines and scorers by name, without a model; notes what was loaded."""
    import vlrm.rm
    import vlrm.serving

    loaded = []

    def engine(spec, adapter=None, **options):
        loaded.append((spec, adapter, options))
        if spec == "gone":
            raise InputError("the model path 'gone' does not exist")
        if "bogus" in options:
            raise TypeError("Engine.__init__() got an unexpected keyword argument 'bogus'")
        return Policy()

    def scorer(path, engine, engine_options, **settings):
        loaded.append((path, engine, engine_options, settings))
        return lambda samples: [Score(0.5) for _ in samples]

    monkeypatch.setattr(vlrm.serving, "load_engine", engine, raising=False)
    monkeypatch.setattr(vlrm.rm, "load_scorer", scorer)
    return loaded


def search(tmp_path, *extra: str, problems: str | None = None) -> int:
    problems = problems or write(tmp_path, row(), row(id="2"))
    given = {"problems": problems, "policy": "p", "scorer": "s", "output": str(tmp_path / "out.jsonl"), "n": "4", "seed": "1"}
    given |= dict(zip(extra[::2], extra[1::2], strict=True))
    return cli.main(["search", *(part for name, value in given.items() for part in (f"--{name}", value))])


def test_the_command_searches_prints_and_repeats_nothing(tmp_path, models, capsys):
    extra = ("policy_options", '{"max_model_len": 99}', "scorer_settings", '{"aggregation": "min"}', "method", "best_of_n")
    assert search(tmp_path, *extra) == 0
    printed = capsys.readouterr().out
    assert "best_of_n: 2 problems, 2 with a gold answer" in printed and "accuracy" in printed
    assert models == [("p", None, {"max_model_len": 99}), ("s", "transformers", {}, {"aggregation": "min"})]
    assert len(list(read_rows(tmp_path / "out.jsonl"))) == 2
    assert search(tmp_path, *extra) == 0 and len(models) == 2
    assert search(tmp_path, *extra, "n", "6") == 2
    assert "n was 4, is 6" in capsys.readouterr().err


def test_every_method_runs_and_self_consistency_needs_no_scorer(tmp_path, models):
    for method in ("self_consistency", "weighted_best_of_n", "refined_best_of_n"):
        assert search(tmp_path, "method", method, "output", str(tmp_path / f"{method}.jsonl")) == 0
    problems = write(tmp_path, row())
    common = ["search", "--problems", problems, "--policy", "p", "--output", str(tmp_path / "x.jsonl")]
    models.clear()
    assert cli.main([*common, "--method", "self_consistency"]) == 0 and [loaded[0] for loaded in models] == ["p"]
    assert cli.main([*common[:-1], str(tmp_path / "y.jsonl")]) == 2


@pytest.mark.parametrize(("extra", "message"), [
    (("n", "0"), "n must be"), (("temperature", "-1"), "temperature"), (("top_p", "0"), "top_p"), (("max_tokens", "0"), "max_tokens"),
    (("rounds", "0"), "rounds"), (("problems", "none.jsonl"), "no such file"), (("method", "best"), "best"),
    (("output", "x.csv"), ".jsonl"),
])  # fmt: skip
def test_mistakes_are_found_before_a_model_is_loaded_and_nothing_is_written(tmp_path, models, capsys, extra, message):
    assert search(tmp_path, *extra) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("vlrm: error: ") == 1 and "Traceback" not in error
    assert models == [] and sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "problems.jsonl"]


def test_a_model_that_does_not_exist_and_a_bad_picture_write_nothing(tmp_path, models, capsys):
    assert search(tmp_path, "policy", "gone", "output", str(tmp_path / "new" / "out.jsonl")) == 2
    assert "'gone' does not exist" in capsys.readouterr().err and not (tmp_path / "new").exists()
    assert search(tmp_path, "policy_options", '{"bogus": 1}') == 2
    assert "policy_options do not fit p" in capsys.readouterr().err
    (tmp_path / "bomb.png").write_bytes(png_header(20_000, 20_000))
    assert search(tmp_path, problems=write(tmp_path, row(images=["bomb.png"]))) == 2
    assert "pixels" in capsys.readouterr().err and not (tmp_path / "out.jsonl").exists()


def test_a_retrained_scorer_is_not_mixed_with_its_former_self(tmp_path, models, capsys):
    folder = tmp_path / "scorer"
    folder.mkdir()
    (folder / "vlrm.json").write_text("{}")
    assert search(tmp_path, "scorer", str(folder)) == 0
    (folder / "vlrm.json").write_text("{ }")
    assert search(tmp_path, "scorer", str(folder)) == 2
    assert "scorer_files was" in capsys.readouterr().err
