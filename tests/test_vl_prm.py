"""VL-PRM: sectioned solutions, the verifier's chat, targets, one-pass scoring against step by step, scores."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import pytest

from vlrm import InputError, Problem, Sample, Usage
from vlrm.prm.records import StepRecord
from vlrm.prm.sections import render_sections, solution_steps, step_keys
from vlrm.prm.verdicts import TargetRule, VerdictStyle, spread_value
from vlrm.prm.vl_prm import VLPRM, reward
from vlrm.rm.load import load_scorer
from vlrm.serving.engine import Turn
from vlrm.serving.turns import places, render_turns, system_role, turn_by_turn, turn_logprobs

SECTIONED = """[Visual Elements]
<step_1>
There are two bars.
</step_1>
<step_2>
The red bar is 3.
</step_2>
[Reasoning]
<step_1>
3 + 4 = 7.
</step_1>
<step_2>
There are two bars.
</step_2>
<correct_answer>
\\boxed{7}
</correct_answer>"""


# Sections


@pytest.mark.parametrize("header", ["[Visual Elements]", "[Perception]", "**[visual elements]**", "## [Perception]:"])
def test_sections_give_steps_with_their_kinds(header):
    steps = solution_steps(SECTIONED.replace("[Visual Elements]", header))
    assert [step.text for step in steps] == ["There are two bars.", "The red bar is 3.", "3 + 4 = 7.", "There are two bars."]
    assert [step.kind for step in steps] == ["perception", "perception", "reasoning", "reasoning"]
    assert [step.index for step in steps] == [0, 1, 2, 3]


def test_equal_texts_and_numbers_are_told_apart():
    steps = solution_steps(SECTIONED)
    assert steps[0].text == steps[3].text
    assert step_keys(steps) == [("perception", 0), ("perception", 1), ("reasoning", 0), ("reasoning", 1)]


def test_steps_remember_their_place_in_the_text():
    for step in solution_steps(SECTIONED):
        piece = SECTIONED[step.start : step.end]
        assert piece.startswith("<step_") and piece.endswith(">") and step.text in piece


def test_careless_texts_are_read_too():
    unclosed = "[Visual Elements]\n<step_1>\nTwo bars.\n<step_2>\nRed is 3.\n[Reasoning]\n<step_1>\n3 + 4\n<correct_answer>7"
    assert [(s.text, s.kind) for s in solution_steps(unclosed)] == [
        ("Two bars.", "perception"), ("Red is 3.", "perception"), ("3 + 4", "reasoning"),
    ]  # fmt: skip
    plain = "[Visual Elements]\nStep 1: Two bars.\nStep 2: Red is 3.\n[Reasoning]\nSo 7."
    assert [(s.text, s.kind) for s in solution_steps(plain)] == [
        ("Two bars.", "perception"), ("Red is 3.", "perception"), ("So 7.", "reasoning"),
    ]  # fmt: skip
    assert [(s.text, s.kind) for s in solution_steps("<step_1>a</step_1><step_2>b</step_2>")] == [("a", None), ("b", None)]
    assert solution_steps("") == [] and solution_steps("[Reasoning]\n") == []


def test_plain_solutions_are_split_as_ever_and_one_step_is_the_whole():
    assert [(s.text, s.kind) for s in solution_steps("Step 1: a\nStep 2: b\nAnswer: 3")] == [("a", None), ("b\nAnswer: 3", None)]
    assert len(solution_steps("\n\n".join("abcdef"), max_steps=3)) == 3
    [whole] = solution_steps(SECTIONED, max_steps=1)
    assert "3 + 4 = 7." in whole.text and "two bars" in whole.text


def test_render_sections_is_read_back():
    texts, kinds = ["one", "two", "one"], ["perception", "reasoning", "reasoning"]
    steps = solution_steps(render_sections(texts, kinds))
    assert [s.text for s in steps] == texts and [s.kind for s in steps] == kinds
    with pytest.raises(InputError, match="kind"):
        render_sections(["one"], [None])


# The chat


def said(request):
    return [(m["role"], "".join(part.get("text", "<image>") for part in m["content"])) for m in request.messages]


def test_the_chat_shows_headers_where_the_section_changes():
    steps = solution_steps(SECTIONED)
    style = VerdictStyle(system="Judge.")
    chat = said(style.request("How many?", ["a.png"], [s.text for s in steps], [s.kind for s in steps], ["+", "-", "+"]))
    assert chat == [
        ("system", "Judge."),
        ("user", "<image>### Question:\nHow many?\n\n### Solution Process:\n[Visual Elements]\nThere are two bars."),
        ("assistant", "+"),
        ("user", "The red bar is 3."),
        ("assistant", "-"),
        ("user", "[Reasoning]\n3 + 4 = 7."),
        ("assistant", "+"),
        ("user", "There are two bars."),
    ]
    bare = said(VerdictStyle(system="Judge.", system_role=False, headers=False).request("How many?", [], ["a", "b"], ["perception"] * 2))
    assert bare[0] == ("user", "Judge.\n\n### Question:\nHow many?\n\n### Solution Process:\na") and bare[1] == ("assistant", "+")
    assert said(VerdictStyle(system="").request("Q", [], ["a"]))[0][0] == "user"


@pytest.mark.parametrize("words", [("+",), ("+", "+"), "+-", ("+", ""), ("a", "b", "c", "d")])
def test_words_must_be_two_or_three_different_ones(words):
    with pytest.raises(InputError, match="words"):
        VerdictStyle(words=words)


# Targets


def record(kinds=None, **labels):
    n = len(next(iter(labels.values())))
    return StepRecord("r", "Q", tuple(f"step {i}" for i in range(n)), kinds=kinds, **labels)


def test_the_chat_ends_with_the_first_negative_step_unless_told_otherwise():
    judged = record(judge=(True, False, True))
    assert TargetRule().values(judged) == [1.0, 0.0]
    assert TargetRule(after_error="negative").values(judged) == [1.0, 0.0, 0.0]
    assert TargetRule(after_error="keep").values(judged) == [1.0, 0.0, 1.0]
    assert TargetRule().values(record(judge=(True, True))) == [1.0, 1.0]


def test_targets_hard_value_soft_and_advantage():
    scored = record(mc_scores=(0.75, 0.75, 0.25, 0.5, 0.0, 0.0), judge=(True,) * 6)
    assert TargetRule().values(scored) == [1.0] * 6  # the judge comes before Monte-Carlo
    assert TargetRule("value").values(scored) == [1, 1, 1, 1, 0]
    assert TargetRule("value", threshold=0.3).values(scored) == [1, 1, 0]
    assert TargetRule("soft", "mc_scores").values(scored) == [0.75, 0.75, 0.25, 0.5, 0.0]
    assert TargetRule("advantage").values(scored) == [1, 0.5, 0, 1, 0]
    assert TargetRule("soft").values(record(labels=(0.9, None, 0.4))) == [0.9, None, 0.4]
    assert TargetRule().values(record(labels=(1, None, None))) == [1.0]  # nothing to learn at the end
    assert TargetRule("value").values(record(judge=(True,))) == [] and TargetRule().values(StepRecord("r", "Q", ("a",))) == []
    assert spread_value(0.75, 2) == [0.75, 0.25] and [spread_value(v, 3) for v in (1, 0.5, 0)] == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def test_without_labels_of_a_section_its_error_shows_in_the_next():
    seen, thought = ("perception",) * 2, ("reasoning",) * 2
    wrong = record(kinds=seen + thought, judge=(True, False, True, True))
    rule = TargetRule(kinds=("reasoning",))
    assert rule.values(wrong) == [None, None, 0.0]
    assert rule.values(record(kinds=seen + thought, judge=(True, True, True, False))) == [None, None, 1.0, 0.0]
    assert rule.values(record(kinds=seen + seen, judge=(True,) * 4)) == []
    assert TargetRule(kinds=("perception",)).values(record(kinds=seen + thought, judge=(True, True, True, False))) == [1.0, 1.0]
    assert TargetRule(kinds=("reasoning",)).values(record(judge=(True,))) == [1.0]  # a step without a kind is always trained on


@pytest.mark.parametrize(
    "wrong", [{"target": "hardest"}, {"source": "gold"}, {"after_error": "stop"}, {"threshold": 1.0}, {"kinds": ("seeing",)}, {"kinds": ()}]
)
def test_bad_rules_are_refused(wrong):
    with pytest.raises(InputError):
        TargetRule(**wrong)


# Scores, with a scripted engine


@dataclass
class Scripted:
    """Says P(+) by the text of a place's step: `p(step) -> probability`. A prompt has 100 tokens for every step shown."""

    p: callable
    name: str = "scripted"
    usage: Usage = field(default_factory=Usage)
    seen: list = field(default_factory=list)

    def turn_logprobs(self, requests, choices):
        self.seen += requests
        self.usage += Usage(sum(100 * len(places(r)) for r in requests), 0, len(requests))
        return [[self.turn(r, place, n, choices) for n, place in enumerate(places(r), 1)] for r in requests]

    def turn(self, request, place, n, choices):
        p = self.p(request.messages[place - 1]["content"][-1]["text"].split("\n")[-1])
        return Turn(dict(zip(choices, (math.log(p) - 2, math.log(1 - p) - 2), strict=True)), 100 * n)


