"""Rewards for RL: weights, gates, caps, schedules; PS-GRPO and Perception-R1; scorers that fail in every way; diagnostics and the alarm."""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
import torch

from vlrm.data_synth.problems import scene_problem
from vlrm.data_synth.worlds.base import format_solution, right_solution
from vlrm.policy.alarm import Alarm, evaluations
from vlrm.policy.diagnostics import batch_measures, blind_measures, text_measures, within_groups, without_sight, zero_variance
from vlrm.policy.ngrams import repeated_ngrams
from vlrm.policy.rewards import Reward, Rules, load_rewards
from vlrm.policy.rewards.adapter import reward_function
from vlrm.policy.rewards.basic import AnswerReward, FormatReward
from vlrm.policy.rewards.perception_r1 import PerceptionR1, perception_r1, read_judgement, world_facts
from vlrm.policy.rewards.ps_grpo import PSGRPO, ps_grpo, relative_drop
from vlrm.policy.rewards.rules import apply_rules, weight_at
from vlrm.policy.rewards.spec import check_columns, load_reward, try_rewards
from vlrm.serving.engine import Completion
from vlrm.types import InputError, Problem, Sample, Score, Usage

PROBLEM = Problem("p", "What is it?", [], "7")
RIGHT, WRONG = (Sample(PROBLEM, f"Step 1: so\nStep 2: then\nAnswer: {answer}") for answer in (7, 8))


class Steps:
    """A scorer that says what it is told."""

    def __init__(self, *scores):
        self.scores, self.usage = scores, Usage()

    def __call__(self, samples):
        return list(self.scores[: len(samples)])


def constant(samples):
    return [0.5] * len(samples)


# Rules


def test_weights_follow_their_schedule():
    assert weight_at(0.3, 0.9) == 0.3
    points = [[0.0, 1.0], [0.5, 0.0], [1.0, 2.0]]
    assert [weight_at(points, p) for p in (0, 0.25, 0.5, 0.75, 1)] == [1, 0.5, 0, 1, 2]
    assert weight_at([[0.2, 1.0], [0.4, 3.0]], 0.0) == 1.0 and weight_at([[0.2, 1.0], [0.4, 3.0]], 0.9) == 3.0
    for wrong in ([[0.5, 1], [0.2, 1]], [[0, "a"]], [], "1", [[0.0, 1.0], [2.0, 1.0]], math.nan, [[0.2, 1], [0.2, 2]]):
        with pytest.raises(InputError, match="weight"):
            Rules(weight=wrong)
    with pytest.raises(InputError, match="below floor"):
        Rules(cap=0.1, floor=0.2)


def test_gates_and_caps_keep_apart_what_is_zero_and_what_is_not_scored():
    nan = math.nan
    values = torch.tensor([[0.9, 1.0], [0.9, 0.0], [0.9, nan], [nan, 1.0], [0.1, 1.0]])
    ruled = apply_rules(values, ["prm", "format"], [Rules(gate="format", cap=0.8, floor=0.2), Rules()])
    assert torch.equal(torch.nan_to_num(ruled[:, 0], -9), torch.tensor([0.8, 0.0, -9, -9, 0.2]))
    assert torch.equal(torch.nan_to_num(ruled[:, 1], -9), torch.tensor([1.0, 0.0, -9, 1.0, 1.0]))
    left_out = apply_rules(values, ["prm", "format"], [Rules(gate="format", closed=None), Rules()])
    assert left_out[1, 0].isnan() and torch.equal(apply_rules(values[:2], ["a", "b"], [Rules(), Rules()]), values[:2])


# Rewards by name


def test_rewards_are_named_by_a_weight_a_scorer_or_settings():
    rewards = load_rewards(
        {"answer": 0.5, "form": {"scorer": "format", "weight": 0.1, "settings": {"min_steps": 2}}, "own": f"{__name__}:constant"}
    )
    assert [r.name for r in rewards] == ["answer", "form", "own"] and [r.rules.weight for r in rewards] == [0.5, 0.1, 1.0]
    assert [reward.scorer([RIGHT])[0].value for reward in rewards] == [1.0, 1.0, 0.5]
    assert load_reward("mine", Steps(Score(0.2))).scorer([RIGHT])[0].value == 0.2
    for wrong, message in (
        ({}, "rewards is empty"),
        ({"answer": {"wieght": 1}}, "did you mean 'weight'"),
        ({"answer": {"gate": "format"}}, "gate must be another reward"),
        ({"answer": {"form": "ps"}}, "unknown form"),
        ({"prm": "no/such/folder"}, "reward prm: .*no such folder"),
        ({"answer": {"settings": {"colour": 1}}}, "unknown setting 'colour'"),
        ({"answer": {"timeout": 0}}, "timeout must be"),
    ):
        with pytest.raises(InputError, match=message):
            load_rewards(wrong)
    with pytest.raises(InputError, match="two rewards have the name"):
        load_rewards([Reward("a", Steps()), Reward("a", Steps())])


