"""The generative judge: what its words mean, votes and orders, tournaments, preference training, every kind of scorer compared."""

from __future__ import annotations

import json
import math

import pytest

from vlrm import InputError, Pair, Problem, Sample, Score, Usage, cli, load_scorer
from vlrm.rm.compare import Comparison, Vote, compare, from_scores, from_votes
from vlrm.rm.judge import Judge
from vlrm.rm.judgement import majority, published_choice, read_choice, read_rating, verdict_sentence
from vlrm.rm.yes_no import YesNo
from vlrm.serving.engine import Completion
from vlrm.types import Verdict


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Both look well.\n**Overall Judgment:** Answer 2 is better.", "second"),
        ("Therefore, Answer 1 is the slightly better one", "first"),
        ("Answer 1 is better in style, but overall judgment: Answer 2 is better.", "second"),
        ("Response B is clearly better", "second"),
        ("My verdict: [[A]]", "first"),
        ("Better answer: 2", "second"),
        (r"\boxed{1}", "first"),
        ("I think hard.\nB", "second"),
        ("Overall Judgment: Tie.", "tie"),
        ("Both answers are equally good.", "tie"),
        ("[[C]]", "tie"),
        ("I cannot say whether Answer 1 is better", "unparsed"),
        ("", "unparsed"),
        ("There are 2 circles and 1 square.", "unparsed"),
    ],
)
def test_judgements_are_read(text, said):
    assert read_choice(text) == said


def test_the_published_pattern_reads_its_own_sentence_only():
    assert published_choice("*Overall Judgment*:\nAnswer 1 is slightly better") == "first"
    assert published_choice("Therefore I say that Answer 2 is the better one") == "second"
    assert published_choice("Answer 2 is better") == published_choice("[[A]]") == "unparsed"
    for better in (0, 1):
        assert published_choice(verdict_sentence(better)) == read_choice(verdict_sentence(better)) == ("first", "second")[better]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("Score: 7", 7), ("I rate it.\n**Score:** 8/10", 8), (r"\boxed{3}", 3), ("It gets 4 out of 10.", 4), ("fine\n9", 9), ("[[5]]", 5),
        ("Score: 3. No, Score: 6", 6), ("Score: 11", None), ("There are 3 apples.", None), ("", None),
    ],
)  # fmt: skip
def test_ratings_are_read(text, number):
    assert read_rating(text, 1, 10) == number


def test_majorities_are_those_of_vl_rewardbench():
    assert majority(["first", "first", "second"]) == "first"
    assert majority(["first", "unparsed", "unparsed"]) == "tie"  # one of three is no majority
    assert majority(["first", "second"]) == "tie"
    assert majority(["unparsed", "unparsed"]) == "unparsed"


class Talker:
    """An engine whose answer is made by `say(prompt text, draw)`."""

    name = "talker"

    def __init__(self, say):
        self.say, self.usage, self.requests = say, Usage(), []

    def generate(self, requests):
        self.requests += requests
        self.usage += Usage(10 * len(requests), 5 * len(requests), len(requests), 0.1)
        return [[Completion(self.say(r.messages[-1]["content"][-1]["text"], k)) for k in range(r.n)] for r in requests]

    def choice_logprobs(self, requests, choices):
        return [{"Yes": math.log(0.6), "No": math.log(0.2)} for _ in requests]


def good_is_better(text, draw):
    first = text.split("Answer 2:")[0]
    return f"Overall Judgment: Answer {1 if 'good' in first else 2} is better."


PAIRS = [Pair(Problem("a", "Color?"), "good", "bad", 0), Pair(Problem("b", "Color?"), "bad", "good", 1)]


def test_a_judge_sees_both_orders_and_answers_for_the_pair():
    judge = Judge(Talker(good_is_better))
    found = compare(judge, PAIRS)
    assert [one.said for one in found] == ["first", "second"]
    assert [[vote.swapped for vote in one.votes] for one in found] == [[False, True]] * 2
    assert found[0].logit == pytest.approx(math.log(2.5 / 0.5)) and found[1].logit == pytest.approx(-math.log(5))
    assert judge.usage.calls == 4 and judge.counts["judgements"] == 4 and judge.parse_failure_rate == 0
    biased = compare(Judge(Talker(lambda text, draw: "Answer 1 is better")), PAIRS)
    assert [one.said for one in biased] == ["tie", "tie"] and all(vote.shown_first for one in biased for vote in one.votes)
    silent = Judge(Talker(lambda text, draw: "hm"))
    assert compare(silent, PAIRS)[0] == Comparison("unparsed", None, None, (Vote(False, "unparsed"), Vote(True, "unparsed")), ("hm", "hm"),
                                                   "no judgement could be read")  # fmt: skip
    assert silent.parse_failure_rate == 1


def test_votes_and_random_orders():
    judge = Judge(Talker(good_is_better), votes=9, orders="random", temperature=0.2, top_p=0.2)
    one = judge.compare(PAIRS[:1])[0]
    assert len(one.votes) == 9 and {vote.swapped for vote in one.votes} == {False, True} and one.said == "first"
    assert judge.compare(PAIRS[:1])[0] == one, "the orders hang on the seed and the pair"
    numbered = Judge(Talker(lambda text, draw: f"draw {draw}: Answer 1 is better"), votes=2, temperature=1.0).compare(PAIRS[:1])[0]
    assert [(vote.swapped, text[5]) for vote, text in zip(numbered.votes, numbered.texts, strict=True)] == [
        (False, "0"), (True, "0"), (False, "1"), (True, "1"),
    ]  # fmt: skip
    with pytest.raises(InputError, match="temperature"):
        Judge(Talker(good_is_better), votes=3)