PROBLEM = Problem("p", "How many?", answer="7")
BY_TEXT = {"good": 0.9, "fair": 0.6, "bad": 0.2}


def judge(*solutions, **settings):
    engine = Scripted(BY_TEXT.__getitem__)
    scorer = VLPRM(engine, **settings)
    return scorer([Sample(PROBLEM, text) for text in solutions]), scorer, engine


def test_scores_verdicts_and_the_first_error():
    (score,), scorer, engine = judge("Step 1: good\nStep 2: bad\nStep 3: fair")
    assert score.steps == pytest.approx((0.9, 0.2, 0.6)) and score.value == pytest.approx(1.7 / 3) and score.first_error == 1
    assert [(v.step, v.correct) for v in score.verdicts] == [(0, True), (1, False), (2, True)]
    assert said(engine.seen[0])[1:] == [
        ("user", "### Question:\nHow many?\n\n### Solution Process:\ngood"),
        ("assistant", "+"),
        ("user", "bad"),
        ("assistant", "+"),
        ("user", "fair"),
    ]
    assert scorer.usage == engine.usage == score.details["usage"] == Usage(300, 0, 1)
    assert judge("Step 1: good\nStep 2: bad", aggregation="min")[0][0].value == pytest.approx(0.2)


def test_equal_samples_are_read_once_and_empty_ones_not_at_all():
    scores, scorer, engine = judge("good", "", "good")
    assert len(engine.seen) == 1 and scores[0].value == scores[2].value and scores[1].value is None and scores[1].error
    assert sum((score.details["usage"] for score in scores), Usage()) == scorer.usage


