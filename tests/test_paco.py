"""PaCo-Reward as a scorer: probabilities, instructions, sets of pictures, the cache."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlrm import InputError, Problem, Sample, Usage
from vlrm.rm.load import METHODS, resolve
from vlrm.rm.paco import PaCo, add_spellings, yes_probability
from vlrm.rm.paco_cache import ChoiceCache, image_digest, request_key
from vlrm.rm.paco_prompt import PAIR, PairStyle, ask_criterion, ask_edit_following, ask_theme, pair_problem, questions_of
from vlrm.rm.paco_sets import all_pairs, edit_reward, grid_boxes, parse_layout, set_reward, split_grid


def colour(name, size=(8, 8)):
    return Image.new("RGB", size, name)


RED, BLUE, GREEN = colour("red"), colour("blue"), colour("green")


class Stub:
    """lY - lN is what `gap(question, first, second)` says of the pictures' colours."""

    def __init__(self, gap=lambda question, first, second: 0.0):
        self.gap, self.name, self.usage, self.asked = gap, "stub", Usage(), []

    def choice_logprobs(self, requests, choices):
        self.asked += requests
        self.usage += Usage(10 * len(requests), 0, len(requests))
        answers = []
        for request in requests:
            seen = [image.getpixel((0, 0)) for image in request.images]
            gap = self.gap(request.messages[-1]["content"][-1]["text"], *seen)
            answers.append({word: (gap - 1 if k < len(choices) / 2 else -1.0) for k, word in enumerate(choices)})
        return answers


def sample(images, question=PAIR, **meta):
    return Sample(Problem("p", question, images, meta=meta), "")


# The probability


# Trainings before it in the same process flush subnormal numbers.
@given(st.floats(-50, 0, allow_subnormal=False), st.floats(-50, 0, allow_subnormal=False))
def test_the_score_is_the_share_of_yes(yes, no):
    assert yes_probability(yes, no) == pytest.approx(math.exp(yes) / (math.exp(yes) + math.exp(no)), abs=1e-12)
    assert yes_probability(yes, no) + yes_probability(no, yes) == pytest.approx(1)


def test_words_that_are_not_listed():
    assert yes_probability(-3.0, -math.inf) == 1 and yes_probability(-math.inf, -3.0) == 0
    assert yes_probability(-math.inf, -math.inf) is None and yes_probability(math.nan, -1.0) is None
    assert yes_probability(-1000.0, 0.0) == pytest.approx(0) and yes_probability(0.0, -1000.0) == pytest.approx(1)


def test_spellings_are_added():
    assert add_spellings([math.log(0.2), math.log(0.3)]) == pytest.approx(math.log(0.5))
    assert add_spellings([-math.inf, -math.inf]) == -math.inf
    scorer = PaCo(Stub(lambda *_: 1.0), spellings=[["yes", "YES"], ["no", "NO"]])
    score = scorer([sample([RED, BLUE])])[0]
    assert score.value == pytest.approx(1 / (1 + math.exp(-1.0)))
    with pytest.raises(InputError, match="two lists"):
        PaCo(Stub(), spellings=["yes", "no"])


# The scorer


def test_a_pair_is_asked_in_both_orders_and_averaged():
    engine = Stub(lambda question, first, second: 2.0 if first == RED.getpixel((0, 0)) else 0.0)
    scorer = PaCo(engine)
    score = scorer([sample([RED, BLUE])])[0]
    high = 1 / (1 + math.exp(-2))
    assert score.value == pytest.approx((high + 0.5) / 2) and score.details["order_gap"] == pytest.approx(high - 0.5)
    assert len(engine.asked) == 2 and scorer.usage.calls == 2
    one = PaCo(Stub(engine.gap), both_orders=False)([sample([RED, BLUE])])[0]
    assert one.value == pytest.approx(high) and "order_gap" not in one.details


def test_the_chat_has_both_pictures_with_their_marks_and_the_question():
    engine = Stub()
    PaCo(engine, both_orders=False, system="Be fair.")([sample([RED, BLUE])])
    system, user = engine.asked[0].messages
    assert system["content"][0]["text"] == "Be fair."
    assert [part.get("text", "image") for part in user["content"]] == [
        "<img1>:", "image", "<img2>:", "image", f"{PAIR}\nAnswer Yes or No first, then give your reasons."
    ]  # fmt: skip
    assert engine.asked[0].images == [RED, BLUE] and engine.asked[0].max_tokens == 1
    PaCo(engine, prefix="<box>")([sample([RED, GREEN])])
    assert engine.asked[-1].prefix == "<box>" and engine.asked[0].prefix == ""
    bare = PairStyle(marks=("", ""), ending="").request("Same?", RED, BLUE)
    assert [part.get("text", "image") for part in bare.messages[0]["content"]] == ["image", "image", "Same?"]