def test_every_scorer_is_tried_before_training():
    class Broken:
        usage = Usage()

        def __call__(self, samples):
            raise RuntimeError("no model here")

    with pytest.raises(InputError, match="reward bad fails on a first try: RuntimeError: no model here"):
        try_rewards([Reward("bad", Broken())], [RIGHT])
    with pytest.raises(InputError, match="gave 1 score for 2 samples"):
        try_rewards([Reward("short", Steps(Score(1.0)))], [RIGHT, RIGHT])
    with pytest.raises(InputError, match="finite number or None, got nan"):
        try_rewards([Reward("nan", Steps(Score(math.nan)))], [RIGHT])
    assert try_rewards([Reward("none", Steps(Score(None, error="too short")))], [RIGHT]) == [
        "reward none gave no score on a first try (too short)"
    ]


def test_columns_that_a_reward_reads_are_looked_for():
    known, unknown = PROBLEM, Problem("q", "What is it?", [])
    rewards = load_rewards({"answer": 1.0, "form": {"scorer": "format"}})
    assert check_columns(rewards, [known]) == []
    assert check_columns(rewards, [known, unknown]) == ["reward answer: 1 of 2 problems have no 'answer'"]
    with pytest.raises(InputError, match="reward answer needs the column 'answer', which no problem has"):
        check_columns(rewards, [unknown])
    guarded = [Reward("guarded", PSGRPO(Steps()))]
    with pytest.raises(InputError, match="reward guarded needs the column 'answer'"):
        check_columns(guarded, [unknown])
    stated = load_rewards({"seen": {"scorer": "perception_r1", "settings": {"judge": "stated", "facts": "hints"}}})
    with pytest.raises(InputError, match="reward seen needs the column 'hints'"):
        check_columns(stated, [known])
    assert check_columns(stated, [Problem("p", "What is it?", [], "7", {"hints": []})]) == []


def test_whatever_a_scorer_does_becomes_a_counted_none(capsys):
    function = reward_function(Steps(Score(0.5), Score(math.nan), Score(None, error="empty"), Score(True)), "prm")
    assert function(sample=[RIGHT] * 4) == [0.5, None, None, None] and function.__name__ == "prm"
    assert dict(function.reasons) == {"the score nan is no finite number": 1, "empty": 1, "the score True is no finite number": 1}
    assert reward_function(Steps(Score(0.5)), "short")(sample=[RIGHT] * 2) == [None, None]

    class Broken:
        usage = Usage()

        def __call__(self, samples):
            raise OSError("the server is gone")

    broken = reward_function(Broken(), "gone")
    assert broken(sample=[RIGHT]) == broken(sample=[WRONG]) == [None]
    assert capsys.readouterr().err.count("the server is gone") == 1 and broken.reasons["OSError: the server is gone"] == 2


def test_a_scorer_that_hangs_costs_its_timeout_and_recovers():
    held, started = threading.Event(), []

    class Hanging:
        usage = Usage()

        def __call__(self, samples):
            started.append(len(samples))
            held.wait(20)
            return [Score(1.0)] * len(samples)

    function = reward_function(Hanging(), "slow", timeout=0.2)
    before = time.monotonic()
    assert function(sample=[RIGHT] * 2) == [None, None] and function(sample=[RIGHT]) == [None]
    assert time.monotonic() - before < 10 and sum(function.reasons.values()) == 3
    held.set()
    function.timeout = 20
    assert function(sample=[RIGHT] * 3) == [1.0] * 3
    assert started == [2, 3]  # the call that gave up while it waited was never made


def test_a_reward_function_reads_trls_own_columns():
    seen = []

    class Reader(Steps):
        def __call__(self, samples):
            seen.extend(samples)
            return [Score(1.0)] * len(samples)

    prompts = [[{"role": "user", "content": [{"type": "image", "image": "x"}, {"type": "text", "text": "How many?"}]}]] * 2
    completions = [[{"role": "assistant", "content": text}] for text in ("Answer: 1", "Answer: 2")]
    assert reward_function(Reader(), "r")(prompts=prompts, completions=completions, images=[["a"], ["b"]], answer=["1", "1"]) == [1.0, 1.0]
    assert [(s.problem.question, s.problem.images, s.problem.answer, s.solution) for s in seen] == [
        ("How many?", ["a"], "1", "Answer: 1"), ("How many?", ["b"], "1", "Answer: 2"),
    ]  # fmt: skip