def test_the_papers_reward():
    assert reward(0.8, 400) == pytest.approx(0.8**0.3 / 400**0.6)
    assert reward(0.8, 400, alpha=1, beta=0) == 0.8 and reward(0.49, 400) == -1.0 and reward(0.5, 1) == pytest.approx(0.5**0.3)
    (score,), _, _ = judge("Step 1: bad\nStep 2: fair", score="reward")
    assert score.details["rewards"] == [-1.0, pytest.approx(0.6**0.3 / 200**0.6)] and score.value == score.details["rewards"][1]
    assert judge("fair", score="reward", alpha=1.0, beta=0.0)[0][0].value == pytest.approx(0.6)


def test_where_all_are_negative_the_smallest_negative_probability_wins():
    BY_TEXT["worse"] = 0.1
    scores = judge("bad", "worse", score="reward")[0]
    assert [score.details["rewards"] for score in scores] == [[-1.0], [-1.0]]
    assert 0 > scores[0].value > scores[1].value and scores[0].value == pytest.approx(-0.8)
    assert judge("fair", score="reward")[0][0].value > 0


def test_three_words_weigh_better_neutral_worse():
    class Three(Scripted):
        def turn(self, request, place, n, choices):
            shares = dict(good=(0.7, 0.2, 0.1), fair=(0.1, 0.8, 0.1), bad=(0.1, 0.2, 0.7))[
                request.messages[place - 1]["content"][-1]["text"].split("\n")[-1]
            ]
            return Turn({c: math.log(s) for c, s in zip(choices, shares, strict=True)}, n)

    [score] = VLPRM(Three(None), words=("+", "=", "-"))([Sample(PROBLEM, "Step 1: good\nStep 2: fair\nStep 3: bad")])
    assert score.steps == pytest.approx((0.8, 0.5, 0.2)) and [v.correct for v in score.verdicts] == [True, True, False]


