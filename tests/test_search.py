"""Search with scripted policies and critics: every case of Refined Best-of-N, budgets, seeds, ties and costs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlrm import InputError, Problem, Sample, Score, Usage, Verdict
from vlrm.policy import SEARCH, Candidate, best_of_n, refined_best_of_n, sample_pool, self_consistency, weighted_best_of_n
from vlrm.policy.result import as_record, result_from_record, total_cost
from vlrm.policy.sampling import best_index, request_seed, share, unscored
from vlrm.serving.engine import Completion

PROBLEM = Problem("p", "How many?", images=["a.png"], answer="3")
SOLUTION = "Step 1: one\nStep 2: two\nStep 3: three\nAnswer: 3"


@dataclass
class Policy:
    """Answers by script: `write(request) -> text`. Keeps every request it saw."""

    write: callable = lambda request: SOLUTION
    name: str = "scripted"
    usage: Usage = field(default_factory=Usage)
    seen: list = field(default_factory=list)
    calls: int = 0

    def generate(self, requests):
        self.calls += 1
        self.seen += requests
        texts = [self.write(request) for request in requests]
        done = [[Completion(text, completion_tokens=len(text), prompt_tokens=7 + len(request.prefix))]
                for text, request in zip(texts, requests, strict=True)]  # fmt: skip
        self.usage += sum((Usage(c[0].prompt_tokens, c[0].completion_tokens, 1) for c in done), Usage())
        return done


@dataclass
class Critic:
    """Scores by script: `judge(solution) -> Score`. Spends 10 + 3 tokens on each sample, and 1 on each call."""

    judge: callable = lambda text: Score(1.0)
    usage: Usage = field(default_factory=Usage)
    seen: list = field(default_factory=list)

    def __call__(self, samples: list[Sample]) -> list[Score]:
        self.seen += [sample.solution for sample in samples]
        self.usage += Usage(10 * len(samples) + 1, 3 * len(samples), len(samples))
        return [self.judge(sample.solution) for sample in samples]


def wrong_at(step: int, correction: str | None = "FIXED", value: float = 0.2) -> Score:
    verdicts = tuple(Verdict(i, i < step, 0.9 if i < step else 0.1) for i in range(3))
    return Score(value, verdicts=verdicts, first_error=step, correction=correction)


def right(value: float = 0.9) -> Score:
    return Score(value, verdicts=tuple(Verdict(i, True, 0.9) for i in range(3)))


def candidate(value: float | None, answer: str | None = None, wrong: int = 0) -> Candidate:
    verdicts = tuple(Verdict(i, i >= wrong, 0.5) for i in range(3))
    return Candidate(f"Answer: {answer}", answer, score=Score(value, verdicts=verdicts))


def numbered(request) -> str:
    """A solution whose answer is its own seed: no two slots alike."""
    return f"Step 1: one\nStep 2: two\nAnswer: {request.seed}"


# Refined Best-of-N, case by case


@pytest.mark.parametrize(("step", "prefix"), [
    (0, "Step 1: FIXED"),
    (1, "Step 1: one\nStep 2: FIXED"),
    (2, "Step 1: one\nStep 2: two\nStep 3: FIXED"),
])  # fmt: skip
def test_the_policy_goes_on_from_the_steps_before_the_error_and_the_correction(step, prefix):
    policy = Policy(lambda request: "\nAnswer: 4" if request.prefix else SOLUTION)
    critic = Critic(lambda text: wrong_at(step) if text == SOLUTION else right())
    result = refined_best_of_n([PROBLEM], policy, critic, n=2)[0]
    assert [request.prefix for request in policy.seen] == ["", prefix]
    first, second = result.candidates
    assert (first.origin, second.origin) == ("sampled", "refined")
    assert (second.text, second.parent, second.step, second.correction) == (prefix + "\nAnswer: 4", 0, step, "FIXED")
    assert (result.answer, result.chosen) == ("4", 1)


def test_nothing_of_the_wrong_step_or_after_it_reaches_the_policy():
    policy = Policy(lambda request: " go on\nAnswer: 4" if request.prefix else SOLUTION)
    refined_best_of_n([PROBLEM], policy, Critic(lambda text: wrong_at(1)), n=8)
    for request in policy.seen[4:]:
        assert "two" not in request.prefix and "three" not in request.prefix and "Answer" not in request.prefix


def test_paragraph_solutions_keep_their_style():
    policy = Policy(lambda request: "\n\nAnswer: 4" if request.prefix else "First one.\n\nThen two.\n\nAnswer: 9")
    refined_best_of_n([PROBLEM], policy, Critic(lambda text: wrong_at(1)), n=2)
    assert policy.seen[1].prefix == "First one.\n\nFIXED"


def test_steps_are_merged_as_the_critic_merges_them():
    policy = Policy(lambda request: "\n\nAnswer: 4" if request.prefix else "a\n\nb\n\nc\n\nd")
    critic = Critic(lambda text: wrong_at(1))
    critic.max_steps = 2
    refined_best_of_n([PROBLEM], policy, critic, n=2)
    assert policy.seen[1].prefix == "a\n\nb\n\nFIXED"


def test_no_fix_is_the_same_prefix_without_the_corrected_step():
    def write(request):
        return "\nStep 2: again\nAnswer: 5" if request.prefix else SOLUTION

    refined, control = Policy(write), Policy(write)
    refined_best_of_n([PROBLEM], refined, Critic(lambda text: wrong_at(1)), n=4)
    result = refined_best_of_n([PROBLEM], control, Critic(lambda text: wrong_at(1)), n=4, fix=False)[0]
    assert [request.prefix for request in control.seen[2:]] == ["Step 1: one"] * 2
    assert [request.seed for request in control.seen] == [request.seed for request in refined.seen]
    assert result.candidates[2].origin == "no_fix" and result.candidates[2].correction is None
    assert result.candidates[2].text == "Step 1: one\nStep 2: again\nAnswer: 5"


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("judge", [
    lambda text: right(),
    lambda text: wrong_at(0),
    lambda text: wrong_at(2, correction=None),
    lambda text: wrong_at(7),
    lambda text: Score(None, error="the critique could not be read"),
], ids=["no errors", "all wrong at step 1", "no correction", "outside", "unreadable"])  # fmt: skip
@pytest.mark.parametrize("fix", [True, False])
def test_exactly_n_candidates_of_which_the_first_half_is_sampled(n, judge, fix):
    result = refined_best_of_n([PROBLEM], Policy(numbered), Critic(judge), n=n, fix=fix)[0]
    assert len(result.candidates) == n
    initial = (n + 1) // 2
    assert all(candidate.origin == "sampled" for candidate in result.candidates[:initial])
    assert all(candidate.origin != "sampled" for candidate in result.candidates[initial:])
    assert result.details["origins"]["sampled"] == initial


def test_one_candidate_is_plain_sampling():
    policy = Policy(numbered)
    result = refined_best_of_n([PROBLEM], policy, Critic(lambda text: wrong_at(0)), n=1)[0]
    assert policy.calls == 1 and [request.prefix for request in policy.seen] == [""]
    assert result.answer == best_of_n([PROBLEM], Policy(numbered), Critic(), n=1)[0].answer


def test_without_errors_it_is_best_of_n():
    def judge(text):
        return right(int(text.rsplit(" ", 1)[1]) / 2**31)

    refined = refined_best_of_n([PROBLEM], Policy(numbered), Critic(judge), n=7, seed=3)[0]
    plain = best_of_n([PROBLEM], Policy(numbered), Critic(judge), n=7, seed=3)[0]
    assert [c.text for c in refined.candidates] == [c.text for c in plain.candidates]
    assert (refined.answer, refined.chosen) == (plain.answer, plain.chosen)
    assert refined.details["origins"] == {"sampled": 4, "resampled": 3}


def test_keep_repeats_the_parent_at_no_policy_cost():
    policy, critic = Policy(numbered), Critic(lambda text: right())
    result = refined_best_of_n([PROBLEM], policy, critic, n=4, no_error="keep")[0]
    assert len(policy.seen) == 2 and len(critic.seen) == 2
    assert [c.text for c in result.candidates[2:]] == [c.text for c in result.candidates[:2]]
    assert [c.origin for c in result.candidates[2:]] == ["kept", "kept"]
    assert result.cost.policy.calls == 2 and result.cost.scorer.calls == 2


def test_random_prefix_cuts_the_parent_inside_and_is_seeded():
    def run(seed):
        policy = Policy(lambda request: "\nStep 3: x\nAnswer: 1" if request.prefix else SOLUTION)
        refined_best_of_n([PROBLEM], policy, Critic(lambda text: right()), n=16, seed=seed, no_error="random_prefix")
        return [request.prefix for request in policy.seen[8:]]

    assert set(run(0)) == {"Step 1: one", "Step 1: one\nStep 2: two"}
    assert run(0) == run(0) != run(1)


@pytest.mark.parametrize("correction", [None, "", "  ", "two", " two\n"])
def test_a_missing_or_empty_or_unchanged_correction_is_no_correction(correction):
    policy = Policy()
    result = refined_best_of_n([PROBLEM], policy, Critic(lambda text: wrong_at(1, correction)), n=2)[0]
    assert policy.seen[1].prefix == "" and result.candidates[1].origin == "resampled"
    policy = Policy(lambda request: "\nAnswer: 3" if request.prefix else SOLUTION)
    result = refined_best_of_n([PROBLEM], policy, Critic(lambda text: wrong_at(1, correction)), n=2, no_correction="resample_step")[0]
    assert policy.seen[1].prefix == "Step 1: one" and result.candidates[1].origin == "no_fix"


def test_a_half_read_critique_without_an_error_is_not_kept():
    half_read = Score(0.8, verdicts=(Verdict(0, True, 0.9), Verdict(1, None, None)))
    result = refined_best_of_n([PROBLEM], Policy(), Critic(lambda text: half_read), n=2, no_error="keep")[0]
    assert result.candidates[1].origin == "resampled"


def test_initial_critiques_are_reused_or_made_again():
    for reuse, calls in ((True, 4), (False, 6)):
        critic = Critic(lambda text: wrong_at(1))
        result = refined_best_of_n([PROBLEM], Policy(), critic, n=4, reuse_scores=reuse)[0]
        assert len(critic.seen) == result.cost.scorer.calls == calls


def test_rounds_correct_the_regenerated_candidate_again_and_keep_n_and_the_cost():
    def write(request):
        return {"": SOLUTION, "Step 1: FIXED": "\nStep 2: bad\nAnswer: 8", "Step 1: FIXED\nStep 2: AGAIN": "\nAnswer: 3"}[request.prefix]

    def judge(text):
        if "FIXED" not in text:
            return wrong_at(0)
        return wrong_at(1, "AGAIN", 0.1) if "bad" in text else right()

    policy, critic = Policy(write), Critic(judge)
    result = refined_best_of_n([PROBLEM], policy, critic, n=2, rounds=3)[0]
    assert [c.text for c in result.candidates] == [SOLUTION, "Step 1: FIXED\nStep 2: AGAIN\nAnswer: 3"]
    assert result.answer == "3" and len(policy.seen) == 3
    assert (result.cost.policy.completion_tokens, result.cost.scorer.calls) == (policy.usage.completion_tokens, 3)
    once = refined_best_of_n([PROBLEM], Policy(write), Critic(judge), n=2)[0]
    assert "bad" in once.candidates[1].text


def test_policy_and_critic_are_called_once_for_each_half_of_all_problems():
    problems = [Problem(str(i), f"question {i}") for i in range(50)]
    policy, critic = Policy(numbered), Critic(lambda text: wrong_at(1))
    results = refined_best_of_n(problems, policy, critic, n=8)
    assert policy.calls == 2 and len(policy.seen) == 400 and len(critic.seen) == 400
    assert [result.problem_id for result in results] == [problem.id for problem in problems]


# Pools and seeds


def test_the_same_seed_gives_the_same_requests_whatever_else_is_asked():
    alone, crowd = Policy(numbered), Policy(numbered)
    best_of_n([PROBLEM], alone, Critic(), n=4, seed=5)
    best_of_n([Problem("q", "other"), PROBLEM], crowd, Critic(), n=4, seed=5)
    assert [r.seed for r in alone.seen] == [r.seed for r in crowd.seen[4:]]
    assert len({r.seed for r in crowd.seen}) == 8


def test_request_seeds_are_the_same_in_every_process():
    assert request_seed(0, "p", 0) == 898083057
    assert len({request_seed(s, p, slot, r) for s in range(9) for p in "ab" for slot in range(9) for r in range(2)}) == 324


def test_requests_carry_pictures_question_and_settings():
    policy = Policy()
    sample_pool([PROBLEM], policy, n=1, temperature=0.5, top_p=0.9, top_k=20, max_tokens=33, stop=("END",), instruction="Think.")
    request = policy.seen[0]
    content = [{"type": "image"}, {"type": "text", "text": "How many?\n\nThink."}]
    assert request.messages == [{"role": "user", "content": content}] and request.images == ["a.png"]
    assert (request.temperature, request.top_p, request.top_k, request.max_tokens, request.stop, request.n) == (
        0.5,
        0.9,
        20,
        33,
        ("END",),
        1,
    )


def test_a_pool_is_used_charged_and_topped_up():
    whole = sample_pool([PROBLEM], Policy(numbered), n=8, seed=1)
    policy = Policy(numbered)
    topped = sample_pool([PROBLEM], policy, n=8, seed=1, pool=[whole[0][:5]])
    assert len(policy.seen) == 3 and [c.text for c in topped[0]] == [c.text for c in whole[0]]
    policy = Policy(numbered)
    result = best_of_n([PROBLEM], policy, Critic(), n=4, seed=1, pool=whole)[0]
    assert policy.calls == 0 and [c.text for c in result.candidates] == [c.text for c in whole[0][:4]]
    assert result.cost.policy.completion_tokens == sum(c.policy_usage.completion_tokens for c in whole[0][:4]) > 0


def test_refining_from_a_pool_equals_refining_from_nothing():
    def judge(text):
        return wrong_at(1) if hash_of(text) % 2 else right()

    def hash_of(text):
        return sum(map(ord, text))

    whole = sample_pool([PROBLEM], Policy(numbered), n=9, seed=1)
    policy = Policy(numbered)
    pooled = refined_best_of_n([PROBLEM], policy, Critic(judge), n=9, seed=1, pool=whole)[0]
    fresh = refined_best_of_n([PROBLEM], Policy(numbered), Critic(judge), n=9, seed=1)[0]
    assert [c.text for c in pooled.candidates] == [c.text for c in fresh.candidates]
    assert len(policy.seen) == pooled.details["origins"].get("refined", 0)
    assert pooled.cost.policy.completion_tokens == fresh.cost.policy.completion_tokens
    assert pooled.cost.scorer.calls == fresh.cost.scorer.calls == 9


def test_scores_in_a_pool_are_kept_unless_stripped():
    scored = [list(best_of_n([PROBLEM], Policy(numbered), Critic(), n=4)[0].candidates)]
    critic = Critic()
    result = weighted_best_of_n([PROBLEM], Policy(), critic, n=4, pool=scored)[0]
    assert critic.seen == [] and result.cost.scorer.calls == 4
    best_of_n([PROBLEM], Policy(), critic, n=4, pool=unscored(scored))
    assert len(critic.seen) == 4


# Choosing


def test_the_highest_score_wins_and_none_ranks_below_every_number():
    assert best_index([candidate(0.2), candidate(0.7), candidate(0.5)]) == 1
    assert best_index([candidate(None, "1"), candidate(0.0, "2"), candidate(None, "1")]) == 1
    assert best_index([candidate(float("nan")), candidate(-3.0)]) == 1
    assert best_index([candidate(None), candidate(None)]) == 0


def test_ties_go_to_fewer_wrong_verdicts_then_the_majority_then_the_first():
    assert best_index([candidate(0.5, wrong=2), candidate(0.5, wrong=1), candidate(0.5, wrong=2)]) == 1
    assert best_index([candidate(0.5, "1"), candidate(0.5, "2"), candidate(0.5, "2.0")]) == 1
    assert best_index([candidate(0.5, "1"), candidate(0.5, "2")]) == 0


def test_majority_vote():
    def pool(*answers):
        return [[candidate(None, answer) for answer in answers]]

    def vote(*answers):
        return self_consistency([PROBLEM], Policy(), n=len(answers), pool=pool(*answers))[0]

    assert (vote("1", "2", "2.0").answer, vote("1", "2", "2.0").chosen, vote("1", "2", "2").details["votes"]) == ("2", 1, 2)
    assert vote("7", "2", "2", "7").answer == "7"
    assert (vote(None, None, "5").answer, vote(None, None).answer, vote(None, None).details["votes"]) == ("5", None, 0)


def test_weighted_vote_adds_scores_by_answer_and_takes_the_best_of_the_group():
    def choose(*pairs):
        pool = [[candidate(value, answer) for value, answer in pairs]]
        return weighted_best_of_n([PROBLEM], Policy(), lambda samples: [Score(None) for _ in samples], n=len(pairs), pool=pool)[0]

    assert choose((0.9, "1"), (0.4, "2"), (0.6, "2")).chosen == 2
    assert choose((0.9, "1"), (None, "2"), (None, "2")).answer == "1"
    assert choose((None, "1"), (None, "2"), (None, "2")).answer == "2"
    assert choose((0.9, None), (0.1, "2")).answer == "2"
    assert choose((0.0, "1"), (-0.5, "2")).answer == "1"


# Cost, errors, records


def test_costs_add_up_to_what_the_engines_counted():
    problems = [Problem(str(i), "question") for i in range(3)]
    policy, critic = Policy(numbered), Critic(lambda text: wrong_at(1))
    total = total_cost(refined_best_of_n(problems, policy, critic, n=5))
    assert replace(total.policy, seconds=0) == policy.usage and replace(total.scorer, seconds=0) == critic.usage
    assert total.policy.seconds > 0 and total.scorer.seconds > 0


def test_a_scorer_that_counts_each_sample_is_taken_at_its_word_if_the_counts_add_up():
    @dataclass
    class Counting:
        missing: int = 0
        usage: Usage = field(default_factory=Usage)

        def __call__(self, samples):
            scores = [Score(0.5, details={"usage": Usage(i, 2 * i, 1)}) for i in range(len(samples))]
            self.usage += sum((score.details["usage"] for score in scores), Usage(self.missing))
            return scores

    def prompt_tokens(scorer):
        return [c.scorer_usage.prompt_tokens for c in best_of_n([PROBLEM], Policy(numbered), scorer, n=3)[0].candidates]

    assert prompt_tokens(Counting()) == [0, 1, 2]
    assert prompt_tokens(Counting(missing=3)) == [2, 2, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_even_and_add_up(count):
    total = Usage(101, 55, 3, 2.0)
    parts = share(total, count)
    assert sum((replace(part, seconds=0) for part in parts), Usage()) == replace(total, seconds=0)
    assert max(p.prompt_tokens for p in parts) - min(p.prompt_tokens for p in parts) <= 1


@pytest.mark.parametrize(("arguments", "words"), [
    ({"n": 0}, "n must be"), ({"n": 2.5}, "n must be"), ({"rounds": 0}, "rounds"), ({"no_error": "drop"}, "resample, keep, random_prefix"),
    ({"no_correction": "x"}, "no_correction"),
    ({"temperature": -1}, "temperature"), ({"max_steps": 0}, "max_steps"), ({"pool": [[], []]}, "pool"),
])  # fmt: skip
def test_bad_settings_say_what_to_change(arguments, words):
    with pytest.raises(InputError, match=words):
        refined_best_of_n([PROBLEM], Policy(), Critic(), **arguments)


def test_unknown_settings_and_shared_ids_and_short_score_lists_are_errors():
    with pytest.raises(TypeError, match="temprature"):
        best_of_n([PROBLEM], Policy(), Critic(), temprature=1)
    with pytest.raises(InputError, match="two problems have the id 'p'"):
        best_of_n([PROBLEM, PROBLEM], Policy(), Critic())
    with pytest.raises(InputError, match="1 scores for 2 samples"):
        best_of_n([PROBLEM], Policy(), lambda samples: [Score(1.0)], n=2)


def test_no_problems_no_calls():
    for name, search in SEARCH.items():
        policy = Policy()
        assert (search([], policy) if name == "self_consistency" else search([], policy, Critic())) == []
        assert policy.calls == 0


def test_a_result_is_plain_json():
    result = refined_best_of_n([PROBLEM], Policy(), Critic(lambda text: wrong_at(1)), n=2)[0]
    record = json.loads(json.dumps(as_record(result)))
    assert record["candidates"][1]["origin"] == "refined" and record["candidates"][0]["score"]["first_error"] == 1
    assert result_from_record(record) == result
    assert result.text == result.candidates[result.chosen].text


# Properties

SCORES = st.sampled_from([
    right(), right(0.1),
    wrong_at(0), wrong_at(1), wrong_at(2), wrong_at(1, None), wrong_at(1, "two"), wrong_at(9), Score(None, error="unread"),
])  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    seed=st.integers(0, 2**40),
    scores=st.lists(SCORES, min_size=1, max_size=7),
    no_error=st.sampled_from(["resample", "keep", "random_prefix"]),
    no_correction=st.sampled_from(["resample", "resample_step"]),
    rounds=st.integers(1, 3),
    fix=st.booleans(),
    reuse=st.booleans(),
)
def test_whatever_the_critic_says(n, seed, scores, no_error, no_correction, rounds, fix, reuse):
    problems = [Problem("a", "q"), Problem("b", "q")]

    def run():
        policy = Policy(lambda request: f" go on\nAnswer: {request.seed}" if request.prefix else f"{SOLUTION}{request.seed % 9}")
        critic = Critic(lambda text: scores[sum(map(ord, text)) % len(scores)])
        options = dict(n=n, seed=seed, no_error=no_error, no_correction=no_correction, rounds=rounds, fix=fix, reuse_scores=reuse)
        return policy, critic, refined_best_of_n(problems, policy, critic, **options)

    policy, critic, results = run()
    assert [replace(r, cost=None, candidates=()) for r in results] == [replace(r, cost=None, candidates=()) for r in run()[2]]
    total = total_cost(results)
    assert replace(total.policy, seconds=0) == policy.usage and replace(total.scorer, seconds=0) == critic.usage
    for result in results:
        values = [c.value for c in result.candidates]
        assert len(result.candidates) == n and sum(result.details["origins"].values()) == n
        numbers = [v for v in values if v is not None]
        assert values[result.chosen] == (max(numbers) if numbers else None)
        assert result.details["unscored"] == values.count(None)
        for c in result.candidates:
            assert c.origin != "refined" or c.correction in c.text
            assert c.parent is None or c.parent < (n + 1) // 2
