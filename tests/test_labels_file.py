"""Labels of a file: kills, shards and merging give the bytes of one quiet run; mistakes end in one line; Ray runs the same function."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import random

import pytest

from vlrm import Completion, InputError, Problem, Usage, cli, serving
from vlrm.data_synth import make_problems
from vlrm.data_synth.labels.file import Status, label_file, model_stamp, shard_path
from vlrm.data_synth.labels.journal import Journal, Journaled
from vlrm.data_synth.labels.label import label_problems
from vlrm.data_synth.labels.merge import find_shards, merge_labels
from vlrm.data_synth.labels.on_ray import label_on_ray
from vlrm.data_synth.labels.tell import duration, label_balance, tell
from vlrm.prm.record_files import read_records
from vlrm.prm.steps import split_steps
from vlrm.serving.engine import Request


class Policy:
    """Writes four steps from any prefix, wrong ones by chance; can be made to die in a call."""

    name = "stub"

    def __init__(self, die_at=None):
        self.die_at, self.calls, self.sequences, self.usage = die_at, 0, 0, Usage()

    def generate(self, requests):
        if self.calls == self.die_at:
            raise KeyboardInterrupt
        self.calls += 1
        self.sequences += sum(request.n for request in requests)
        return [[self.complete(request, sample) for sample in range(request.n)] for request in requests]

    def complete(self, request, sample):
        rng = random.Random(f"{request.seed} {sample} {request.prefix}")
        steps = [f"Step {i + 1}: {rng.choice(['fine', 'fine', 'BAD'])}" for i in range(len(split_steps(request.prefix)), 4)]
        bad = "BAD" in request.prefix + "".join(steps)
        return Completion(("\n" if request.prefix else "") + "\n".join([*steps, f"Answer: {5 if bad else 7}"]), (), "stop", 9, 4)


PROBLEMS = [Problem(f"p{i}", f"Question {i}?", [], "7" if i % 5 else None) for i in range(11)]
SETTINGS = {"method": "binary", "samples": 3, "k": 2, "insertions": 0}


def make(output, engine=None, problems=PROBLEMS, settings=SETTINGS, **options):
    engine = engine or Policy()

    def label(batch, wrap):
        return label_problems(batch, wrap(lambda: engine, "stub"), **settings)

    return label_file(problems, label, output, settings=settings, chunk=2, batch=8, **options)


def contents(path):
    return path.read_bytes(), path.with_name(path.name + ".report.json").read_bytes()


@pytest.fixture(scope="module")
def quiet(tmp_path_factory):
    path = tmp_path_factory.mktemp("quiet") / "labels.jsonl"
    make(path)
    return path


@pytest.mark.parametrize("method", ["flat", "binary", "omega"])
def test_a_run_that_is_killed_again_and_again_gives_the_same_bytes_and_asks_nothing_twice(tmp_path, method):
    settings = {**SETTINGS, "method": method, "samples": 6}
    one, other = tmp_path / "a" / "labels.jsonl", tmp_path / "b" / "labels.jsonl"
    engine = Policy()
    report = make(one, engine, settings=settings)
    kills, sequences = 0, 0
    while True:
        mortal = Policy(die_at=3)
        try:
            make(other, mortal, settings=settings)
            break
        except KeyboardInterrupt:
            kills += 1
            for name in ("labels.jsonl.part", "labels.jsonl.calls"):
                with other.with_name(name).open("ab") as file:
                    file.write(b'{"torn')
        finally:
            sequences += mortal.sequences
    assert kills >= 5 and contents(one) == contents(other)
    assert sequences == engine.sequences
    assert {path.name for path in other.parent.iterdir()} == {"labels.jsonl", "labels.jsonl.report.json"}
    assert report["counts"]["records"] == len(read_records(one)) and report["counts"]["no_gold_answer"] == 3
    again = Policy()
    assert make(other, again, settings=settings) == report and again.calls == 0


def test_three_shards_merge_to_the_bytes_of_one_run(tmp_path, quiet):
    output = tmp_path / "labels.jsonl"
    for index in (3, 1, 2):
        make(output, shard=(index, 3))
    assert find_shards(output) == [shard_path(output, (index, 3)) for index in (1, 2, 3)]
    merge_labels([], output)
    assert contents(output) == contents(quiet)


def test_more_shards_than_chunks_leave_some_empty(tmp_path, quiet):
    output = tmp_path / "labels.jsonl"
    reports = [make(output, shard=(index, 8)) for index in range(1, 9)]
    assert reports[7]["chunks"] == [] and shard_path(output, (8, 8)).read_bytes() == b""
    merge_labels([], output)
    assert contents(output) == contents(quiet)


def test_merging_refuses_gaps_duplicates_damage_and_other_settings(tmp_path):
    output = tmp_path / "labels.jsonl"
    for index in (1, 2, 3):
        make(output, shard=(index, 3))
    one, two, three = find_shards(output)
    with pytest.raises(InputError, match=r"problems 3 to 4 and 1 more pieces are in no shard.*--shard 2/3"):
        merge_labels([one, three], output)
    with pytest.raises(InputError, match="named twice"):
        merge_labels([one, one, two, three], output)
    make(tmp_path / "whole.jsonl")
    with pytest.raises(InputError, match="problems 1 to 2 are in both"):
        merge_labels([one, two, three, tmp_path / "whole.jsonl"], output)
    make(tmp_path / "other.jsonl", settings={**SETTINGS, "k": 4}, shard=(2, 3))
    with pytest.raises(InputError, match=r"other-2-of-3.jsonl does not belong to .*k was 4, is 2"):
        merge_labels([one, shard_path(tmp_path / "other.jsonl", (2, 3)), three], output)
    make(tmp_path / "more.jsonl", problems=PROBLEMS[:-1], shard=(2, 3))
    with pytest.raises(InputError, match="the problems have changed"):
        merge_labels([one, shard_path(tmp_path / "more.jsonl", (2, 3)), three], output)
    whole = two.read_bytes()
    two.write_bytes(whole[: whole.rfind(b"\n", 0, -1) + 1])
    with pytest.raises(InputError, match="not as `vlrm synth labels` left it"):
        merge_labels([], output)
    two.with_name(two.name + ".report.json").unlink()
    with pytest.raises(InputError, match="not finished"):
        merge_labels([], output)
    with pytest.raises(InputError, match="no shards"):
        merge_labels([], tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="no such file"):
        merge_labels([tmp_path / "gone.jsonl"], output)
    assert not output.exists()


def test_a_file_of_other_settings_or_problems_is_left_alone(tmp_path, quiet):
    output = tmp_path / "labels.jsonl"
    with pytest.raises(KeyboardInterrupt):
        make(output, Policy(die_at=2))
    with pytest.raises(InputError, match=r"begun with other settings \(k was 2, is 3"):
        make(output, settings={**SETTINGS, "k": 3})
    make(output)
    assert contents(output) == contents(quiet)
    with pytest.raises(InputError, match="made with other settings"):
        make(output, settings={**SETTINGS, "k": 3})
    with pytest.raises(InputError, match="the problems have changed"):
        make(output, problems=[*PROBLEMS[:-1], Problem("p10", "Another?", [], "7")])
    (tmp_path / "mine.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match="not made by this command"):
        make(tmp_path / "mine.jsonl")
    with pytest.raises(InputError, match="have the id 'p1'"):
        make(tmp_path / "new.jsonl", problems=[PROBLEMS[1], PROBLEMS[1]])
    for shard in ((0, 3), (4, 3)):
        with pytest.raises(InputError, match="shard must be"):
            make(tmp_path / "new.jsonl", shard=shard)


def test_a_model_is_known_by_its_files_wherever_they_lie(tmp_path):
    for name, weights in (("a", b"weights"), ("b", b"weights"), ("c", b"retrained"), ("d", b"Weights")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    stamps = [model_stamp(f"vllm:{tmp_path / name}") for name in "abcd"]
    assert stamps[0] == stamps[1] and len(set(stamps)) == 3 and model_stamp("http://host/v1") is None is model_stamp(None)


def test_pictures_in_memory_keep_their_places_when_shards_move(tmp_path, pictures):
    problems = [Problem(f"p{i}", "What?", [pictures[i]], "7") for i in range(4)]
    output = tmp_path / "a" / "labels.jsonl"
    for index in (1, 2):
        make(output, problems=problems, shard=(index, 2))
    merge_labels(find_shards(output), tmp_path / "b" / "merged.jsonl")
    records = read_records(tmp_path / "b" / "merged.jsonl")
    assert len(records) == 12 and all(record.images for record in records)


def test_the_journal_keeps_batches_and_asks_on_from_where_they_differ(tmp_path):
    asks = [Request([{"role": "user", "content": str(i)}], n=2, seed=i) for i in range(5)]
    engine, told = Policy(), []
    path = tmp_path / "calls"
    first = Journaled(lambda: engine, "stub", Journal(path, 0, told.append), batch=4).generate(asks)
    assert engine.calls == 3 and told == [4, 4, 2]
    journaled = Journaled(lambda: engine, "stub", Journal(path, 0), batch=4)
    assert journaled.generate(asks) == first and engine.calls == 3
    assert journaled.usage == Usage(20, 90, 10)
    Journaled(lambda: engine, "stub", Journal(path, 1), batch=4).generate(asks)
    assert engine.calls == 6
    changed = [*asks[:2], Request([{"role": "user", "content": "else"}], n=2, seed=2), *asks[3:]]
    Journaled(lambda: engine, "stub", Journal(path, 0), batch=4).generate(changed)
    assert engine.calls == 8


def test_what_is_said_while_it_runs(tmp_path):
    lines = []
    make(tmp_path / "labels.jsonl", progress=tell((2, 3), lines.append, every=1e9), shard=(2, 3))
    assert len(lines) == 2 and lines[0].startswith("shard 2/3: 2 of 4 problems, ") and "left" in lines[0] and "% right" in lines[0]
    assert label_balance({}) == "no labels yet" and duration(30) == "30 s" and duration(600) == "10 min" and duration(8000) == "2.2 h"
    told = []
    tell((1, 1), told.append, every=0.0)(Status(0, 9, 12, {}, None))
    assert told == ["0 of 9 problems, 12 sequences asked for, no labels yet"]


# The command


@pytest.fixture
def stub_engines(monkeypatch):
    loaded = []
    monkeypatch.setattr(serving, "load_engine", lambda spec, **options: loaded.append((spec, options)) or Policy(), raising=False)
    return loaded


def problems_file(path, problems=PROBLEMS):
    rows = [{"id": p.id, "question": p.question, "images": [], "answer": p.answer} for p in problems]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labels(tmp_path, **options):
    given = {"problems": str(tmp_path / "problems.jsonl"), "policy": "stub", "output": str(tmp_path / "labels.jsonl"), **options}
    return cli.main(["synth", "labels", *(part for name, value in given.items() for part in (f"--{name}", str(value)))])


def test_the_command_makes_shards_and_merges_them(tmp_path, stub_engines, capsys):
    problems_file(tmp_path / "problems.jsonl")
    common = {"method": "binary", "samples": 2, "k": 2, "chunk": 2}
    assert labels(tmp_path, **common) == 0
    printed = capsys.readouterr().out
    assert "11 of 11 problems" in printed and "no gold answer: 3" in printed and "step records in" in printed
    assert stub_engines == [("stub", {})]
    for index in (1, 2):
        assert labels(tmp_path, **common, output=tmp_path / "parts.jsonl", shard=f"{index}/2") == 0
    assert cli.main(["synth", "merge", "--output", str(tmp_path / "parts.jsonl")]) == 0
    assert (tmp_path / "parts.jsonl").read_bytes() == (tmp_path / "labels.jsonl").read_bytes()
    assert contents(tmp_path / "parts.jsonl") == contents(tmp_path / "labels.jsonl")
    assert labels(tmp_path, **common, output=tmp_path / "many.jsonl", shard="9/9") == 0
    assert "no problem falls to this shard" in capsys.readouterr().out
    assert labels(tmp_path, **{**common, "k": 3}) == 2 and "k was 2, is 3" in capsys.readouterr().err


@pytest.mark.parametrize(("options", "message"), [
    ({"rule": "hybrid"}, "needs a judge"), ({"shard": "3"}, "shard must be i/n"), ({"shard": "4/3"}, "shard must be i/n"),
    ({"checker": "no:such"}, "cannot load the checker"), ({"temperature": "0"}, "temperature"), ({"method": "mcts"}, "--method"),
    ({"output": "labels.csv"}, ".jsonl"), ({"tree": '{"a": 1}'}, "no setting"), ({"problems": "none.jsonl"}, "no such file"),
    ({"max_tokens": "0"}, "max_tokens"), ({"top_p": "2"}, "top_p"),
])  # fmt: skip
def test_mistakes_are_found_before_a_model_is_loaded(tmp_path, stub_engines, capsys, options, message):
    problems_file(tmp_path / "problems.jsonl")
    assert labels(tmp_path, **options) == 2
    assert message in capsys.readouterr().err and stub_engines == []


def test_problems_without_any_gold_answer_are_refused(tmp_path, stub_engines, capsys):
    problems_file(tmp_path / "problems.jsonl", [Problem("a", "What?"), Problem("b", "Who?")])
    assert labels(tmp_path) == 2 and "no problem has a gold answer" in capsys.readouterr().err and stub_engines == []


def test_a_policy_that_never_ends_is_said_so(tmp_path, monkeypatch, capsys):
    class Rambler(Policy):
        def complete(self, request, sample):
            return Completion("Step 1: on and on", (), "length", 9, 4)

    monkeypatch.setattr(serving, "load_engine", lambda spec, **options: Rambler(), raising=False)
    problems_file(tmp_path / "problems.jsonl")
    assert labels(tmp_path, max_tokens=9) == 2
    assert "all solutions ran into max_tokens 9" in capsys.readouterr().err


def test_a_judge_of_prose_and_a_checker_that_raises_give_no_labels(tmp_path, monkeypatch, capsys):
    class Prose(Policy):
        def complete(self, request, sample):
            return Completion("I am sure that this is fine.", (), "stop", 9, 4)

    engines = {"stub": Policy, "prose": Prose}
    monkeypatch.setattr(serving, "load_engine", lambda spec, **options: engines[spec](), raising=False)
    problems_file(tmp_path / "problems.jsonl")
    assert labels(tmp_path, method="judge", rule="judge", judge="prose") == 2
    out = capsys.readouterr()
    assert "judge unread: no conclusion: 11" in out.out and "no record was made" in out.err
    (tmp_path / "checks_that_raise.py").write_text("def check(solution, problem):\n    raise ValueError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert labels(tmp_path, output=tmp_path / "b.jsonl", checker="checks_that_raise:check") == 2
    out = capsys.readouterr()
    assert "checker failed: " in out.out and "dropped: no step is labelled: 8" in out.out


def test_judges_of_the_command_must_agree(tmp_path, monkeypatch, capsys):
    class Judge(Policy):
        def __init__(self, conclusion):
            super().__init__()
            self.conclusion = conclusion

        def complete(self, request, sample):
            return Completion(f"<analysis_1>so</analysis_1><conclusion>{self.conclusion}</conclusion>", (), "stop", 3, 4)

    engines = {"stub": Policy(), **{name: Judge(said) for name, said in (("a", "Correct"), ("b", "Correct"), ("c", "Incorrect"))}}
    monkeypatch.setattr(serving, "load_engine", lambda spec, **options: engines[spec], raising=False)
    problems_file(tmp_path / "problems.jsonl")
    common = {"method": "judge", "rule": "judge", "judge": "a"}
    assert labels(tmp_path, **common, judges="b") == 0
    assert "judges agree: 11" in capsys.readouterr().out and len(read_records(tmp_path / "labels.jsonl")) == 11
    report = json.loads((tmp_path / "labels.jsonl.report.json").read_text())
    assert report["settings"]["judges"] == ["b"] and report["settings"]["judges_agree"] == "first_error"
    assert labels(tmp_path, **common, judges="c") == 2 and "judges was ['b'], is ['c']" in capsys.readouterr().err
    assert labels(tmp_path, **common, judges="c", output=tmp_path / "c.jsonl") == 2
    assert "dropped: judges disagree: 11" in capsys.readouterr().out
    assert labels(tmp_path, **common, judges="c", judges_agree="read", output=tmp_path / "d.jsonl") == 0
    assert labels(tmp_path, judges="c", output=tmp_path / "e.jsonl") == 2 and "with --judge" in capsys.readouterr().err


def test_the_old_form_of_synth_still_works(tmp_path):
    assert cli.main(["synth", "--n", "2", "--output", str(tmp_path / "problems")]) == 0
    assert (tmp_path / "problems" / "problems.jsonl").is_file()


# Ray


def ray_runner(folder):
    return lambda shard: make(f"{folder}/labels.jsonl", shard=shard)


def ray_fails(folder):
    def run(shard):
        raise InputError(f"shard {shard[0]} cannot be made")

    return run


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed (pip install 'vlrm[ray]')")
def test_two_ray_workers_make_the_same_bytes(tmp_path, quiet, monkeypatch):
    import ray
    from ray import cloudpickle

    monkeypatch.setenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    cloudpickle.register_pickle_by_value(importlib.import_module(__name__))
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error")
    try:
        assert label_on_ray(functools.partial(ray_runner, str(tmp_path)), 3, 2) == [1, 2, 3]
        merge_labels([], tmp_path / "labels.jsonl")
        assert contents(tmp_path / "labels.jsonl") == contents(quiet)
        with pytest.raises(InputError, match="shard 1 cannot be made"):
            label_on_ray(functools.partial(ray_fails, str(tmp_path)), 2, 2)
    finally:
        ray.shutdown()


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install \"vlrm\[ray\]\""):
        label_on_ray(lambda: None, 2, 2)


# The tiny policy


def test_the_tiny_policy_through_the_command(tmp_path, capsys):
    make_problems(["grid"], "test", 2, 5, tmp_path)
    options = {"policy": "tiny-policy", "method": "flat", "k": 2, "max_tokens": 160, "temperature": 0.6, "chunk": 1}
    assert labels(tmp_path, **options) == 0
    for index in (1, 2):
        assert labels(tmp_path, **options, output=tmp_path / "parts.jsonl", shard=f"{index}/2") == 0
    assert cli.main(["synth", "merge", "--output", str(tmp_path / "parts.jsonl")]) == 0
    assert contents(tmp_path / "parts.jsonl") == contents(tmp_path / "labels.jsonl")
