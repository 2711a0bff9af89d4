"""`vlrm eval pairs`: figures worked out by hand, published forms, the blind controls, resuming, and what is left behind."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from vlrm import InputError, Problem, Score, Usage, cli
from vlrm.rm.blind import blinded
from vlrm.rm.card import add_measurement
from vlrm.rm.compare import Comparison, Vote
from vlrm.rm.pair_benchmarks import read_pairs, vl_rewardbench_group
from vlrm.rm.pair_eval import evaluate_pair_file
from vlrm.rm.pair_metrics import JudgedPair, evaluate_pairs


def pair(name, said, group="a", lengths=(3, 3), logit=None, votes=()):
    return JudgedPair(name, group, lengths, Comparison(said, logit, votes=tuple(Vote(*vote) for vote in votes)))


# Figures, worked out by hand


def test_the_three_conventions():
    """Group a: 3 right, 1 wrong, 1 tie, 1 unread. Group b: 1 right, 1 wrong."""
    said = ["first"] * 3 + ["second", "tie", "unparsed"]
    pairs = [pair(f"a{i}", word) for i, word in enumerate(said)] + [pair("b0", "first", "b"), pair("b1", "second", "b")]
    found = evaluate_pairs(pairs, resamples=200)
    values = {name: figure["value"] for name, figure in found["figures"].items() if figure}
    assert values["accuracy_published"] == pytest.approx(4 / 6) and values["macro_published"] == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert values["accuracy_strict"] == pytest.approx(4 / 8) and values["macro_strict"] == pytest.approx((3 / 6 + 1 / 2) / 2)
    assert values["accuracy_half"] == pytest.approx(5 / 8) and values["macro_half"] == pytest.approx((4 / 6 + 1 / 2) / 2)
    assert (values["excluded"], values["ties"], values["unparsed"]) == (0.25, 0.125, 0.125)
    assert found["groups"]["a"]["published"]["value"] == 0.75 and found["groups"]["b"]["pairs"] == 2
    assert found["figures"]["length_correlation"] is None and found["figures"]["order_agreement"] is None and found["reliability"] is None
    low, high = found["figures"]["accuracy_strict"]["ci95"]
    assert 0.1 < low < 0.5 < high < 0.9


def test_an_interval_is_the_bootstrap_of_the_mean():
    pairs = [pair(str(i), "first" if i % 4 else "second") for i in range(400)]
    low, high = evaluate_pairs(pairs, resamples=2000)["figures"]["accuracy_strict"]["ci95"]
    half = 1.96 * math.sqrt(0.75 * 0.25 / 400)
    assert (low, high) == pytest.approx((0.75 - half, 0.75 + half), abs=0.008)


def test_place_and_votes():
    """Pair 1: both orders name the better answer. Pair 2: whatever is shown first wins. Pair 3: one order unread."""
    pairs = [
        pair("1", "first", votes=[(False, "first"), (True, "first")]),
        pair("2", "tie", votes=[(False, "first"), (True, "second")]),
        pair("3", "tie", votes=[(False, "first"), (True, "unparsed")]),
    ]
    found = evaluate_pairs(pairs, resamples=10)
    assert found["figures"]["order_agreement"]["value"] == 0.5
    assert found["figures"]["first_share"]["value"] == pytest.approx((1 + 0 + 1 + 1 + 1) / 5)
    assert found["figures"]["parse_rate"]["value"] == pytest.approx(5 / 6)
    assert found["by_votes"] == [{"votes": 1, "published": 1.0, "strict": 1.0, "excluded": 0.0}]


def test_length():
    """The better answer is longer in two of four pairs, as long in one; the log-odds are twice the difference in words, and 1."""
    gaps = [2, 1, 0, -3]
    pairs = [pair(str(d), "first", lengths=(10 + d, 10), logit=2.0 * d + 1) for d in gaps]
    figures = evaluate_pairs(pairs, resamples=50)["figures"]
    assert figures["longer_wins"]["value"] == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    assert figures["length_correlation"]["value"] == pytest.approx(1)
    free = [pair(str(i), "first", lengths=(10 + d, 10), logit=o) for i, (d, o) in enumerate([(1, 1), (1, -1), (-1, 1), (-1, -1)])]
    assert evaluate_pairs(free, resamples=50)["figures"]["length_correlation"]["value"] == pytest.approx(0, abs=1e-12)


def test_calibration():
    """Three of four pairs are right, and the scorer says 3 to 1 each time: calibrated. Said 9 to 1 it is off by 0.9 - 0.75."""
    right, sure = math.log(3), math.log(9)

    def said(odds):
        return [pair(str(i), "first" if i else "second", logit=odds if i else -odds) for i in range(4)]

    figures = evaluate_pairs(said(right), resamples=20)["figures"]
    assert figures["ece"]["value"] == pytest.approx(0, abs=1e-9) and figures["temperature"]["value"] == pytest.approx(1, abs=0.01)
    figures = evaluate_pairs(said(sure), resamples=20)["figures"]
    assert figures["ece"]["value"] == pytest.approx(0.15, abs=1e-9) and figures["temperature"]["value"] == pytest.approx(2, abs=0.01)


# Published forms


def test_vl_rewardbench_is_read_as_it_is_published(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    rows = [
        {"id": "RLAIF-V-1", "query": "What?", "response": ["bad", "good"], "human_ranking": [1, 0], "image": "x.png"},
        {"id": "mathverse_2", "query": "What?", "response": ["good", "bad"], "human_ranking": [0, 1], "image": "x.png", "judge": "gpt"},
        {"id": "wildvision-3", "query": "What?", "response": ["good", "bad"], "human_ranking": [0, 1], "image": "x.png"},
    ]
    (tmp_path / "vlrb.json").write_text(json.dumps(rows))
    found = read_pairs(tmp_path / "vlrb.json")
    assert [(p.chosen, p.rejected, p.group) for p in found] == [
        ("good", "bad", "hallucination"), ("good", "bad", "reasoning"), ("good", "bad", "general"),
    ]  # fmt: skip
    assert found[0].problem.images == [str(tmp_path / "x.png")] and len(read_pairs(tmp_path / "vlrb.json", limit=2)) == 2
    assert vl_rewardbench_group("hallucination_pair-7") == "hallucination" and vl_rewardbench_group("VLFeedback-9") == "general"
    rows[0]["human_ranking"] = [0, 0]
    (tmp_path / "vlrb.json").write_text(json.dumps(rows))
    with pytest.raises(InputError, match=r"row 1: columns response and human_ranking"):
        read_pairs(tmp_path / "vlrb.json")


def test_multimodal_rewardbench_is_read_as_it_is_published(tmp_path):
    row = {"ID": "q1", "Text": "What?", "Image": None, "Output1": "bad", "Output2": "good", "Better": "Output2", "Category": "safety/bias"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    (found,) = read_pairs(tmp_path / "m.jsonl")
    assert (found.chosen, found.rejected, found.group, found.problem.id) == ("good", "bad", "safety/bias", "q1")


# The blind controls


def test_blind_problems():
    problems = [Problem(f"p{i}", "What?", [f"{i}.png"] if i < 3 else []) for i in range(4)]
    removed, other = blinded(problems, "removed"), blinded(problems, "other", seed=1)
    assert [len(problem.images) if problem else None for problem in removed] == [0, 0, 0, None]
    assert other[3] is None and all(other[i].images != problems[i].images for i in range(3))
    assert sorted(problem.images[0] for problem in other[:3]) == ["0.png", "1.png", "2.png"]
    assert blinded(problems[:1], "other") == [None]
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    (bare,) = blinded([Problem("c", "What?", ["x.png"], meta={"messages": chat})], "removed")
    assert (
        bare.meta["messages"] == [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
        and chat[0]["content"][0]["type"] == "image"
    )


# The whole


class Sighted:
    """Likes the answer that names the picture's colour; without a picture it likes what is longer. Refuses "huge"."""

    def __init__(self, stop_after=None):
        self.usage, self.seen, self.stop_after = Usage(), 0, stop_after

    def __call__(self, samples):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        if any("huge" in sample.solution for sample in samples):
            raise InputError("the prompt has 9,000 tokens, more than the 2,048 that x can read")
        self.seen += len(samples)
        self.usage += Usage(100 * len(samples), 0, len(samples), 0.01)
        return [Score(float(self.like(sample))) for sample in samples]

    def like(self, sample):
        if not sample.problem.images:
            return len(sample.solution)
        return np.asarray(Image.open(sample.problem.images[0]))[0, 0, 0] > 128 if "red" in sample.solution else 0.5