def test_answer_and_format():
    blank = Sample(Problem("n", "q"), "Answer: 7")
    assert [score.value for score in AnswerReward()([RIGHT, WRONG, blank])] == [1.0, 0.0, None]
    assert [score.value for score in FormatReward()([RIGHT, blank])] == [1.0, 0.0]
    tagged = FormatReward(pattern=r"<think>.*</think>\s*<answer>.*</answer>")
    assert [tagged([Sample(PROBLEM, text)])[0].value for text in ("<think>a\nb</think>\n<answer>7</answer>", "7")] == [1.0, 0.0]
    with pytest.raises(InputError, match="regular expression"):
        FormatReward(pattern="(")


# Published rewards


def test_ps_grpo():
    assert relative_drop([0.8, 0.6, 0.9]) == pytest.approx(0.25) and relative_drop([0.2, 0.9]) == 0.0
    assert relative_drop([]) == relative_drop([0.5]) == 0.0 and relative_drop([0.0, 0.0]) == 0.0 and relative_drop([0.5, 0.0]) == 1.0
    assert [ps_grpo(True, (1.0, 0.7)), ps_grpo(True, (1.0, 0.6)), ps_grpo(False, (1.0, 1.0))] == [1.0, 0.5, 0.0]
    scorer = PSGRPO(Steps(Score(0.8, (1.0, 0.6)), Score(0.9, (0.9, 0.9)), Score(None, error="lost")), gamma=0.25)
    found = scorer([RIGHT, WRONG, RIGHT])
    assert [score.value for score in found] == [0.75, 0.0, None] and found[2].error == "lost"
    assert found[0].steps == (1.0, 0.6) and found[0].details["drop"] == pytest.approx(0.4) and found[0].details["value"] == 0.8
    assert PSGRPO(Steps(Score(None)))([WRONG])[0].value == 0.0  # wrong is wrong, whatever the steps
    assert PSGRPO(Steps(Score(0.5, (0.5,))))([Sample(Problem("n", "q"), "Answer: 7")])[0].value is None
    loaded = load_reward("ps", {"scorer": f"{__name__}:constant", "form": "ps_grpo", "form_settings": {"rho": 0.1}})
    assert loaded.scorer.rho == 0.1


def test_perception_r1_adds_up_as_in_its_code():
    assert perception_r1(1, 1, [1, 0], -0.5) == pytest.approx(0.9 + 0.1 + 0.35 - 0.5)
    assert perception_r1(0, 1, [], 0.0) == pytest.approx(0.1) and perception_r1(0, 0, [3.0], 0.0) == pytest.approx(0.7)
    problem = Problem("p", "q", [], "7", {"visual_key_info": ["a red circle", "Two bars"]})
    (found,) = PerceptionR1(judge="stated")([Sample(problem, "Step 1: I see  A RED circle.\nAnswer: 7")])
    assert found.value == pytest.approx(0.9 + 0.1 + 0.35) and found.details["visual"] == [1.0, 0.0]
    looped = Sample(problem, "Step 1: " + "a b c d e " * 12 + "\nAnswer: 7")
    assert PerceptionR1(judge="stated")([looped])[0].value == pytest.approx(1.0 - 2 * repeated_ngrams(looped.solution, 20))
    with pytest.raises(InputError, match="must be a list of facts"):
        PerceptionR1(judge="stated")([Sample(Problem("p", "q", [], "7", {"visual_key_info": "red"}), "x")])


def test_perception_r1_asks_an_engine_and_leaves_out_what_it_does_not_answer():
    class Judge:
        name, usage = "judge", Usage()

        def generate(self, requests):
            self.requests = requests
            return [[Completion(text)] for text in ("<info1>1</info1>\n<info2>0</info2>", "<info1>1</info1>")]

    judge, problem = Judge(), Problem("p", "q", [], "7", {"visual_key_info": ["x", "y"]})
    found = PerceptionR1(judge=judge)([Sample(problem, RIGHT.solution), Sample(problem, WRONG.solution), RIGHT])
    assert [score.value for score in found] == [pytest.approx(1.35), None, pytest.approx(1.0)] and "judge" in found[1].error
    assert "<info2>y</info2>" in judge.requests[0].messages[0]["content"][0]["text"] and len(judge.requests) == 2
    assert read_judgement("<info1>0.5</info1><info2>x</info2>", 2) is None and read_judgement("<info1>0.5</info1>", 1) == [0.5]


