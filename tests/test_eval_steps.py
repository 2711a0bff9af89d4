"""`vlrm eval steps`: scoring a file of labelled solutions with any scorer, resumed, with what was not scored counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

import vlrm
from vlrm import EngineError, InputError, Score, Usage, cli
from vlrm.prm.evaluate import evaluate_steps, worst_cases
from vlrm.prm.evaluate_report import metric_rows
from vlrm.prm.record_files import write_records
from vlrm.prm.records import StepRecord
from vlrm.prm.score_file import as_sample, score_file, score_or_reason
from vlrm.prm.steps import split_steps
from vlrm.types import Verdict

REAL = Path(os.environ.get("VLRM_REAL_DATA", Path(vlrm.__file__).parent.parent / "shared" / "data"))


class Stub:
    """A scorer whose step scores are 0.9, or 0.2 for a step with "bad" in it; refuses what holds "huge"."""

    def __init__(self, stop_after=None, unread=()):
        self.usage, self.seen, self.stop_after, self.unread, self.max_steps = Usage(), [], stop_after, unread, 3

    def __call__(self, samples):
        if self.stop_after is not None and len(self.seen) >= self.stop_after:
            raise KeyboardInterrupt
        if any("huge" in sample.solution for sample in samples):
            raise InputError(f"the prompt has {len(samples) * 1000:,} tokens, more than the 2,048 that x can read")
        self.seen += [sample.problem.id for sample in samples]
        scores = []
        for sample in samples:
            steps = split_steps(sample.solution, self.max_steps)
            values = [0.2 if "bad" in step.text else 0.9 for step in steps]
            verdicts = [
                Verdict(i, None if step.text in self.unread else v >= 0.5, v, analysis=f"why {i}")
                for i, (step, v) in enumerate(zip(steps, values, strict=True))
            ]
            first = next((i for i, v in enumerate(values) if v < 0.5), None)
            scores.append(Score(sum(values) / len(values), tuple(values), tuple(verdicts), first, "better" if first is not None else None))
        return scores


def records(folder: Path, n: int = 12) -> list[StepRecord]:
    Image.new("RGB", (6, 6), "red").save(folder / "pic.png")
    made = []
    for i in range(n):
        steps = [f"fine {k}" for k in range(3 + i % 3)]
        labels = [1.0] * len(steps)
        if i % 2:
            steps[1], labels[1] = "bad here", 0.0
        if i % 3 == 0:
            labels[-1] = None
        kinds = ("perception", *["reasoning"] * (len(steps) - 1))
        images = (str(folder / "pic.png"),) if i < 4 else ()
        made.append(StepRecord(f"r{i}", f"Question <{i}>?", tuple(steps), images, source=f"s{i % 2}", labels=tuple(labels), kinds=kinds))
    return made


@pytest.fixture
def data(tmp_path):
    write_records(tmp_path / "data.jsonl", records(tmp_path))
    return tmp_path / "data.jsonl"


def test_a_perfect_scorer_is_found_perfect_and_leaves_everything(data, tmp_path):
    told = []
    results = evaluate_steps(data, tmp_path / "out", Stub, resamples=50, chunk=5, progress=told.append, settings={"scorer": "stub"})
    figures = results["metrics"]["scorer"]
    for name in ("macro_f1", "process_f1", "first_error_accuracy", "reasoning_recall", "auc"):
        assert figures[name]["value"] == 1, name
    assert figures["perception_recall"] is None and figures["parse_failure_rate"]["value"] == 0
    assert results["scored"] == results["solutions"] == 12 and results["unscored"] == {} and "all" not in results
    assert results["metrics"]["neutral_steps"] == 4 and results["metrics"]["wrong_steps"] == 6
    assert 0 < results["metrics"]["always_right"]["macro_f1"]["value"] < 0.5
    assert set(results["by_source"]) == {"s0", "s1"} and results["by_source"]["s1"]["wrong_steps"] == 6
    assert told[-1] == 12
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    assert Image.open(tmp_path / "out" / "reliability.png").size[0] > 300
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("class='case'") == 12 and "Question &lt;1&gt;?" in page and "step 2 should be: better" in page
    assert page.count("data:image/png;base64,") == 5 and "http" not in page  # four pictures and the plot


def test_steps_reach_the_scorer_one_by_one_as_they_are():
    steps = ("first\n\nwith a gap", "Step 9: looks like a marker\nStep 10: another", "Answer: 3\n**Step 4**: x", "", "last <image>")
    sample = as_sample(StepRecord("r", "Q", steps, answer="secret"))
    split = split_steps(sample.solution, 99)
    assert len(split) == 5 and sample.problem.answer is None
    assert split[0].text.split() == ["first", "with", "a", "gap"] and split[1].text == "looks like a marker Step 10: another"
    assert split[3].text == "(empty)" and split[4].text == "last image"

    class Own:
        def render_solution(self, steps, kinds):
            return " | ".join(f"{kind}: {step}" for step, kind in zip(steps, kinds, strict=True))

    record = StepRecord("r", "Q", ("a", "b"), kinds=("perception", "reasoning"))
    assert as_sample(record, Own()).solution == "perception: a | reasoning: b"  # a scorer with a form of its own


def test_a_long_solution_is_not_merged(tmp_path):
    record = StepRecord("r", "Q", tuple(f"step text {k}" for k in range(40)), labels=(1.0,) * 40)
    (row,) = score_file([record], Stub, tmp_path / "s.jsonl", settings={})
    assert len(row["steps"]) == 40 and row["error"] is None

    class Merging(Stub):
        max_steps = property(lambda self: 3, lambda self, value: None)  # one that cannot be told

    (row,) = score_file([record], Merging, tmp_path / "t.jsonl", settings={})
    assert row["error"] == "the scorer judged 3 steps of 40" and row["value"] is None and row["steps"] == []


def test_what_the_scorer_refuses_is_counted_with_its_reason(tmp_path):
    made = records(tmp_path)
    made[3] = StepRecord("r3", "Q", ("huge", "bad"), labels=(1.0, 0.0))
    made[8] = StepRecord("r8", "Q", ("huge",), labels=(1.0,))
    write_records(tmp_path / "data.jsonl", made)
    results = evaluate_steps(tmp_path / "data.jsonl", tmp_path / "out", Stub, resamples=50)
    assert results["scored"] == 10 and results["unscored"] == {"the prompt has # tokens, more than the # that x can read": 2}
    assert results["metrics"]["solutions"] == 10 and results["metrics"]["scorer"]["macro_f1"]["value"] == 1
    everything = results["all"]
    assert everything["solutions"] == 12 and everything["scorer"]["macro_f1"]["value"] < 1
    unread = everything["scorer"]["parse_failure_rate"]["value"]
    assert unread == pytest.approx(3 / (3 + sum(len(r.steps) for i, r in enumerate(made) if i not in (3, 8))))
    assert "auc" not in everything["scorer"]  # there are no scores of what was not scored
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "out" / "scores.jsonl").read_text().splitlines())}
    assert "1,000 tokens" in rows["r3"]["error"]  # asked alone in the end


def test_other_errors_end_the_run_and_a_wrong_number_of_scores_too():
    def down(samples):
        raise EngineError("the server is down")

    with pytest.raises(EngineError):
        score_or_reason(down, [as_sample(StepRecord("r", "Q", ("a",)))])
    with pytest.raises(InputError, match="0 scores for 2 samples"):
        score_or_reason(lambda samples: [], [as_sample(StepRecord("r", "Q", ("a",)))] * 2)


def test_nothing_scored_leaves_the_baselines(tmp_path):
    write_records(tmp_path / "data.jsonl", [StepRecord("a", "Q", ("huge", "x"), labels=(1.0, 0.0))])
    results = evaluate_steps(tmp_path / "data.jsonl", tmp_path / "out", Stub, resamples=20, settings={"scorer": "stub"})
    assert results["scored"] == 0 and "scorer" not in results["metrics"] and results["metrics"]["always_right"]
    assert not (tmp_path / "out" / "reliability.png").exists()
    assert "nothing was scored" in (tmp_path / "out" / "report.html").read_text()


def test_unread_steps_and_those_after_a_stop(tmp_path):
    stub = Stub(unread={"fine 0"})
    record = StepRecord("r", "Q", ("fine 0", "fine 1"), labels=(1.0, 1.0))
    (row,) = score_file([record], lambda: stub, tmp_path / "a.jsonl", settings={})
    assert row["verdicts"] == [None, True]

    def stopping(samples):
        said = (Verdict(0, True, 0.9), Verdict(1, False, 0.1), Verdict(2, None, None))
        return [Score(0.3, (0.9, 0.1, 0.0), said, 1) for _ in samples]

    record = StepRecord("r", "Q", ("a", "b", "c"), labels=(1.0, 0.0, 0.0))
    (row,) = score_file([record], lambda: stopping, tmp_path / "b.jsonl", settings={})
    assert row["verdicts"] == [True, False, False]  # the critic's own stop is a verdict, not a failure


@pytest.mark.parametrize(
    ("score", "reason"),
    [
        (Score(None, error="no text"), "no text"),
        (Score(None), "the scorer gave no value"),
        (Score(0.5), "the scorer judged 0 steps of 1"),
        (Score(0.5, (1.5,)), "a step score is not between 0 and 1"),
        (Score(0.5, (float("nan"),)), "a step score is not between 0 and 1"),
    ],
)
def test_a_score_without_usable_steps_says_why(tmp_path, score, reason):
    (row,) = score_file([StepRecord("r", "Q", ("a",), labels=(1.0,))], lambda: lambda s: [score], tmp_path / "s.jsonl", settings={})
    assert row["error"] == reason and row["steps"] == [] and row["value"] is None


def test_a_scorer_without_verdicts_is_cut_at_the_threshold(data, tmp_path):
    def plain(samples):
        return [Score(0.6, (0.6,) * len(split_steps(s.solution, 99))) for s in samples]

    found = {}
    for threshold in (None, 0.5, 0.7):
        results = evaluate_steps(data, tmp_path / f"o{threshold}", lambda: plain, threshold=threshold, resamples=10)
        found[threshold] = results["metrics"]["scorer"]["f1_wrong"]["value"]
    assert found[None] == found[0.5] == 0 < found[0.7]


def test_a_killed_run_goes_on_where_it_stopped(data, tmp_path):
    quiet = evaluate_steps(data, tmp_path / "quiet", Stub, resamples=20, chunk=3)
    first, second = Stub(stop_after=6), Stub()
    with pytest.raises(KeyboardInterrupt):
        evaluate_steps(data, tmp_path / "out", lambda: first, resamples=20, chunk=3)
    scores = tmp_path / "out" / "scores.jsonl"
    with scores.open("a") as file:
        file.write('{"id": "r6", "val')  # the kill came in the middle of a line
    results = evaluate_steps(data, tmp_path / "out", lambda: second, resamples=20, chunk=3)
    assert first.seen == [f"r{i}" for i in range(6)] and second.seen == [f"r{i}" for i in range(6, 12)]
    assert {k: v for k, v in results.items() if k != "seconds"} == {k: v for k, v in quiet.items() if k != "seconds"}
    assert scores.read_text() == (tmp_path / "quiet" / "scores.jsonl").read_text()

    def never():
        raise AssertionError("everything is scored")

    evaluate_steps(data, tmp_path / "out", never, resamples=20, chunk=7)


def test_scores_of_another_scorer_or_of_changed_data_are_refused(data, tmp_path):
    evaluate_steps(data, tmp_path / "out", Stub, resamples=10, settings={"scorer": "one"})
    with pytest.raises(InputError, match="scorer was 'one', is 'two'"):
        evaluate_steps(data, tmp_path / "out", Stub, resamples=10, settings={"scorer": "two"})
    changed = records(tmp_path)
    changed[2] = StepRecord("r2", "Other?", ("a",), labels=(1.0,))
    write_records(data, changed)
    with pytest.raises(InputError, match="an earlier version of r2"):
        evaluate_steps(data, tmp_path / "out", Stub, resamples=10, settings={"scorer": "one"})
    (tmp_path / "out" / "scores.jsonl").write_text("nonsense\n")
    with pytest.raises(InputError, match="line 1: is not a score"):
        evaluate_steps(data, tmp_path / "out", Stub, resamples=10, settings={"scorer": "one"})


def test_data_without_labels_is_counted_or_refused(tmp_path):
    write_records(tmp_path / "d.jsonl", [StepRecord("a", "Q", ("x",)), StepRecord("b", "Q", ("x",), judge=(False,))])
    results = evaluate_steps(tmp_path / "d.jsonl", tmp_path / "out", resamples=10)
    assert results["counts"] == {"read": 2, "dropped: no step has a label": 1} and results["solutions"] == 1
    write_records(tmp_path / "e.jsonl", [StepRecord("a", "Q", ("x",))])
    with pytest.raises(InputError, match="no solution has a step label"):
        evaluate_steps(tmp_path / "e.jsonl", tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file; give a folder"):
        evaluate_steps(tmp_path / "d.jsonl", tmp_path / "file")


def test_monte_carlo_labels_are_cut_at_the_truth_threshold(tmp_path):
    write_records(tmp_path / "d.jsonl", [StepRecord("a", "Q", ("x", "y", "z"), mc_scores=(0.6, 0.2, 0.0))])
    wrong = [
        evaluate_steps(tmp_path / "d.jsonl", tmp_path / "out", truth_threshold=t, resamples=5)["metrics"]["wrong_steps"] for t in (0.0, 0.3)
    ]
    assert wrong == [1, 2]


def test_the_worst_cases_come_first():
    from vlrm.prm.evaluate import Case

    def case(name, truth, scores):
        row = {"error": None, "steps": scores, "verdicts": [s >= 0.5 for s in scores]}
        return Case(StepRecord(name, "Q", ("s",) * len(truth)), truth, row)

    cases = [case("good", (True, None), [0.9, 0.0]), case("bad", (False,), [0.8]), case("middling", (True,), [0.5])]
    assert [(round(miss, 2), c.record.id) for miss, c in worst_cases(cases, 2)] == [(0.8, "bad"), (0.5, "middling")]


def test_the_command_with_a_model(tiny_path, data, tmp_path, capsys):
    """A model that was never trained cannot write critiques: every step is unreadable, and one solution is too long for it."""
    made = records(tmp_path, 3)
    made.append(StepRecord("long", "Q", ("word " * 3000,), labels=(1.0,)))
    write_records(data, made)
    folder = tmp_path / "scorer"
    folder.mkdir()
    for path in Path(tiny_path).iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "vlrm.json").write_text(json.dumps({"scorer": "vlrm.prm.gm_prm:GMPRM", "settings": {"max_tokens": 8}}))
    arguments = ["eval", "steps", "--data", str(data), "--scorer", str(folder), "--output", str(tmp_path / "out"), "--resamples", "20"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "not scored: 1, the prompt has # tokens, more than the # that transformers:" in out and "macro-F1 of steps" in out
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["metrics"]["scorer"]["parse_failure_rate"]["value"] == 1 and results["scored"] == 3
    assert results["scorer"]["scorer_files"] and results["all"]["scorer"]["macro_f1"]["value"] == 0


def test_the_command_without_a_scorer_and_what_it_refuses(data, tmp_path, capsys):
    arguments = ["eval", "steps", "--data", str(data), "--scorer", "none", "--output", str(tmp_path / "out"), "--resamples", "20"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "always right" in out and "12 solutions with step labels of 12 rows" in out and "95 % interval" not in out
    assert not (tmp_path / "out" / "scores.jsonl").exists()
    assert cli.main(["eval"]) == 2 and "vlrm eval needs to know what: vlrm eval " in capsys.readouterr().err
    assert cli.main(["eval", "answers"]) == 2 and "vlrm eval steps" in capsys.readouterr().err
    assert cli.main(["eval", "steps", "--help"]) == 0 and "vlrm eval steps [CONFIG.yaml]" in capsys.readouterr().out
    assert cli.main([*arguments, "--threshold", "2"]) == 2 and "threshold must lie between 0 and 1" in capsys.readouterr().err
    missing = [*arguments[:4], *["--scorer", str(tmp_path / "none"), "--output", str(tmp_path / "o2")]]
    assert cli.main(["eval", "steps", "--data", str(data), *missing[4:]]) == 2 and "no such folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "solutions", "wrong", "neutral", "faulty"),
    [("vlrmbench_steps/test.parquet", 184, 371, 0, 184), ("bigbench_mistake/data.jsonl", 2186, 1708, 15859, 1708)],
)
def test_the_real_files(file, solutions, wrong, neutral, faulty, tmp_path):
    if not (REAL / file).is_file():
        pytest.skip(f"{REAL / file} is not here")
    metrics = evaluate_steps(REAL / file, tmp_path / "out", resamples=20)["metrics"]
    assert (metrics["solutions"], metrics["wrong_steps"], metrics["neutral_steps"], metrics["faulty"]) == (
        solutions,
        wrong,
        neutral,
        faulty,
    )
    assert metrics["random"]["macro_f1"]["value"] == pytest.approx(0.5, abs=0.02)
    assert metrics["length"]["auc"]["value"] > 0.6  # both files have the shortcut that their notes warn of
    rows = {row[0]: row[1:] for row in metric_rows(metrics)}
    assert all(len(row) == 3 for row in rows.values()) and "macro-F1 of steps" in rows