def test_instructions_follow_the_task():
    assert questions_of(Problem("p", "a fox", [])) == {"": {"": ("a fox", False)}}
    assert questions_of(Problem("p", "a fox", [], meta={"task": "theme"})) == {"": {"": (ask_theme("a fox"), False)}}
    edit = questions_of(Problem("p", "add a hat", [], meta={"task": "edit"}))
    assert list(edit) == ["SC", "PF"] and edit["PF"][""] == (ask_edit_following("add a hat"), True)
    criteria = {"Identity": {"face": "same face"}, "Style": {"ink": "same ink", "light": None}, "Logic": None}
    asked = questions_of(Problem("p", "a fox", [], meta={"criteria": criteria}))
    assert asked == {"Identity": {"face": (ask_criterion("same face"), False)}, "Style": {"ink": (ask_criterion("same ink"), False)}}
    with pytest.raises(InputError, match="unknown task"):
        questions_of(Problem("p", "q", [], meta={"task": "dance"}))
    for wrong in ("text", {"Style": "text"}, {"Style": {"a": 1}}, {"Style": {}}):
        with pytest.raises(InputError, match="criteria must be"):
            questions_of(Problem("p", "q", [], meta={"criteria": wrong}))
    assert pair_problem(RED, BLUE, "add a hat", task="edit_following").meta == {"task": "edit_following"}


def test_an_edit_is_the_geometric_mean_and_never_turned_round():
    engine = Stub(lambda question, *_: 1.0 if "Apart from" in question else -1.0)
    score = PaCo(engine)([sample([RED, BLUE], "add a hat", task="edit")])[0]
    p = 1 / (1 + math.exp(-1))
    assert score.value == pytest.approx(math.sqrt(p * (1 - p))) and len(engine.asked) == 2
    assert all(request.images == [RED, BLUE] for request in engine.asked)
    assert score.details["dimensions"] == pytest.approx({"SC": p, "PF": 1 - p})
    assert edit_reward(0.0, 1.0) == 0 and edit_reward(0.25, 1.0) == 0.5


def test_a_set_is_the_mean_of_its_pairs_by_criterion_then_by_dimension():
    table = {"a": 0.0, "b": 1.0, "c": 2.0}
    engine = Stub(lambda question, *_: table[question.split("? ")[1].split("\n")[0]])
    criteria = {"Identity": {"x": "a", "y": "b"}, "Style": {"z": "c"}}
    score = PaCo(engine, both_orders=False)([sample([RED, BLUE, GREEN], criteria=criteria)])[0]
    p = {name: 1 / (1 + math.exp(-gap)) for name, gap in table.items()}
    assert score.details["dimensions"] == pytest.approx({"Identity": (p["a"] + p["b"]) / 2, "Style": p["c"]})
    assert score.value == pytest.approx(((p["a"] + p["b"]) / 2 + p["c"]) / 2)
    assert len(engine.asked) == 9 and len(score.details["pairs"]) == 3
    assert score.details["pairs"][0] == pytest.approx((p["a"] + p["b"] + p["c"]) / 3)


def test_a_grid_is_split_and_its_pairs_are_asked():
    grid = Image.new("RGB", (21, 20), "white")
    for box, name in zip(grid_boxes(21, 20, "2x2"), ("red", "blue", "green", "red"), strict=True):
        grid.paste(name, box)
    engine = Stub(lambda question, first, second: 3.0 if first == second else -3.0)
    score = PaCo(engine, both_orders=False)([sample([grid], layout="2x2")])[0]
    assert [round(p) for p in score.details["pairs"]] == [0, 0, 1, 0, 0, 0] and len(engine.asked) == 6
    assert [part.size for part in split_grid(grid, "2x2")] == [(10, 10)] * 4
    assert score.value == pytest.approx((yes_probability(3, 0) + 5 * yes_probability(-3, 0)) / 6)


def test_what_cannot_be_a_pair_gets_no_value_and_is_counted():
    scorer = PaCo(Stub())
    scores = scorer([
        sample([RED]), sample([]), sample([RED, BLUE]), sample([RED, BLUE], layout="2x2"), sample([RED], layout="1x1"),
        sample([RED, BLUE, GREEN], "add a hat", task="edit"),
    ])  # fmt: skip
    assert [score.value is None for score in scores] == [True, True, False, True, True, True]
    assert "1 picture where two are needed" in scores[0].error and "one grid picture" in scores[3].error
    assert scorer.counts["unscored"] == 5 and scorer.counts["pairs"] == 1


def test_neither_word_listed_is_no_score():
    engine = Stub()
    engine.choice_logprobs = lambda requests, choices: [dict.fromkeys(choices, -math.inf) for _ in requests]
    assert "'Yes', 'No'" in PaCo(engine)([sample([RED, BLUE])])[0].error