@pytest.mark.parametrize("world", ["grid", "ladder", "bars"])
def test_the_worlds_judge_pays_for_true_facts_only(world):
    from vlrm.data_synth.problems import truth_of

    problem, _ = scene_problem(world, "train", 0, 3)
    family, scene = truth_of(problem)
    steps = right_solution(family, scene)
    full = world_facts(Sample(problem, format_solution(steps)))
    assert full and set(full) == {1.0}
    assert sum(world_facts(Sample(problem, format_solution(steps[-1:])))) < len(full)
    assert sum(world_facts(Sample(problem, "Step 1: nothing"))) == 0
    assert PerceptionR1()([Sample(problem, format_solution(steps))])[0].value == pytest.approx(1.7)


# Diagnostics


def test_measures_of_a_batch():
    values = np.array([1.0, 1.0, math.nan, 0.0, 1.0, 0.5])
    assert zero_variance(values, 2) == pytest.approx(2 / 3)
    assert within_groups(np.array([1.0, 2, 3, 30, 20, 10]), np.array([1.0, 5, 9, 9, 5, 1]), 3) == pytest.approx(1.0)
    assert within_groups(np.array([1.0, 1.0]), np.array([1.0, 2.0]), 2) is None
    scores = [Score(0.1), Score(0.9), Score(None), Score(0.4)]
    found = batch_measures("prm", scores, [5, 3, 4, 4], 2)
    assert found == {"none/prm": 0.25, "zero_variance/prm": 0.5, "length_correlation/prm": pytest.approx(-1.0)}
    assert batch_measures("prm", scores, [5, 3, 4, 4], 1) == {"none/prm": 0.25}
    assert repeated_ngrams("a b c a b c", 3) == pytest.approx(0.25) and repeated_ngrams("a b", 3) == 0.0
    assert text_measures(["a b c a b c", " "], 3) == {"repeated_ngrams": pytest.approx(0.125), "empty": 0.5}


def test_blind_reward_is_measured_on_grey_pictures():
    from PIL import Image

    red = Image.new("RGB", (8, 6), "red")
    samples = [Sample(Problem(f"p{i}", "q", [red]), "x") for i in range(5)] + [Sample(Problem("n", "q"), "x")]

    def scorer(batch):
        return [Score(float(sample.problem.images[0].getpixel((0, 0)) == (255, 0, 0))) for sample in batch]

    scores = [*[Score(1.0)] * 4, Score(None), Score(1.0)]
    assert blind_measures("r", scorer, samples, scores, 3) == {"blind/r": 0.0, "blind_gap/r": 1.0}
    assert without_sight(samples[0]).problem.images[0].size == (8, 6) and samples[0].problem.images[0] is red
    assert blind_measures("r", scorer, samples[-1:], scores[-1:], 3) == {}


def test_the_alarm_wants_a_rising_reward_and_a_falling_gold():
    def points(*pairs, n=10_000):
        return [{"step": 10 * i, "reward": reward, "gold": gold, "n": n} for i, (reward, gold) in enumerate(pairs)]

    alarm = Alarm()
    assert alarm.message(points((0.5, 0.5), (0.6, 0.6), (0.7, 0.57))).startswith(
        "step 20: the reward rose from 0.600 to 0.700 since step 10"
    )
    assert alarm.message(points((0.5, 0.5), (0.6, 0.6))) is None  # both rise
    assert alarm.message(points((0.5, 0.6), (0.4, 0.5))) is None  # both fall
    assert alarm.message(points((0.5, 0.6), (0.6, 0.59))) is None  # within the drop allowed
    assert alarm.message(points((0.5, 0.6), (0.6, 0.56), n=50)) is None  # within the noise of 50 samples
    assert alarm.message(points((0.5, 0.6))) is None and alarm.message(points((0.5, 0.6), (math.nan, 0.1))) is None
    log = [{"step": 0, "eval_gold": 0.5, "eval_reward": 0.1}, {"step": 1, "loss": 0.0}, {"step": 5, "eval_gold": 0.4}]
    assert evaluations(log, 7) == [{"step": 0, "reward": 0.1, "gold": 0.5, "n": 7}, {"step": 5, "reward": None, "gold": 0.4, "n": 7}]