def test_a_tournament_makes_scores_of_comparisons():
    problem = Problem("a", "Color?")
    samples = [Sample(problem, text) for text in ("bad", "good", "bad")] + [Sample(Problem("z", "Else?"), "alone")]
    scores = Judge(Talker(good_is_better))(samples)
    assert [score.value for score in scores] == [0.25, 1.0, 0.25, None] and "others of the same problem" in scores[3].error
    few = Judge(Talker(good_is_better), rivals=1)([Sample(problem, f"{'good' if i == 2 else 'bad'} {i}") for i in range(4)])
    assert few[2].value == 1 and few[0].details["games"] == 2


def test_a_pointwise_judge_rates_and_counts_what_it_cannot_read():
    judge = Judge(Talker(lambda text, draw: ("Score: 10", "Score: 4", "none")[draw]), mode="pointwise", votes=3, temperature=1.0)
    (score,) = judge([Sample(Problem("a", "Color?"), "x")])
    assert score.value == pytest.approx((7 - 1) / 9) and score.details["ratings"] == [10, 4, None]
    assert judge.counts["unparsed"] == 1 and "from 1 (useless) to 10" in judge.instructions
    found = compare(judge, PAIRS[:1])
    assert found[0].said == "tie" and found[0].logit == 0


def test_yes_no_is_the_two_way_probability():
    (score,) = YesNo(Talker(good_is_better))([Sample(Problem("a", "Color?"), "x")])
    assert score.value == pytest.approx(0.75) and score.details["mass"] == pytest.approx(0.8)


def test_scores_make_comparisons():
    assert from_scores(Score(2.0), Score(-1.0)) == Comparison("first", 3.0, (2.0, -1.0))
    steps = [Score(value, steps=(value,), verdicts=(Verdict(0, True, value),)) for value in (0.5, 0.9)]
    assert from_scores(*steps).logit == pytest.approx(-math.log(9)) and from_scores(*steps).said == "second"
    assert from_scores(Score(None, error="torn"), Score(1.0)).error == "torn"
    assert from_votes([]).said == "unparsed"


# For real, on the tiny random model


def test_every_kind_of_scorer_compares(tiny_path, pictures):
    pairs = [Pair(Problem("a", "Color?", [pictures[0]]), "Step 1: red.\nAnswer: red", "Step 1: blue.\nAnswer: blue", 0)]
    for method, settings in (("gm_prm", {"max_tokens": 8}), ("vl_prm", {"system": ""}), ("judge", {"max_tokens": 4}), ("yes_no", {})):
        scorer = load_scorer(f"transformers:{tiny_path}", method=method, engine_options={"device": "cpu"}, **settings)
        (one,) = compare(scorer, pairs)
        assert one.said in ("first", "second", "tie", "unparsed") and scorer.usage.calls >= 2, method
    with pytest.raises(InputError, match="with a head"):
        load_scorer(f"transformers:{tiny_path}", method="scalar", engine_options={"device": "cpu"})


def test_preference_training_teaches_the_verdict(tiny_path, tmp_path, pictures, capsys):
    for i in range(4):
        pictures[i].save(tmp_path / f"{i}.png")
    rows = [{"prompt": "Color?", "chosen": f"good {i}", "rejected": f"bad {i}", "images": [f"{i % 4}.png"]} for i in range(6)]
    rows.append({**rows[0], "rejected": rows[0]["chosen"]})
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    train = ["train", "--method", "dpo_judge", "--model", tiny_path, "--data", str(tmp_path / "data.jsonl"), "--progress", "false"]
    train += ["--batch_size", "4", "--workers", "0", "--bf16", "false", "--instructions", "Better?", "--logging_steps", "1"]
    full = [*train, "--output_dir", str(tmp_path / "judge"), "--max_steps", "6", "--learning_rate", "1e-3", "--sft_weight", "1"]
    assert cli.main(full) == 0, capsys.readouterr().err
    card = json.loads((tmp_path / "judge" / "vlrm.json").read_text())
    assert card["training"]["counts"] == {"comparisons": 12, "dropped: chosen and rejected are the same": 2}
    assert card["settings"]["instructions"] == "Better?" and 4 < card["settings"]["max_tokens"] < 60
    losses = [row["loss"] for row in map(json.loads, (tmp_path / "judge" / "metrics.jsonl").read_text().splitlines()) if "loss" in row]
    assert losses[-1] < losses[0]
    judge = load_scorer(tmp_path / "judge", engine_options={"device": "cpu"})
    assert isinstance(judge, Judge) and judge.compare(PAIRS)[0].votes
    lora = [*train, "--output_dir", str(tmp_path / "lora"), "--max_steps", "1", "--lora", "true", "--form", "judgements"]
    assert cli.main(lora) == 0, capsys.readouterr().err
    assert (tmp_path / "lora" / "adapter_config.json").exists()
    assert load_scorer(tmp_path / "lora", engine_options={"device": "cpu"}, max_tokens=4).compare(PAIRS)