@pytest.mark.parametrize("settings", [{"words": "Yes"}, {"words": ("Yes", "Yes")}, {"words": ("Yes", " ")}, {"marks": ("a",)}])
def test_bad_settings(settings):
    with pytest.raises(InputError):
        PaCo(Stub(), **settings)


# Sets


def test_layouts_and_pairs():
    assert parse_layout("1x3") == (1, 3) and parse_layout(" 2 X 2 ") == (2, 2)
    for wrong in ("0x2", "2", "axb", None):
        with pytest.raises(InputError, match="layout"):
            parse_layout(wrong)
    assert grid_boxes(9, 4, "1x3") == [(0, 0, 3, 4), (3, 0, 6, 4), (6, 0, 9, 4)]
    assert grid_boxes(10, 5, "2x3")[-1] == (6, 2, 9, 4)  # what cannot be divided is left over
    with pytest.raises(InputError, match="no 1x3 grid"):
        grid_boxes(2, 2, "1x3")
    assert len(all_pairs(4)) == math.comb(4, 2) and all_pairs(1) == []
    assert set_reward({"A": {"x": [1.0, 0.0], "y": [1.0, 1.0]}, "B": {"z": [0.0, 0.0]}}) == (0.375, {"A": 0.75, "B": 0.0})


# The cache


def test_equal_requests_are_asked_once_and_hits_are_counted(tmp_path):
    engine, path = Stub(lambda question, first, second: float(first == second)), tmp_path / "cache.jsonl"
    scorer = PaCo(engine, cache_file=str(path))
    first = scorer([sample([RED, BLUE]), sample([RED, colour("blue")]), sample([BLUE, RED])])
    assert len(engine.asked) == 2 and (scorer.cache.hits, scorer.cache.misses) == (4, 2)
    assert [score.value for score in first] == [first[0].value] * 3
    with path.open("a") as file:
        file.write('{"key": "cut')  # as a kill leaves it
    again = PaCo(engine, cache_file=str(path))
    assert again([sample([RED, BLUE])])[0] == first[0] and len(engine.asked) == 2 and again.usage == Usage()
    assert len(path.read_text().splitlines()) == 2
    path.write_text("[]\n")
    with pytest.raises(InputError, match="line 1"):
        PaCo(engine, cache_file=str(path))


def test_everything_that_enters_a_request_is_in_the_key(tmp_path):
    style = PairStyle()
    base = ("model", style.request("q", RED, BLUE), ("Yes", "No"))
    changed = [
        ("other", *base[1:]),
        ("model", style.request("another", RED, BLUE), base[2]),
        ("model", style.request("q", BLUE, RED), base[2]),
        ("model", style.request("q", RED, GREEN), base[2]),
        ("model", PairStyle(ending="Be brief.").request("q", RED, BLUE), base[2]),
        ("model", base[1], ("yes", "no")),
    ]
    keys = [request_key(*base), *(request_key(*case) for case in changed)]
    assert len(set(keys)) == len(keys) and request_key(*base) == request_key("model", style.request("q", colour("red"), BLUE), base[2])
    path = tmp_path / "a.png"
    RED.save(path)
    before = image_digest(str(path))
    BLUE.save(path)
    assert image_digest(str(path)) != before and image_digest(path.read_bytes()) == image_digest(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        image_digest(str(tmp_path / "none.png"))


def test_a_small_cache_forgets_the_oldest():
    engine, cache, style = Stub(), ChoiceCache(size=1), PairStyle()
    requests = [style.request(f"q{i}", RED, BLUE) for i in range(3)]
    assert len(cache.choice_logprobs(engine, requests, ["Yes", "No"])) == 3
    cache.choice_logprobs(engine, requests[2:], ["Yes", "No"])
    cache.choice_logprobs(engine, requests[:1], ["Yes", "No"])
    assert (cache.hits, cache.misses, len(engine.asked)) == (1, 4, 4)


# With a model


def test_paco_on_the_tiny_model(tiny_engine, pictures):
    scorer = resolve(METHODS["paco"])(tiny_engine)
    scores = scorer([Sample(pair_problem(*pictures[:2]), ""), Sample(pair_problem(pictures[1], pictures[0]), "")])
    assert 0 < scores[0].value < 1 and scores[0].value == pytest.approx(scores[1].value, abs=1e-5) and scorer.cache.hits == 2
    [direct] = tiny_engine.choice_logprobs([scorer.style.request(PAIR, *pictures[:2])], ["Yes", "No"])
    turned = tiny_engine.choice_logprobs([scorer.style.request(PAIR, pictures[1], pictures[0])], ["Yes", "No"])[0]
    expected = [yes_probability(found["Yes"], found["No"]) for found in (direct, turned)]
    assert scores[0].value == pytest.approx(sum(expected) / 2, abs=1e-4)
    assert json.dumps(scores[0].details)