@pytest.fixture
def data(tmp_path):
    rows = []
    for i in range(12):
        color = ("red", "blue")[i % 2]
        Image.new("RGB", (8, 8), color).save(tmp_path / f"{i}.png")
        other = "blue" if color == "red" else "red"
        rows.append({"id": f"r{i}", "prompt": "Color?", "chosen": color, "rejected": other, "images": [f"{i}.png"], "group": f"g{i % 2}"})
    rows.append({**rows[0], "id": "same", "rejected": "red"})
    rows.append({**rows[0], "id": "long", "rejected": "huge"})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "data.jsonl"


def test_a_scorer_that_looks_is_told_from_one_that_does_not(data, tmp_path):
    told = []
    found = evaluate_pair_file(data, tmp_path / "out", Sighted, resamples=50, chunk=5, settings={"scorer": "stub"}, progress=told.append)
    figures = found["metrics"]["figures"]
    assert figures["accuracy_published"]["value"] == 1 and figures["accuracy_strict"]["value"] == pytest.approx(12 / 13)
    assert found["counts"] == {"pairs": 13, "dropped: chosen and rejected are the same": 1}
    assert found["errors"] == {"the prompt has # tokens, more than the # that x can read": 1}
    assert found["blind"]["removed"]["figures"]["accuracy_published"]["value"] == pytest.approx(6 / 12), "blue is longer"
    assert found["blind"]["removed"]["seen"]["accuracy_published"]["value"] == 1
    assert found["blind"]["other"]["figures"]["accuracy_published"]["value"] < 0.9
    assert found["cost"]["read_per_pair"] == pytest.approx(200 * 12 / 13, rel=0.01) and told[-1] == 39
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png;base64" in page and "long" in page and "9,000 tokens" in page and (tmp_path / "out" / "pairs.png").exists()


