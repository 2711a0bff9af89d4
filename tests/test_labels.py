"""Step labels: the rules' tables, the searches over rollouts, judges and inserted errors. Scripted engines; one run of the tiny policy."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest

from vlrm import Completion, InputError, Problem, Usage
from vlrm.data_synth import WORLDS, get_world, judge_steps, make_problems
from vlrm.data_synth.labels.binary import binary
from vlrm.data_synth.labels.flat import flat
from vlrm.data_synth.labels.insert import SWAPS, candidates, insert_into_text, insert_into_world
from vlrm.data_synth.labels.judge import agreeing_judges, judge_solutions, open_judge, read_analysis, read_critique
from vlrm.data_synth.labels.label import label_problems
from vlrm.data_synth.labels.omega import bonus, omega, value
from vlrm.data_synth.labels.rollouts import Ask, Rollouts, Solution, lockstep, rollout_seed, sample_solutions
from vlrm.data_synth.labels.rules import (
    Estimate,
    Judgement,
    advantage_labels,
    after_first_error,
    agreement,
    apply_rule,
    consensus,
    hard_flags,
    hybrid,
    section_index,
)
from vlrm.data_synth.worlds.base import format_solution, truthful
from vlrm.prm.steps import split_steps
from vlrm.rm.checkers import load_checker

T, F, N = True, False, None


def problem(name="p", answer="7", **more):
    return Problem(name, "How many?", [], answer, **more)


def solution(text, right, name="p-s0", of=None):
    return Solution(name, of or problem(), text, tuple(split_steps(text)), right)


def text(size=5, wrong=None, answer="7"):
    """`size` steps; the one numbered `wrong` (0-based) says so."""
    steps = [f"Step {i + 1}: {'BAD' if i == wrong else 'fine'} {i}" for i in range(size)]
    return "\n".join(steps) + f"\nAnswer: {answer}"


class Policy:
    """Goes on from any prefix: to the gold answer unless the prefix holds BAD; with `luck` also by the seed. Remembers its calls."""

    name = "stub"

    def __init__(self, luck=1.0, finish="stop", start=None):
        self.luck, self.finish, self.start, self.calls, self.usage = luck, finish, start, [], Usage()

    def generate(self, requests):
        self.calls.append(list(requests))
        return [[self.complete(request, sample) for sample in range(request.n)] for request in requests]

    def complete(self, request, sample):
        rng = random.Random(f"{request.seed} {sample}")
        if not request.prefix and self.start is not None:
            return Completion(self.start[sample % len(self.start)], completion_tokens=10, prompt_tokens=5)
        steps = len(split_steps(request.prefix))
        wrong = None if rng.random() < self.luck else rng.randrange(steps, 5)
        bad = "BAD" in request.prefix or wrong is not None
        body = "".join(f"\nStep {i + 1}: {'BAD' if i == wrong else 'fine'} {i}" for i in range(steps, 5))
        ending = "" if self.finish == "length" else f"\nAnswer: {5 if bad else 7}"
        return Completion((body + ending).lstrip() if not request.prefix else body + ending, (), self.finish, 3 + 5 - steps, 5)


def run(search, engine=None, **options):
    rollouts = Rollouts(engine or Policy(), **options)
    return lockstep([search], rollouts)[0], rollouts


# Rules


@pytest.mark.parametrize(("verdicts", "hard", "labels"), [
    ((T, T, T), (T, T, T), (1.0, 1.0, 1.0)),
    ((T, F, N), (T, T, T), (1.0, 0.0, None)),
    ((T, F, N), (F, F, F), (1.0, 0.0, None)),
    ((F, N, N), (N, N, N), (0.0, None, None)),
    ((T, T, T), (T, F, N), None),
    ((T, T, T), (T, N, T), None),
])  # fmt: skip
def test_the_hybrid_table(verdicts, hard, labels):
    assert hybrid(hard, verdicts).labels == labels


def test_hybrid_knows_a_step_by_its_section_and_number_not_by_its_text():
    kinds = ("perception", "perception", "reasoning", "reasoning")
    assert [section_index(kinds, "perception", 2), section_index(kinds, "reasoning", 2)] == [1, 3]
    assert section_index(kinds, "reasoning", 3) is None and section_index(kinds, "reasoning", 0) is None
    for header in ("[Visual Elements]", "[Perception]", "**Visual elements**"):
        said = f"{header}\n<analysis_1>ok</analysis_1><analysis_2>ok</analysis_2>\n[Reasoning]\n<analysis_1>no</analysis_1>"
        read = read_analysis(Completion(f"{said}<conclusion>Incorrect</conclusion>"), 4, kinds)
        assert read.verdicts == (T, T, F, N)
    through = "[Visual Elements]\n<analysis_1>a<analysis_2>b\n[Reasoning]\n<analysis_3>no<conclusion>Incorrect</conclusion>"
    assert read_analysis(Completion(through), 4, kinds).verdicts == (T, T, F, N)


@pytest.mark.parametrize(("verdicts", "hard", "exact", "first_error", "outcome"), [
    ((T, T, T), (T, T, T), 1, 1, 1),
    ((T, F, N), (T, F, F), 1, 1, 1),
    ((T, F, T), (T, F, F), 0, 1, 1),
    ((F, N, N), (T, F, F), 0, 0, 1),
    ((T, T, T), (T, F, N), 0, 0, 0),
    ((T, F, N), (T, T, T), 0, 0, 0),
    ((T, F, N), (N, F, F), 0, 0, 0),
])  # fmt: skip
def test_the_consensus_table(verdicts, hard, exact, first_error, outcome):
    for name, kept in (("exact", exact), ("first_error", first_error), ("outcome", outcome)):
        assert (consensus(hard, verdicts, name).labels is not None) == bool(kept), name
    with pytest.raises(InputError, match="unknown consistency"):
        consensus(hard, verdicts, "some")


def test_hard_soft_and_advantage_labels():
    counts = ((4, 4), (2, 4), (3, 4), (0, 4), (1, 4))
    estimate = Estimate(counts, hard_flags(counts))
    assert apply_rule("hard", estimate, None).labels == (1.0, 1.0, 1.0, 0.0, None)
    assert apply_rule("hard", estimate, None, after_error="wrong").labels == (1.0, 1.0, 1.0, 0.0, 0.0)
    assert apply_rule("hard", estimate, None, after_error="keep").labels == (1.0, 1.0, 1.0, 0.0, 1.0)
    assert apply_rule("soft", estimate, None).labels == (1.0, 0.5, 0.75, 0.0, None)
    assert advantage_labels(counts, (1, 2)) == (0.75, 0.25, 0.625, 0.125, 0.625)
    assert advantage_labels(counts, (2, 2), "sign") == (0.5, 0.0, 1.0, 0.0, 1.0)
    assert advantage_labels(((1, 1), None, (1, 1)), None) == (None, None, None)
    assert hard_flags(counts, threshold=0.5) == (T, F, T, F, F)
    assert apply_rule("hard", Estimate((None,), (None,)), None).dropped == "no step is labelled"
    for options in ({"after_error": "x"}, {"rule": "x"}, {"rule": "advantage", "advantage": "x"}):
        with pytest.raises(InputError, match=r"must be|unknown rule"):
            apply_rule(**{"rule": "hard", "estimate": estimate, "judgement": None, **options})
    assert after_first_error((1.0, 1.0), None, "wrong") == (1.0, 1.0)


def test_an_unread_judge_gives_no_label():
    unread = Judgement((None, None), "empty text")
    right = Estimate(((1, 1), (1, 1)), (T, T))
    for rule in ("judge", "hybrid", "consensus"):
        assert apply_rule(rule, right, unread).dropped == "judge unread" and apply_rule(rule, right, None).dropped == "not judged"


def test_two_completers_must_agree():
    strong = Estimate(((2, 4), (0, 4), (1, 4)), (T, F, T), 10)
    weak = Estimate(((1, 4), (1, 4), None), (T, T, None), 5)
    assert agreement(strong, weak) == Estimate(((2, 4), None, None), (T, None, None), 15)


# Rollouts


def test_a_round_is_one_call_and_equal_prefixes_are_asked_once():
    engine, a, b = Policy(), problem("a"), problem("b")
    rollouts = Rollouts(engine)
    asks = [Ask(b, "Step 1: x\nStep 2: y", 2), Ask(a, "Step 1: x", 2), Ask(b, "Step 1: x", 2), Ask(b, "Step 1: x\nStep 2: y", 2)]
    found = rollouts(asks)
    assert len(engine.calls) == 1 and [r.prefix for r in engine.calls[0]] == ["Step 1: x", "Step 1: x", "Step 1: x\nStep 2: y"]
    assert [sum(r.tokens for r in group) for group in found] == [12, 14, 14, 0]
    assert [r.text for r in found[0]] == [r.text for r in found[3]] and rollouts.counts["shared"] == 2
    rollouts([asks[0]])
    assert len(engine.calls) == 1
    assert len({rollout_seed(*parts) for parts in ((0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y"))}) == 4


def test_results_do_not_depend_on_what_else_is_asked():
    asks = [Ask(problem(name), text(5).split("\nStep 3")[0], 4) for name in "abcdef"]
    together = Rollouts(Policy(luck=0.5))(asks)
    apart = [Rollouts(Policy(luck=0.5))([ask])[0] for ask in reversed(asks)][::-1]
    assert together == apart and len({rollout.right for group in together for rollout in group}) == 2


def test_what_cannot_be_checked_is_counted_and_never_a_label():
    def raises(solution, problem):
        raise RuntimeError("boom")

    estimate, rollouts = run(flat(solution(text(), True), 4), check=raises)
    assert estimate.hard == (None, None, None, None, True) and rollouts.counts["checker_failed"] == 16
    estimate, rollouts = run(flat(solution(text(), False), 4), check=lambda solution, problem: None)
    assert estimate.hard[:4] == (None,) * 4 and rollouts.counts["unclear"] == 16
    for unfinished, flags in (("drop", None), ("wrong", False)):
        estimate, rollouts = run(flat(solution(text(), True), 4), Policy(finish="length"), unfinished=unfinished)
        assert estimate.hard == (flags,) * 4 + (True,) and rollouts.counts["unfinished"] == 16
    estimate, _ = run(binary(solution(text(), False), 4), Policy(finish="length"))
    assert estimate.hard == (None,) * 5
    with pytest.raises(InputError, match="temperature"):
        Rollouts(Policy(), temperature=0)


@pytest.mark.parametrize("wrong", range(5))
def test_flat_and_binary_find_the_first_error(wrong):
    sol = solution(text(5, wrong, answer="5"), False)
    estimate, rollouts = run(flat(sol, 4))
    assert estimate.hard == (T,) * wrong + (F,) * (5 - wrong) and rollouts.counts["rollouts"] == 16
    estimate, fewer = run(binary(sol, 4))
    assert estimate.hard == (T,) * wrong + (F,) + (N,) * (4 - wrong) and fewer.counts["rollouts"] <= 12
    assert estimate.tokens == fewer.counts["tokens"] < rollouts.counts["tokens"]
    estimate, _ = run(flat(sol, 4, stop_at_zero=True))
    assert estimate.hard[: wrong + 1] == (T,) * wrong + (F,) and set(estimate.hard[wrong + 1 : -1]) <= {N}


def test_a_right_solution_costs_binary_search_nothing():
    estimate, rollouts = run(binary(solution(text(), True), 8))
    assert estimate.hard == (T,) * 5 and not rollouts.counts["rollouts"]
    assert run(binary(solution(text(), None), 8))[0].hard == (N,) * 5
    one = "Only this.\nAnswer: 5"
    assert run(flat(solution(one, False), 4))[0].hard == (F,) and run(binary(solution(one, False), 4))[0].hard == (F,)


def test_binary_search_begins_behind_what_a_right_solution_shares():
    sol, right = solution(text(5, 4, "5"), False), solution(text(), True, "p-s1")
    estimate, rollouts = run(binary(sol, 4, siblings=[right]))
    assert estimate.hard == (T, T, T, T, F) and rollouts.counts["rollouts"] == 0
    half = solution(text(5, 3).replace("BAD", "odd"), True, "p-s2")
    estimate, rollouts = run(binary(sol, 4, siblings=[half, sol]))
    assert estimate.hard == (T, T, T, T, F) and rollouts.counts["rollouts"] == 4
    assert run(binary(sol, 4, siblings=[half], threshold=0.5))[1].counts["rollouts"] == 8
    policy = Policy(start=[sol.text, right.text])
    counts = [label_problems([problem()], policy, method="binary", samples=2, k=4, siblings=on).counts for on in (True, False)]
    assert [c["rollouts"] for c in counts] == [0, 8] and counts[0]["labels_negative"] == counts[1]["labels_negative"] == 1
    apart = label_problems([problem()], policy, method="binary", samples=2, k=4, completer=Policy())
    assert apart.counts["rollouts"] == 8  # the policy's success says nothing of the completer's


def test_the_tree_follows_its_formulas():
    assert value(0.5, 250) == pytest.approx(0.5**0.5 * 0.9**0.5) and value(1, 0) == 1
    assert bonus(0, 4) == 0.25 and bonus(1, 4) == 0.125 and bonus(0, 0) == 0
    sols = [solution(text(5, w, "5" if w is not None else "7"), w is None, f"p-s{i}") for i, w in enumerate((2, None, 4, 2))]
    found, rollouts = run(omega(problem(), sols, k=4))
    hard = {s.id: estimate.hard for s, estimate in found}
    assert hard == {"p-s0": (T, T, F, N, N), "p-s1": (T,) * 5, "p-s2": (T,) * 4 + (F,), "p-s3": (T, T, F, N, N)}
    assert sum(estimate.tokens for _, estimate in found) == rollouts.counts["tokens"]
    assert found[1][1].counts[1] == (4, 4)  # what the tree learnt on the way also stands at the right solution's prefixes
    assert run(omega(problem(), sols[:1], k=4))[0] == [] and run(omega(problem(), sols[1:2], k=4))[0] == []
    assert {s.id for s, _ in run(omega(problem(), sols, k=4, budget=1))[0]} != set(hard)


def test_the_tree_grows_its_own_wrong_solutions_and_takes_states_by_turns():
    sols = [solution(text(5, None), True, "p-s0"), solution(text(5, 4, "5"), False, "p-s1")]
    found, rollouts = run(omega(problem(), sols, k=8, searches=6), Policy(luck=0.5))
    own = [(s, e) for s, e in found if "-t" in s.id]
    assert own and all("BAD" in s.text for s, _ in own) and len({s.text for s, _ in found}) == len(found)
    assert all(e.hard.count(False) == 1 for _, e in own) and rollouts.counts["rollouts"] <= 6 * 3 * 8


def test_sampled_solutions_that_do_not_end_or_hold_nothing_are_counted():
    pools, counts = sample_solutions([problem()], Rollouts(Policy(start=[text(), " ", text(3, 1, "5")])), 3)
    assert [s.id for s in pools[0]] == ["p-s0", "p-s2"] and [s.right for s in pools[0]] == [True, False]
    assert counts["solutions_empty"] == 1 and counts["solutions_right"] == 1
    pools, counts = sample_solutions([problem()], Rollouts(Policy(finish="length")), 3)
    assert pools == [[]] and counts["solutions_unfinished"] == 3


# Judges


def said(content, finish="stop"):
    return Completion(content, (), finish, 7)


@pytest.mark.parametrize(("content", "verdicts"), [
    ("<analysis_1>ok</analysis_1>\n<analysis_2>The bar is 4.</analysis_2>\n<conclusion>Incorrect</conclusion>", (T, F, N)),
    ("<analysis_1>ok</analysis_1> <conclusion> Correct </conclusion>", (T, T, T)),
    ("< Analysis 1 >fine\n**Conclusion:** Incorrect", (F, N, N)),
    ("```\n<analysis_3>x</analysis_3>\n<conclusion>The solution is INCORRECT.</conclusion>```", (T, T, F)),
    ("<analysis_2>x</analysis_2> <conclusion>not correct</conclusion>", N),
    ("The solution looks good to me, every step is correct.", N),
    ("", N), ("  \n", N), ("<conclusion>Incorrect</conclusion>", N), ("<analysis_9>no</analysis_9><conclusion>Incorrect</conclusion>", N),
    ("<analysis_1>ok</analysis_1> <analysis_2>", N),
])  # fmt: skip
def test_a_judge_is_read_tolerantly_and_nothing_is_invented(content, verdicts):
    read = read_analysis(said(content), 3)
    assert (read.unread is not None) == (verdicts is None)
    assert read.verdicts == ((N, N, N) if verdicts is None else verdicts)


def test_a_critique_serves_as_a_judgement():
    whole = "Step 1\nIntent: a\nImage: x => Correct\nLogic: none => Correct\nVerdict: Correct\n"
    wrong = "Step 2\nIntent: b\nImage: y => Incorrect\nLogic: none => Correct\nVerdict: Incorrect\nCorrection: better\n"
    read = read_critique(said(whole + wrong), ["one", "two"])
    assert read.verdicts == (T, F) and read.correction == "better" and read.critiques[1].image_ok is False
    stopped = read_critique(said(whole + wrong), ["one", "two", "three"])
    assert stopped.verdicts == (T, F, N) and stopped.critiques is None and stopped.unread is None
    for content in ("", "All is well.", wrong):
        assert read_critique(said(content), ["one", "two"]).unread
    assert read_critique(said(whole, "length"), ["one", "two"]).unread == "cut off by the token limit"
    assert read_critique(said(whole + wrong.replace("better", "Step 2: two")), ["one", "two"]).correction is None


class Critic(Policy):
    """Judges by what the numbered steps say."""

    name = "critic"

    def complete(self, request, sample):
        prompt = request.messages[0]["content"][-1]["text"]
        found = re.search(r"Step (\d+): BAD", prompt)
        if "nonsense" in prompt:
            return Completion("Well, well.", completion_tokens=2)
        if found is None:
            return Completion("<conclusion>Correct</conclusion>", completion_tokens=2)
        return Completion(f"<analysis_{found[1]}>wrong</analysis_{found[1]}><conclusion>Incorrect</conclusion>", completion_tokens=4)


def critic(engine):
    return lambda solutions: judge_solutions(solutions, engine)


def test_the_judge_labels_and_its_failures_are_counted():
    policy = Policy(start=[text(), text(5, 2, "5"), "Step 1: nonsense\nAnswer: 1"])
    done = label_problems([problem()], policy, method="judge", rule="judge", samples=3, judge=critic(Critic()))
    assert [record.labels for record in done.records] == [(1.0,) * 5, (1.0, 1.0, 0.0, None, None)]
    assert done.counts["judge unread: no conclusion"] == 1 and done.counts["dropped: judge unread"] == 1
    assert len(policy.calls) == 1 and done.records[1].first_error == 2 and done.counts["judge_tokens"] == 8
    assert label_problems([problem(answer=None)], policy, method="judge", rule="judge", judge=critic(Critic())).counts["records"] == 1


class Says(Policy):
    """A judge that names the step it was made with (0-based; None: all are right), or writes prose; remembers how many it was asked."""

    def __init__(self, first_error, prose=False):
        super().__init__()
        self.first_error, self.prose = first_error, prose

    def complete(self, request, sample):
        if self.prose:
            return Completion("Hm.", completion_tokens=1)
        if self.first_error is None:
            return Completion("<conclusion>Correct</conclusion>", completion_tokens=2)
        k = self.first_error + 1
        return Completion(f"<analysis_{k}>no</analysis_{k}><conclusion>Incorrect</conclusion>", completion_tokens=4)


@pytest.mark.parametrize(("others", "agree", "reason"), [
    ((2, 2), "first_error", None), ((2, 1), "first_error", "judges disagree"), ((2, 1), "outcome", None), ((1, N), "read", None),
    ((2, N), "outcome", "judges disagree"), ((2, "prose"), "read", "no conclusion"), (("prose", 2), "first_error", "no conclusion"),
])  # fmt: skip
def test_several_judges_must_agree(others, agree, reason):
    engines = [Says(2), *(Says(N, prose=True) if one == "prose" else Says(one) for one in others)]
    judge = agreeing_judges([critic(engine) for engine in engines], agree)
    (judgement,), counts = judge([solution(text(4, 2, "5"), False)])
    assert judgement.unread == reason and judgement.verdicts == ((T, T, F, N) if reason is None else (N,) * 4)
    assert counts["judges_agree"] == (reason is None) and counts["judges_disagree"] == (reason == "judges disagree")
    assert counts["judged"] == sum(len(engine.calls) for engine in engines) == (2 if others[0] in ("prose",) else 3)
    assert judgement.tokens == counts["judge_tokens"]


def test_what_judges_disagree_on_is_dropped_and_counted():
    policy = Policy(start=[text(), text(5, 2, "5")])
    judge = agreeing_judges([critic(Critic()), critic(Says(2)), critic(Critic())])
    done = label_problems([problem()], policy, method="judge", rule="judge", samples=2, judge=judge)
    assert [record.labels for record in done.records] == [(1.0, 1.0, 0.0, None, None)]
    assert done.counts["dropped: judges disagree"] == 1 == done.counts["judges_agree"] and "dropped: judge unread" not in done.counts
    assert done.records[0].meta["judge_tokens"] == 12
    with pytest.raises(InputError, match="judges_agree must be"):
        agreeing_judges([judge, judge], "all")
    with pytest.raises(InputError, match="two judges"):
        agreeing_judges([judge])


def test_hybrid_makes_rollouts_only_where_the_judge_finds_no_error():
    lucky = text(5, 2, "7").replace("BAD", "odd")  # the judge finds nothing
    policy = Policy(start=[text(5, 3, "5"), lucky])
    done = label_problems([problem()], policy, method="flat", rule="hybrid", samples=2, k=2, judge=critic(Critic()))
    assert [r.labels for r in done.records] == [(1.0, 1.0, 1.0, 0.0, None), (1.0,) * 5]
    assert done.counts["rollouts"] == 8 and done.records[0].mc_counts is None and done.records[1].mc_scores == (1.0,) * 5


def test_consensus_keeps_what_both_say_and_drops_the_rest():
    policy = Policy(start=[text(5, 3, "5"), text(5, 1, "5").replace("BAD", "BADLY hidden BAD").replace("Step 2: BAD", "Step 2: ")])
    done = label_problems([problem()], policy, method="binary", rule="consensus", samples=2, k=2, judge=critic(Critic()))
    assert [r.labels for r in done.records] == [(1.0, 1.0, 1.0, 0.0, None)]
    assert done.counts["dropped: judge and rollouts disagree"] == 1


def test_a_trained_critic_is_asked_as_it_was_trained(tmp_path):
    (tmp_path / "vlrm.json").write_text('{"scorer": "vlrm.prm.gm_prm:GMPRM", "base": "x", "settings": {"words": ["Yes", "No"]}}')
    spec, options, asked = open_judge(f"vllm:{tmp_path}")
    assert spec == f"vllm:{tmp_path}" and options == {} and asked == {"style": "critique", "instructions": "", "words": ["Yes", "No"]}
    (tmp_path / "adapter_config.json").write_text("{}")
    assert open_judge(str(tmp_path))[:2] == ("transformers:x", {"adapter": str(tmp_path)})
    assert open_judge("http://host/v1", "critique") == ("http://host/v1", {}, {"style": "critique"})


# Whole batches


def test_records_say_how_they_came_about():
    policy, weak = Policy(start=[text(), text(5, 2, "5")]), Policy(luck=0.0)
    done = label_problems([problem(), problem("q", answer=None)], policy, samples=2, k=4, seed=3)
    first, second = done.records
    assert (first.id, second.id) == ("p-s0", "p-s1") and second.mc_counts == ((4, 4), (4, 4), (0, 4), (0, 4), (0, 1))
    assert second.labels == (1.0, 1.0, 0.0, None, None) and second.first_error == 2 and first.first_error is None
    assert second.meta["root"] == [1, 2] and second.meta["policy"] == "stub" and second.meta["seed"] == 3 and second.meta["k"] == 4
    assert done.counts["no_gold_answer"] == 1 and done.counts["labels_negative"] == 1 and done.counts["labels_null"] == 2
    both = label_problems([problem()], policy, weak=weak, samples=2, k=4)
    assert both.records[0].labels == (None, None, None, None, 1.0) and both.counts["completers_disagree"] == 6
    assert both.counts["weak_rollouts"] > 0 and both.records[0].meta["weak_counts"][0] == [0, 4]


def test_a_policy_that_never_ends_gives_no_record():
    done = label_problems([problem()], Policy(finish="length"), samples=4)
    assert done.records == () and done.counts["solutions_unfinished"] == 4 and not done.counts["rollouts"]


@pytest.mark.parametrize(("options", "message"), [
    ({"method": "tree"}, "method must be"), ({"rule": "hybrid"}, "needs a judge"), ({"method": "binary", "rule": "advantage"}, "flat"),
    ({"method": "judge"}, "makes no rollouts"), ({"k": 0}, "k must be"), ({"tree": {"depth": 1}}, "no setting 'depth'"),
    ({"temperature": 0.0}, "temperature"), ({"unfinished": "x"}, "unfinished"),
])  # fmt: skip
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        label_problems([problem()], Policy(), **({"judge": critic(Critic())} if options.get("method") == "judge" else {}), **options)


# Inserted errors


def test_errors_put_into_worlds_are_where_they_are_said_to_be(tmp_path):
    problems, kinds = make_problems(list(WORLDS), "train", 12, 1, tmp_path), set()
    for number, item in enumerate(problems):
        found = insert_into_world(item, random.Random(number))
        if found is None:
            continue
        truths = judge_steps(item, found.steps)
        assert all(truth.right for truth in truths[: found.step]) and truths[found.step].error == found.kind
        kinds.add(found.kind)
    assert kinds == {"perception", "reasoning"}


def test_errors_put_into_foreign_text_are_one_swap():
    steps = ["The Red bar is left of the blue bar.", "The red bar is 4 and the blue one 12.", "So 4 + 12 = 16.\nAnswer: 16"]
    rules, places = set(), set()
    for seed in range(200):
        found = insert_into_text(steps, random.Random(seed))
        changed = [i for i, (a, b) in enumerate(zip(steps, found.steps, strict=True)) if a != b]
        assert changed == [found.step] and found.original != found.swapped and found.swapped in found.steps[found.step]
        assert found.steps[2].endswith("Answer: 16") and (found.kind == "reasoning") == (found.rule == "result")
        rules.add(found.rule)
        places.add(found.step)
    assert rules == {"word", "number", "result"} and places == {0, 1, 2}
    assert insert_into_text(["Nothing here to speak of.", "Answer: 3"], random.Random(0)) is None
    only = insert_into_text(steps, random.Random(0), ("reasoning", "reasoning", "reasoning"))
    assert only.rule == "result" and candidates(2, steps[2], "perception") == []
    assert [c.text for c in candidates(0, "Left of it", None)] == ["Right"] and all(w not in others for w, others in SWAPS.items())


def test_insertions_become_records_and_what_offers_nothing_is_counted():
    bare = "Step 1: fine\nStep 2: well\nAnswer: 7"
    done = label_problems([problem()], Policy(start=[bare, "Step 1: two red dots\nStep 2: 3 + 4 = 7\nAnswer: 7"]), samples=2, insertions=2)
    inserted = [record for record in done.records if "inserted" in record.meta]
    assert len(inserted) == 2 and done.counts["insertion: nothing to swap"] == 2
    for record in inserted:
        step = record.meta["inserted"]["step"]
        assert record.first_error == step and record.labels == (1.0,) * step + (0.0,) + (None,) * (1 - step)


# Checkers


@pytest.mark.parametrize(("spec", "answer", "gold", "right"), [
    ("auto", "7.0", "7", T), ("auto", "\\frac{1}{2}", "0.5", T), ("auto", "(B)", "b", T), ("auto", "8", "7", F),
    ("choice", "B. seven", "(B)", T), ("choice", "C", "B", F), ("choice", "B", "seven circles", N),
    ("numeric", "100.5", "100", T), ("numeric", "102", "100", F), ("numeric:0.05", "102", "100", T), ("numeric", "5 cm", "5", T),
    ("numeric", "many", "5", F), ("numeric", "5", "many", N), ("numeric:0", "0", "0", T), ("math", "2x+2", "2(x+1)", T),
])  # fmt: skip
def test_checkers(spec, answer, gold, right):
    assert load_checker(spec)(f"Step 1: so.\nAnswer: {answer}", problem(answer=gold)) is right


def test_a_checker_of_ones_own_and_unknown_ones(tmp_path, monkeypatch):
    (tmp_path / "my_checks.py").write_text("def long_enough(solution, problem):\n    return len(solution) > 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert load_checker("my_checks:long_enough")("long", problem()) is True
    assert load_checker("auto")("no answer line", problem()) is False and load_checker()("Answer: 1", problem(answer=None)) is None
    for spec in ("exact", "numeric:x", "numeric:-1", "my_checks:none", "no_such_module:f"):
        with pytest.raises(InputError, match="checker"):
            load_checker(spec)


# The tiny policy


def test_the_tiny_policy_labels_world_problems(tmp_path):
    from vlrm import load_engine

    problems = make_problems(["grid"], "test", 2, 5, tmp_path)
    done = label_problems(
        problems, load_engine("tiny-policy"), method="binary", samples=2, k=2, temperature=0.6, max_tokens=160, insertions=1
    )
    assert done.counts["solutions"] == 4 and done.counts["records"] == len(done.records) >= 2
    assert all(len(r.labels) == len(r.steps) for r in done.records)
    for record in done.records:
        if "inserted" not in record.meta:
            assert record.meta["right"] is (record.first_error is None)


def test_sections_of_a_sampled_solution_become_kinds():
    text = "[Visual Elements]\n<step_1>\na 3\n</step_1>\n[Reasoning]\n<step_1>\n3 + 1 = 4\n</step_1>\n"
    text += "<correct_answer>\n\\boxed{4}\n</correct_answer>"

    class Sectioned:
        name, usage = "sectioned", Usage()

        def generate(self, requests):
            return [[Completion(text, completion_tokens=9)] * request.n for request in requests]

    problem = Problem("p", "What is a plus one?", answer="4")
    ((solution,),), _ = sample_solutions([problem], Rollouts(Sectioned()), 1)
    assert [step.kind for step in solution.steps] == ["perception", "reasoning"] and solution.right
    assert solution.prefix(0).endswith("</step_1>")


def test_a_world_tells_the_kinds_of_plain_steps(tmp_path):
    """Bars reads three heights and calculates twice; ladder's walking steps claim both kinds, so they have none."""
    problems = {item.meta["world"]: item for item in make_problems(["bars", "ladder"], "test", 2, 5, tmp_path)}
    written = {name: get_world(name).write(item.meta["scene"], truthful) for name, item in problems.items()}
    spoilt = ["The sky is blue.", *written["bars"][1:]]
    policy = Policy(start=[format_solution(written["bars"]), format_solution(spoilt)])
    P, R = "perception", "reasoning"
    done = label_problems([problems["bars"]], policy, samples=2, k=2)
    assert [record.kinds for record in done.records] == [(P, P, P, R, R), (N, P, P, R, R)]
    first = done.records[0]
    assert first.meta["kinds_by"] == "world" and first.sections == (N,) * 5
    ladder = label_problems([problems["ladder"]], Policy(start=[format_solution(written["ladder"])]), k=2)
    assert ladder.records[0].kinds == (P, R, N, N, N, N, N)
    swapped = label_problems([problems["bars"]], policy, samples=2, k=2, insertions=2).records
    assert {record.kinds for record in swapped if "inserted" in record.meta} == {(P, P, P, R, R)}
    off = label_problems([problems["bars"]], policy, samples=2, k=2, world_kinds=False).records
    assert all(record.kinds is None and "kinds_by" not in record.meta for record in off)
    foreign = Problem("p", "Who?", answer="7", meta={"world": "Middle-earth", "scene": "I"})
    assert label_problems([foreign], Policy(start=[text()]), k=2).records[0].kinds is None


