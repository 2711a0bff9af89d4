"""Step searches: scripted policies and verifiers for the rules, the shipped tiny policy for the stitching of steps."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest

from vlrm import InputError, Problem, Score, Usage
from vlrm.policy import SEARCH
from vlrm.policy.beam_search import beam_search
from vlrm.policy.dvts import dvts
from vlrm.policy.guided_greedy import guided_greedy
from vlrm.policy.one_shot import one_shot
from vlrm.policy.result import as_record, result_from_record
from vlrm.prm.steps import split_steps
from vlrm.rm.answers import extract_answer
from vlrm.serving.engine import Completion

PROBLEM = Problem("p", "Spell it.", answer="abc")
OTHER = Problem("q", "Spell the other.", answer="zzz")


@dataclass
class Policy:
    """Writes `Step k: <letter>` a step; sample i of a request writes letter i of `letters`. After `length` steps comes the answer.

    It writes the whole rest of the solution, as a model would, and obeys stop strings. `tells=False` is a server that does not say why
    it stopped. A completion costs one token a character, a prompt one a request.
    """

    letters: str = "abcd"
    length: int = 3
    tells: bool = True
    joint: str = "\n"
    name: str = "scripted"
    usage: Usage = field(default_factory=Usage)
    seen: list = field(default_factory=list)
    calls: int = 0

    def generate(self, requests):
        self.calls += 1
        self.seen += requests
        return [[self.write(request, i) for i in range(request.n)] for request in requests]

    def write(self, request, i):
        done = re.findall(r"Step \d+: (\w)", request.prefix)
        letters = [*done, *[self.letters[i % len(self.letters)]] * (self.length - len(done))]
        whole = self.joint.join(f"Step {k}: {letter}" for k, letter in enumerate(letters, 1)) + f"\nAnswer: {letters[-1]}"
        assert whole.startswith(request.prefix), "the prefix is not what the policy would have written"
        text = whole[len(request.prefix) :]
        cuts = [(text.find(stop), stop) for stop in request.stop if stop in text]
        cut, stop = min(cuts, default=(len(text), ""))
        text = text[:cut]
        finish = "stop"
        if len(text) > request.max_tokens:
            text, stop, finish = text[: request.max_tokens], "", "length"
        self.usage += Usage(1 if i == 0 else 0, len(text), 1)
        return Completion(text, (), finish, len(text), 1, stop if self.tells else None)


@dataclass
class Judge:
    """Step scores by letter; the value is their mean. Spends a token on each sample."""

    worth: dict = field(default_factory=lambda: {"a": 0.2, "b": 0.9, "c": 0.5, "d": 0.4})
    usage: Usage = field(default_factory=Usage)
    seen: list = field(default_factory=list)
    max_steps: int = 12

    def __call__(self, samples):
        self.seen += [sample.solution for sample in samples]
        self.usage += Usage(len(samples), 0, len(samples))
        scores = []
        for sample in samples:
            steps = tuple(self.worth.get(step.text[:1], 0.1) for step in split_steps(sample.solution, self.max_steps))
            scores.append(Score(sum(steps) / len(steps), steps) if steps else Score(None, error="empty"))
        return scores


STEP = {"guided_greedy": guided_greedy, "beam_search": beam_search, "dvts": dvts}


def test_guided_greedy_takes_the_best_step_each_time():
    policy, judge = Policy(), Judge()
    [result] = guided_greedy([PROBLEM], policy, judge, n=4)
    assert result.text == "Step 1: b\nStep 2: b\nStep 3: b\nAnswer: b" and result.answer == "b" and len(result.candidates) == 1
    assert [request.prefix for request in policy.seen] == ["", "Step 1: b\nStep", "Step 1: b\nStep 2: b\nStep"]
    assert result.details == {"method": "guided_greedy", "rounds": 3, "duplicates": 0, "stopped": "ended", "unscored": 0}
    assert policy.calls == 3 and len(judge.seen) == 12


@pytest.mark.parametrize(("joint", "tells"), [("\n", True), ("\n\n", True), ("\n", False)])
def test_the_text_is_what_the_policy_would_have_written_in_one_go(joint, tells):
    policy = Policy("b", joint=joint, tells=tells)
    [result] = guided_greedy([PROBLEM], policy, Judge(), n=1)
    assert result.text == joint.join(["Step 1: b", "Step 2: b", "Step 3: b\nAnswer: b"])
    assert result.candidates[0].finish_reason == "stop" and len(result.candidates[0].steps) == 3


def test_paragraphs_stop_at_blank_lines():
    class Paragraphs(Policy):
        def write(self, request, i):
            left = ["a one", "b two", "c three\nAnswer: 3"][len(split_steps(request.prefix)) if request.prefix.strip() else 0 :]
            text = "\n\n".join(left)
            stop = next((s for s in request.stop if s in text), "")
            text = text.split(stop)[0] if stop else text
            return Completion(text, (), "stop", len(text), 1, stop)

    policy = Paragraphs()
    [result] = guided_greedy([PROBLEM], policy, Judge(), n=1)
    assert result.text == "a one\n\nb two\n\nc three\nAnswer: 3"
    assert [request.stop for request in policy.seen] == [("\nStep", "\n\n"), ("\n\n",), ("\n\n",)]


def test_own_step_stops_and_solution_stops():
    policy = Policy("b")
    [result] = guided_greedy([PROBLEM], policy, Judge(), n=1, step_stop=["\nStep 3"], stop=("\nAnswer",))
    assert policy.seen[0].stop == ("\nStep 3", "\nAnswer") and policy.seen[1].prefix == "Step 1: b\nStep 2: b\nStep 3"
    assert result.text == "Step 1: b\nStep 2: b\nStep 3: b" and result.details["stopped"] == "ended"


@pytest.mark.parametrize("name", STEP)
def test_rounds_are_limited_and_the_last_one_lets_every_solution_end(name):
    policy = Policy(length=30)
    n = {"n": 4} if name == "guided_greedy" else {"n": 4, "beam_width": 2}
    [result] = STEP[name]([PROBLEM], policy, Judge(max_steps=99), max_rounds=5, **n)
    assert policy.calls == 5 == result.details["rounds"]
    assert all(request.stop == () for request in policy.seen[-1:]) and result.answer is not None


def test_guided_greedy_has_the_papers_limit_of_a_hundred():
    policy = Policy("b", length=300)
    [result] = guided_greedy([PROBLEM], policy, Judge(max_steps=999), n=1)
    assert policy.calls == result.details["rounds"] == 100


def test_a_policy_that_never_ends_a_step_is_cut():
    class Endless(Policy):
        def write(self, request, i):
            return Completion("x" * request.max_tokens, (), "length", request.max_tokens, 1, "")

    [result] = beam_search([PROBLEM], Endless(), lambda samples: [Score(0.5, (0.5,)) for _ in samples], n=4, max_tokens=20)
    assert result.answer is None and result.details["rounds"] == 1 and result.cost.policy.completion_tokens == 80


def test_equal_steps_are_scored_once_the_first_kept():
    policy, judge = Policy("aabb", length=1), Judge()
    [result] = guided_greedy([PROBLEM], policy, judge, n=4)
    assert result.details["duplicates"] == 2 and len(judge.seen) == 2
    judge = Judge()
    [result] = guided_greedy([PROBLEM], Policy("aabb", length=1), judge, n=4, dedupe=False)
    assert result.details["duplicates"] == 0 and len(judge.seen) == 4


def test_beam_search_keeps_the_best_of_all_beams():
    policy, judge = Policy(), Judge()
    [result] = beam_search([PROBLEM], policy, judge, n=4, beam_width=2)
    assert [(request.prefix, request.n) for request in policy.seen[:3]] == [("", 4), ("Step 1: b\nStep", 2), ("Step 1: c\nStep", 2)]
    # Of ba, bb, ca, cb the last steps of bb and cb are best; equals keep their order.
    assert [request.prefix for request in policy.seen[3:]] == ["Step 1: b\nStep 2: b\nStep", "Step 1: c\nStep 2: b\nStep"]
    assert result.answer == "b" and len(result.candidates) == 4 and result.candidates[result.chosen].value == pytest.approx(0.9)


def test_the_rank_of_partial_solutions_is_a_setting():
    by_last = beam_search([PROBLEM], Policy("dcba"), Judge({"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.9}), n=4, beam_width=4, rank="last")
    assert by_last[0].text.startswith("Step 1: d\nStep 2: d")

    class Odd(Judge):
        def __call__(self, samples):
            return [Score(1 - score.value, score.steps) for score in super().__call__(samples)]

    [result] = guided_greedy([PROBLEM], Policy(), Odd(), n=4, rank="score")
    assert result.answer == "a"
    with pytest.raises(InputError, match="rank"):
        guided_greedy([PROBLEM], Policy(), Judge(), n=4, rank="best")


def test_dvts_trees_do_not_look_at_each_other():
    policy = Policy()
    [result] = dvts([PROBLEM], policy, Judge(), n=4, beam_width=2)
    assert [(request.prefix, request.n) for request in policy.seen[:2]] == [("", 2), ("", 2)]
    assert policy.seen[0].seed != policy.seen[1].seed
    assert len(result.candidates) == 2 and {c.answer for c in result.candidates} == {"b"}
    with pytest.raises(InputError, match="multiple of beam_width"):
        dvts([PROBLEM], Policy(), Judge(), n=6, beam_width=4)


@pytest.mark.parametrize("name", STEP)
def test_problems_grow_in_lockstep_and_costs_add_up(name):
    policy, judge = Policy(), Judge()
    results = STEP[name]([PROBLEM, OTHER], policy, judge, n=4)
    assert policy.calls == 3, "one call a round for all problems"
    costs = [result.cost for result in results]
    total = sum((cost.policy for cost in costs), Usage()), sum((cost.scorer for cost in costs), Usage())
    assert (total[0].prompt_tokens, total[0].completion_tokens, total[0].calls) == (
        policy.usage.prompt_tokens, policy.usage.completion_tokens, policy.usage.calls,
    )  # fmt: skip
    assert total[1].prompt_tokens == judge.usage.prompt_tokens and total[1].calls == judge.usage.calls
    alone = STEP[name]([OTHER], Policy(), Judge(), n=4)[0]
    assert alone.text == results[1].text and alone.cost.policy.completion_tokens == costs[1].policy.completion_tokens
    assert [result.problem_id for result in results] == ["p", "q"]
    record = as_record(results[0])
    assert result_from_record(record) == results[0]


@pytest.mark.parametrize("name", STEP)
@pytest.mark.parametrize("budget", [1, 3, 50, 70, 90])
def test_the_budget_is_never_exceeded(name, budget):
    policy = Policy()
    [result] = STEP[name]([PROBLEM], policy, Judge(), n=4, max_policy_tokens=budget)
    assert result.cost.policy.completion_tokens == policy.usage.completion_tokens <= budget
    assert result.details["stopped"] == "budget" or result.answer is not None


def test_unscored_steps_rank_last_and_are_counted():
    class Mute(Judge):
        def __call__(self, samples):
            return [
                Score(None, error="no") if "b" in s.solution else score for s, score in zip(samples, super().__call__(samples), strict=True)
            ]

    [result] = guided_greedy([PROBLEM], Policy(), Mute(), n=4)
    assert result.answer == "c"
    [result] = guided_greedy([PROBLEM], Policy("b"), Mute(), n=2)
    assert result.details["unscored"] == 1 and result.answer == "b"


def test_one_shot_shows_the_scorer_a_single_step():
    class Lengths(Judge):
        def __call__(self, samples):
            self.usage += Usage(len(samples), 0, len(samples))
            return [
                Score(1.0 / len(split_steps(s.solution, self.max_steps)), (1.0,) * len(split_steps(s.solution, self.max_steps)))
                for s in samples
            ]

    judge = Lengths()
    [result] = one_shot([PROBLEM], Policy(), judge, n=2)
    assert [len(c.score.steps) for c in result.candidates] == [1, 1] and len(result.candidates[0].steps) == 3
    assert judge.max_steps == 12 and judge.usage.calls == 2 == result.cost.scorer.calls and result.details["method"] == "one_shot"
    with pytest.raises(InputError, match="max_steps"):
        one_shot([PROBLEM], Policy(), lambda samples: [])


@pytest.mark.parametrize("wrong", [{"max_rounds": 0}, {"max_policy_tokens": 0}, {"n": 0}, {"temperature": -1}])
def test_bad_settings_are_refused(wrong):
    for method in STEP.values():
        with pytest.raises(InputError):
            method([PROBLEM], Policy(), Judge(), **wrong)
    assert set(STEP) <= set(SEARCH) and "one_shot" in SEARCH


def test_with_a_real_policy_steps_join_into_the_greedy_solution(tmp_path):
    """At temperature 0 a step search with one sample writes what the policy writes in one go."""
    from vlrm import load_engine
    from vlrm.data_synth import make_problems
    from vlrm.serving.engine import Request

    problems = make_problems(["bars", "ladder"], "dev", 4, 3, tmp_path)
    policy = load_engine("tiny-policy", device="cpu")
    requests = [
        Request([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": p.question}]}], p.images) for p in problems
    ]
    whole = [group[0].text for group in policy.generate(requests)]
    scorer = lambda samples: [Score(0.5, (0.5,)) for _ in samples]  # noqa: E731
    results = guided_greedy(problems, policy, scorer, n=1, temperature=0.0, max_tokens=160)
    assert [result.text for result in results] == whole and all(result.details["rounds"] >= 5 for result in results)
    assert all(extract_answer(text) for text in whole)
    sampled = beam_search(problems[:2], policy, scorer, n=4, beam_width=2, max_tokens=160)
    assert all(result.answer is not None and result.cost.policy.calls >= 12 for result in sampled)