def test_a_killed_evaluation_goes_on_and_asks_nothing_twice(data, tmp_path):
    whole = evaluate_pair_file(data, tmp_path / "whole", Sighted, resamples=20, chunk=4, settings={"scorer": "stub"})
    with pytest.raises(KeyboardInterrupt):
        evaluate_pair_file(data, tmp_path / "cut", lambda: Sighted(stop_after=10), resamples=20, chunk=4, settings={"scorer": "stub"})
    with (tmp_path / "cut" / "comparisons.jsonl").open("a") as file:
        file.write('{"key": "torn')
    scorers = []
    resumed = evaluate_pair_file(
        data, tmp_path / "cut", lambda: scorers.append(Sighted()) or scorers[0], resamples=20, chunk=4, settings={"scorer": "stub"}
    )
    for name in ("metrics", "blind", "errors", "counts"):
        assert resumed[name] == whole[name], name
    assert len(scorers) == 1 and scorers[0].seen == 2 * 12 * 3 - 16, "two chunks of four pairs were done"

    def never():
        raise AssertionError("everything is there")

    assert (
        evaluate_pair_file(data, tmp_path / "cut", never, resamples=20, chunk=4, settings={"scorer": "stub"})["metrics"] == whole["metrics"]
    )
    with pytest.raises(InputError, match="other settings"):
        evaluate_pair_file(data, tmp_path / "cut", never, resamples=20, chunk=4, settings={"scorer": "another"})


def test_the_place_of_the_better_answer_is_drawn(data, tmp_path):
    """A scorer that always takes the first is at chance, not at 100 %."""

    class First(Sighted):
        def compare(self, pairs):
            self.usage += Usage(1, 1, len(pairs))
            return [Comparison("first", 1.0, votes=(Vote(False, "first"),)) for _ in pairs]

    found = evaluate_pair_file(data, tmp_path / "out", First, blind=(), resamples=20)
    assert 0.2 < found["metrics"]["figures"]["accuracy_strict"]["value"] < 0.8
    assert found["metrics"]["figures"]["first_share"]["value"] == 1


def test_the_card_holds_the_last_measurement(tmp_path):
    assert not add_measurement(tmp_path, "x", "| a |")
    (tmp_path / "vlrm.json").write_text("{}")
    (tmp_path / "README.md").write_text("# Model\n")
    assert (
        add_measurement(tmp_path, "one", "| 1 |")
        and add_measurement(tmp_path, "two", "| 2 |")
        and add_measurement(tmp_path, "one", "| 3 |")
    )
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("# Model\n") and "| 1 |" not in text and text.count("## one") == 1 and text.index("| 3 |") < text.index("| 2 |")


def test_the_command(tiny_path, data, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["eval", "pairs", "--data", str(data), "--scorer", f"transformers:{tiny_path}", "--output", str(out), "--limit", "4"]
    command += ["--scorer_settings", '{"max_tokens": 4}', "--scorer_options", '{"device": "cpu"}', "--resamples", "20"]
    assert cli.main([*command, "--blind", "removed"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    assert "4 pairs" in said and "undecided wrong (strict)" in said and "removed" in said
    assert set(json.loads((out / "results.json").read_text())["blind"]) == {"removed"}
    assert cli.main([*command, "--blind", "sideways"]) == 2 and "unknown blind control" in capsys.readouterr().err