def test_kinds_told_by_a_world_choose_labels_but_show_no_headers(tmp_path):
    """What is trained on is what search shows: a plain solution without headers."""
    from vlrm.prm.exporters import verdict_messages
    from vlrm.prm.record_files import read_records, write_records
    from vlrm.prm.train_vl_prm import Verdicts
    from vlrm.prm.verdicts import TargetRule, VerdictStyle

    item = make_problems(["bars"], "test", 1, 5, tmp_path)[0]
    solution = format_solution(get_world("bars").write(item.meta["scene"], truthful))
    item = replace(item, answer="7")  # what the stub goes on to
    write_records(tmp_path / "labels.jsonl", label_problems([item], Policy(start=[solution]), k=2).records)
    (record,) = read_records(tmp_path / "labels.jsonl")
    chats = {}
    for kinds in (("perception",), ("reasoning",)):
        request, values = Verdicts(VerdictStyle(), TargetRule(kinds=kinds)).chat(record)
        chats[kinds] = "".join(part.get("text", "") for message in request.messages for part in message["content"])
        assert [value is not None for value in values] == ([True] * 3 if kinds == ("perception",) else [False] * 3 + [True] * 2)
        assert "[Visual Elements]" not in chats[kinds] and "[Reasoning]" not in chats[kinds]
    assert "[Visual Elements]" not in str(verdict_messages(record))
    sectioned = replace(record, meta={})
    assert "[Visual Elements]" in str(verdict_messages(sectioned)) and sectioned.sections == sectioned.kinds