@pytest.mark.parametrize(
    "wrong", [{"score": "logit"}, {"fill": "truth"}, {"aggregation": "median"}, {"max_steps": 0}, {"weights": (1,)}, {"weights": (2, 0)}]
)
def test_bad_settings_are_refused(wrong):
    with pytest.raises(InputError):
        judge("good", **wrong)


def test_any_engine_will_do_but_for_lengths():
    class Plain:
        name, usage = "plain", Usage()

        def choice_logprobs(self, requests, choices):
            return [{"+": -0.1, "-": -3.0} for _ in requests]

    [score] = VLPRM(Plain())([Sample(PROBLEM, "Step 1: a\nStep 2: b")])
    assert len(score.steps) == 2 and score.details["lengths"] == [None, None]
    with pytest.raises(InputError, match="lengths"):
        VLPRM(Plain(), score="reward")([Sample(PROBLEM, "a")])


# One pass against step by step, with a real model


@pytest.fixture(scope="module")
def chats(pictures):
    style, requests = VerdictStyle(system="Is 1 + 1 - 2 right?"), []
    for n in (1, 2, 5, 12):
        steps = [f"The red bar is {k} + {n} - 1." * (1 + k % 3) for k in range(n)]
        fill = ["+-"[k % 3 == 2] for k in range(n - 1)]
        requests.append(style.request("What is 3 + 4 - 2?", pictures[: n % 3], steps, ["perception", *["reasoning"] * (n - 1)], fill))
    return requests


def same_turns(ours, theirs, tolerance=1e-4):
    for a, b in zip(ours, theirs, strict=True):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=tolerance)


def test_one_pass_gives_what_step_by_step_gives(tiny_engine, chats):
    before = tiny_engine.usage
    read = turn_logprobs(tiny_engine, chats, ("+", "-"))
    spent = tiny_engine.usage - before
    assert [len(turns) for turns in read] == [1, 2, 5, 12] and spent.calls == 4
    same_turns(read, turn_by_turn(tiny_engine, chats, ("+", "-")))
    assert spent.prompt_tokens == sum(turns[-1].tokens for turns in read)
    [[completion]] = tiny_engine.generate(chats[2:3])
    assert read[2][-1].tokens == completion.prompt_tokens, "lengths are those of the prompts"
    values = [round(turn.logprobs["+"] - turn.logprobs["-"], 3) for turn in read[3]]
    assert len(set(values)) > 6, "places differ, or the comparison shows nothing"


def retold(engine, template, tmp_path):
    """The tiny model with another chat template."""
    import copy

    from vlrm.serving.prompting import Prompter

    other = copy.copy(engine)
    processor = copy.copy(engine.prompter.processor)
    processor.chat_template = template
    other.prompter = Prompter(processor, "retold")
    other.__dict__.pop("_told", None)
    return other


