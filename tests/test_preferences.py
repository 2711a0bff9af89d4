"""Preferences from the worlds: right against wrong, of like length, with the error's kind and place."""

from __future__ import annotations

import json

import pytest

from vlrm import Completion, InputError, Usage, cli
from vlrm.data_synth import WORLDS, judge_steps, load_problems
from vlrm.data_synth import preferences as module
from vlrm.data_synth.preferences import make_preferences
from vlrm.data_synth.problems import truth_of
from vlrm.data_synth.worlds.base import format_solution, right_solution
from vlrm.prm.steps import split_steps
from vlrm.rm.preferences import read_preferences


def errors(problem, text):
    return [truth.error for truth in judge_steps(problem, [step.text for step in split_steps(text)])]


def test_the_worlds_make_exact_preferences(tmp_path):
    counts = make_preferences(list(WORLDS), "dev", 30, 0, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "preferences.jsonl").read_text().splitlines()]
    problems = {problem.id: problem for problem in load_problems(tmp_path / "problems.jsonl")}
    assert counts["preferences"] == len(rows) and counts["preferences"] + counts["dropped: no pair of like length"] == 30 and len(rows) > 20
    for row in rows:
        problem = problems[row["id"]]
        assert not any(errors(problem, row["chosen"]))
        found = errors(problem, row["rejected"])
        assert found[row["first_error"]] == row["kind"] and not any(found[: row["first_error"]])
        assert abs(len(row["chosen"].split()) - len(row["rejected"].split())) <= 2
    assert {row["kind"] for row in rows} == {"perception", "reasoning"} and {row["group"] for row in rows} == set(WORLDS)
    (item, *_) = read_preferences(tmp_path / "preferences.jsonl")
    assert item.problem.images[0].endswith(".png") and item.group in WORLDS


class Policy:
    """One right and one wrong solution for every problem that it knows."""

    name = "policy"

    def __init__(self, problems):
        self.usage, self.texts = Usage(), {}
        for problem in problems:
            world, scene = truth_of(problem)
            right = format_solution(right_solution(world, scene))
            self.texts[problem.question, str(problem.images[0])] = [right, right.replace("Answer: ", "Answer: 9")]

    def generate(self, requests):
        key = [(r.messages[0]["content"][-1]["text"], str(r.images[0])) for r in requests]
        return [[Completion(text) for text in self.texts[k]] for k in key]


def test_statements_are_true_and_wrong_of_the_same_place(tmp_path):
    counts = make_preferences(list(WORLDS), "dev", 9, 0, tmp_path, of="statements", statements=3)
    items = read_preferences(tmp_path / "preferences.jsonl")
    assert counts["problems"] == 9 and counts["preferences"] == len(items) > 20 and "dropped: no pair of like length" not in counts
    problems = {problem.id: problem for problem in load_problems(tmp_path / "problems.jsonl")}
    for item in items:
        world, scene = truth_of(problems[item.problem.id.rsplit("-", 1)[0]])
        lines = [line[: k + 1] for line in world.facts(scene) for k in range(len(line))]
        said = {"".join(f"{head} {value}" for head, value in line) + "." for line in lines}
        assert item.chosen in said and item.rejected not in said and item.group == world.name
        assert len(item.chosen.split()) == len(item.rejected.split())
    make_preferences(list(WORLDS), "dev", 9, 0, tmp_path / "again", of="statements", statements=3)
    assert (tmp_path / "again" / "preferences.jsonl").read_text() == (tmp_path / "preferences.jsonl").read_text()
    for wrong in ({"of": "poems"}, {"of": "statements", "policy": object()}, {"statements": 0}):
        with pytest.raises(InputError):
            make_preferences(["ladder"], "dev", 2, 0, tmp_path / "bad", **wrong)


def test_samples_of_a_policy_are_taken_where_there_are_such(tmp_path):
    make_preferences(["ladder"], "dev", 4, 0, tmp_path / "a")
    problems = load_problems(tmp_path / "a" / "problems.jsonl")
    policy = Policy(problems)
    policy.texts = {(question, path.replace("/a/", "/b/")): texts for (question, path), texts in policy.texts.items()}
    make_preferences(["ladder"], "dev", 4, 0, tmp_path / "b", policy=policy, samples=2)
    rows = [json.loads(line) for line in (tmp_path / "b" / "preferences.jsonl").read_text().splitlines()]
    assert rows and all((row["chosen_source"], row["rejected_source"]) == ("sampled", "sampled") for row in rows)
    assert all("Answer: 9" in row["rejected"] and row["kind"] == "reasoning" for row in rows)


def test_a_killed_run_goes_on(tmp_path, monkeypatch):
    whole = make_preferences(["bars"], "dev", 12, 0, tmp_path / "whole", chunk=4)
    real, calls = module.preference_row, []

    def killed(*arguments):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(module, "preference_row", killed)
    with pytest.raises(KeyboardInterrupt):
        make_preferences(["bars"], "dev", 12, 0, tmp_path / "cut", chunk=4)
    assert not (tmp_path / "cut" / "preferences.jsonl").exists()
    with pytest.raises(InputError, match="other settings"):
        make_preferences(["bars"], "dev", 12, 0, tmp_path / "cut", chunk=4, heavy=0.1)
    made = []
    monkeypatch.setattr(module, "preference_row", lambda *arguments: made.append(1) or real(*arguments))
    assert make_preferences(["bars"], "dev", 12, 0, tmp_path / "cut", chunk=4) == whole and len(made) == 8, "one chunk was done"
    texts = [(tmp_path / name / "preferences.jsonl").read_bytes() for name in ("whole", "cut")]
    assert texts[0] == texts[1]


def test_the_command(tmp_path, capsys):
    assert cli.main(["synth", "preferences", "--n", "3", "--split", "dev", "--output", str(tmp_path / "out"), "--worlds", "grid"]) == 0
    assert "preferences" in capsys.readouterr().out and (tmp_path / "out" / "preferences.jsonl").exists()