TURN = "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
SPACED = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{{ 'Assistant:' if message['role'] == 'assistant' else 'User:' }}{{ ' ' }}" + TURN + "<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
FORGETFUL = (
    "{% for message in messages %}<|user|>{% if message['role'] == 'assistant' and not loop.last %}(answered){% endif %}"
    + TURN + "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)  # fmt: skip


def test_a_space_before_the_answer_belongs_to_the_word(tiny_engine, pictures, tmp_path):
    engine = retold(tiny_engine, SPACED, tmp_path)
    assert engine.prompter.separator == " " and not system_role(engine.prompter) and system_role(tiny_engine.prompter)
    style = VerdictStyle(system="Judge.", system_role=False)
    requests = [style.request("What is 3 + 4?", pictures[:1], [f"bar {k}" for k in range(n)]) for n in (2, 4)]
    chat = render_turns(engine.prompter, requests[0])
    assert chat.text[chat.starts[0] :].startswith(" +<|end|>") and chat.text.endswith("Assistant:")
    read, one_by_one = turn_logprobs(engine, requests, ("+", "=")), turn_by_turn(engine, requests, ("+", "="))
    for ours, theirs in zip(read, one_by_one, strict=True):
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    with pytest.raises(InputError, match="' -' is 2 tokens"):
        turn_logprobs(engine, requests, ("+", "-"))
    assert VLPRM(engine).style.system_role is False


def test_a_template_that_rewrites_past_turns_is_read_turn_by_turn(tiny_engine, chats, tmp_path, caplog):
    engine = retold(tiny_engine, FORGETFUL, tmp_path)
    with caplog.at_level(logging.WARNING, "vlrm"):
        read = turn_logprobs(engine, chats[:3], ("+", "-"))
        turn_logprobs(engine, chats[:1], ("+", "-"))
    assert [len(turns) for turns in read] == [1, 2, 5] and caplog.text.count("past turns") == 1


def test_verdict_words_must_be_single_distinct_tokens(tiny_engine, chats):
    with pytest.raises(InputError, match="tokens"):
        turn_logprobs(tiny_engine, chats[:1], ("wonderful", "-"))
    with pytest.raises(InputError, match="same token"):
        turn_logprobs(tiny_engine, chats[:1], ("+", "+"))


def test_argmax_fill_is_what_answering_one_by_one_gives(tiny_engine, pictures):
    problem = Problem("p", "What is 3 + 4?", pictures[:1])
    solutions = ["\n".join(f"Step {k}: The {c} bar is {k * 7 % 10}." for k, c in enumerate(colours, 1)) for colours in COLOURS]
    scorer = VLPRM(tiny_engine, system="", fill="argmax")
    scores = scorer([Sample(problem, text) for text in solutions])
    negatives = 0
    for text, score in zip(solutions, scores, strict=True):
        steps, fill = solution_steps(text), []
        for k in range(len(steps)):
            request = scorer.style.request(problem.question, problem.images, [s.text for s in steps[: k + 1]], (), fill)
            [said_here] = tiny_engine.choice_logprobs([request], ("+", "-"))
            p = 1 / (1 + math.exp(said_here["-"] - said_here["+"]))
            assert score.steps[k] == pytest.approx(p, abs=1e-4)
            fill.append("+" if p >= 0.5 else "-")
        negatives += "-" in fill[:-1]
    assert negatives, "without a - before the end the two ways of filling would be one"


COLOURS = [("red", "green", "blue"), ("yellow",), ("purple", "red", "green", "blue", "yellow"), ("blue", "blue"), ("green", "red", "red")]


def test_a_url_can_be_a_vl_prm():
    assert isinstance(load_scorer("http://localhost:1/v1", method="vl_prm", score="reward"), VLPRM)
    with pytest.raises(InputError, match="method"):
        load_scorer("http://localhost:1/v1", method="vlprm")


def test_a_solution_is_rendered_so_that_it_is_read_back(tiny_engine):
    prm = VLPRM(tiny_engine)
    steps = ["a is 3", "a is 3", "3 + 3 = 6"]
    for kinds in [("perception", "perception", "reasoning"), (None, None, None)]:
        back = solution_steps(prm.render_solution(steps, kinds))
        assert [step.text for step in back] == steps and tuple(step.kind for step in back) == kinds
