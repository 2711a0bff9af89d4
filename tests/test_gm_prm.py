"""The scorer against a scripted engine that knows what it says, token by token."""

import json
import math
import re

import pytest

import vlrm
from vlrm.prm.gm_prm import GMPRM, INSTRUCTIONS
from vlrm.prm.rederive import RederiveScorer
from vlrm.rm.load import load_scorer
from vlrm.serving.engine import Completion, Token
from vlrm.types import InputError, Problem, Sample, Usage

PROBLEM = Problem("p", "How many?", ["a.png", "b.png"], "7")
SOLUTION = "Step 1: see 3\nStep 2: see 4\nStep 3: 3 + 4 = 7\nAnswer: 7"


class FakeEngine:
    """Answers request i with texts[i % len]; tokens are words with their leading space. `logprobs` are those of the two tracked
    words at each verdict word, in order; elsewhere both are -9."""

    name = "fake"

    def __init__(self, *texts, logprobs=(), pattern=r"\s?\S+", finish="stop"):
        self.texts, self.logprobs, self.pattern, self.finish = texts, list(logprobs), pattern, finish
        self.usage, self.requests, self.calls = Usage(), [], 0

    def generate(self, requests):
        self.requests += requests
        self.calls += 1
        self.usage += Usage(completion_tokens=10 * len(requests), calls=1)
        return [[self.complete(self.texts[(i * r.n + j) % len(self.texts)], r) for j in range(r.n)] for i, r in enumerate(requests)]

    def complete(self, text, request):
        tokens, values = [], iter(self.logprobs)
        for i, match in enumerate(re.finditer(self.pattern, text)):
            is_verdict = request.track and match.group().strip().casefold() in {w.strip().casefold() for w in request.track}
            pair = next(values, (-9.0, -9.0)) if is_verdict else (-9.0, -9.0)
            tokens.append(Token(i, match.start(), match.end(), None, dict(zip(request.track, pair, strict=False))))
        return Completion(text, tuple(tokens), self.finish, len(tokens))


def critique(*oks, correction="see 5"):
    lines = []
    for i, ok in enumerate(oks):
        word = "Correct" if ok else "Incorrect"
        lines += [
            f"Step {i + 1}",
            f"Intent: not a verdict: Correct {i}",
            f"Image: Incorrect? no => {word}",
            "Logic: none => Correct",
            f"Verdict: {word}",
        ]
        if not ok and "Correction" not in "".join(lines):
            lines.append(f"Correction: {correction}")
    return "\n".join(lines)


def logprobs(*probabilities, rest=(-0.5, -3.0)):
    """For critique(): an intent and an image word before, then image, logic, overall for each step."""
    pairs = []
    for p in probabilities:
        pairs += [rest, rest, rest, (math.log(p), math.log(1 - p))]
    return pairs


def score(engine, **settings):
    return GMPRM(engine, **settings)([Sample(PROBLEM, SOLUTION)])[0]


def test_probabilities_are_read_at_the_overall_verdict():
    engine = FakeEngine(critique(True, False, True), logprobs=logprobs(0.9, 0.2, 0.7))
    result = score(engine)
    assert result.steps == pytest.approx((0.9, 0.2, 0.7)) and result.value == pytest.approx(0.6)
    assert (result.first_error, result.correction) == (1, "see 5")
    assert [(v.correct, v.image, v.logic) for v in result.verdicts] == [(True, True, True), (False, False, True), (True, True, True)]
    assert "not a verdict" in result.verdicts[0].analysis
    assert result.details["critique"] == engine.texts[0] and result.details["parse_failed"] == result.details["hard"] == 0


def test_the_prompt_and_the_request():
    engine = FakeEngine(critique(True, True, True))
    GMPRM(engine, max_tokens=77)([Sample(PROBLEM, "first\n\nsecond")])
    (request,) = engine.requests
    *pictures, text = request.messages[0]["content"]
    assert pictures == [{"type": "image"}] * 2 and request.images == ["a.png", "b.png"]
    assert text["text"] == "How many?\n\nSolution:\nStep 1: first\nStep 2: second\nCritique each step."
    assert (request.track, request.max_tokens, request.temperature, request.n) == ((" Correct", " Incorrect"), 77, 0.0, 1)
    longer = GMPRM(engine, instructions=INSTRUCTIONS).messages(PROBLEM, SOLUTION)[0]["content"][-1]["text"]
    assert longer.startswith("How many?\n\nSolution:\n" + SOLUTION + "\nCritique each step.\n\nYou are")


def test_normalisation_matters_only_when_mass_leaks():
    leak = [(-9, -9)] * 3 + [(math.log(0.3), math.log(0.1))]
    assert score(FakeEngine(critique(True), logprobs=leak)).steps[0] == pytest.approx(0.75)
    assert score(FakeEngine(critique(True), logprobs=leak), normalize=False).steps[0] == pytest.approx(0.3)


@pytest.mark.parametrize("aggregation", ["min", "product", "last", "geometric_mean"])
def test_aggregation_is_a_setting(aggregation):
    result = score(FakeEngine(critique(True, True, True), logprobs=logprobs(0.9, 0.5, 0.8)), aggregation=aggregation)
    assert result.value == pytest.approx({"min": 0.5, "product": 0.36, "last": 0.8, "geometric_mean": 0.36 ** (1 / 3)}[aggregation])


def test_tokens_that_are_only_a_beginning_of_the_word_count_and_others_fall_back():
    text = "Step 1\nVerdict: Correct\nStep 2\nVerdict: incorrect\nStep 3\nVerdict:Correct"
    halves = FakeEngine(text, logprobs=[], pattern=r"\s?\w{1,4}|\S")
    halves.complete = lambda t, r: Completion(
        t, tuple(Token(0, m.start(), m.end(), None, {" Correct": -1.0, " Incorrect": -1.0}) for m in re.finditer(r" In| Cor|\s?\w+|:", t))
    )
    result = score(halves)
    assert result.steps == (0.5, 0.0, 1.0)  # " Cor" begins " Correct"; " incorrect" and "Correct" are other tokens: hard 0 and 1
    assert result.details["hard"] == 2
    no_tokens = FakeEngine(critique(True, False, True))
    no_tokens.complete = lambda t, r: Completion(t)
    assert score(no_tokens).steps == (1.0, 0.0, 1.0)
    assert score(FakeEngine(critique(True), logprobs=[(-9, -9)] * 3 + [(-math.inf, -math.inf)])).steps[0] == 1.0


def test_unreadable_steps_score_a_half_and_are_counted():
    scorer = GMPRM(FakeEngine("Step 1\nVerdict: Correct\nStep 2\nVerdict: who knows"))
    result = scorer([Sample(PROBLEM, SOLUTION)])[0]
    assert result.steps[1:] == (0.5, 0.5) and result.details["parse_failed"] == 2
    assert [v.probability is None and v.correct is None for v in result.verdicts] == [False, True, True]
    assert scorer.parse_failure_rate == pytest.approx(2 / 3) and result.first_error is None
    garbage = score(FakeEngine("I cannot help with that"))
    assert garbage.steps == (0.5,) * 3 and garbage.correction is None


def test_sub_verdicts_stand_in_for_a_missing_overall_verdict():
    text = "Step 1\nImage: a => Correct\nLogic: b => Incorrect"
    pairs = [(math.log(0.8), math.log(0.2)), (math.log(0.3), math.log(0.7))]
    result = score(FakeEngine(text, logprobs=pairs))
    assert result.steps[0] == pytest.approx(0.3) and result.first_error == 0 and result.verdicts[0].correct is False


@pytest.mark.parametrize(
    ("correction", "kept"),
    [("see 5", "see 5"), ("Step 2: see 5", "see 5"), ("see  4", None), ("Step 2: see 4", None), ("none", None), ("", None)],
)
def test_a_correction_must_change_the_step(correction, kept):
    assert score(FakeEngine(critique(True, False, True, correction=correction))).correction == kept


def test_a_correction_of_the_last_step_may_leave_the_answer_out_but_must_change_something():
    assert score(FakeEngine(critique(True, True, False, correction="3 + 4 = 7"))).correction is None
    assert score(FakeEngine(critique(True, True, False, correction="3 + 4 = 8"))).correction == "3 + 4 = 8"
    assert score(FakeEngine(critique(True, True, False, correction="3 + 4 = 7\nAnswer: 8"))).correction == "3 + 4 = 7\nAnswer: 8"


def test_a_correction_that_the_token_limit_cut_is_not_used():
    text = "Step 1\nVerdict: Incorrect\nCorrection: see fi"
    assert score(FakeEngine(text, finish="length")).correction is None
    assert score(FakeEngine(text + "\nStep 2\nVerd", finish="length")).correction == "see fi"


def test_stopping_at_the_first_error_pads_with_zeros():
    text = critique(True, False)
    result = score(FakeEngine(text, logprobs=logprobs(0.9, 0.3)), stop_at_first_error=True)
    assert result.steps == pytest.approx((0.9, 0.3, 0.0)) and result.value == pytest.approx(0.4)
    assert result.details["parse_failed"] == 0 and result.verdicts[2].correct is None
    assert score(FakeEngine(text), stop_at_first_error=False).details["parse_failed"] == 1


def test_equal_samples_are_judged_once_and_order_is_kept():
    engine = FakeEngine(critique(True), critique(False), critique(True))
    first, second = Sample(PROBLEM, "one"), Sample(PROBLEM, "two")
    scores = GMPRM(engine)([second, first, second, Sample(PROBLEM, "  "), Sample(Problem("q", "Why?"), "one"), first])
    assert len(engine.requests) == 3 and engine.calls == 1
    assert [s.first_error for s in scores] == [None, 0, None, None, None, 0]
    assert (scores[3].value, scores[3].error, scores[3].steps) == (None, "the solution has no text", ())


def test_nothing_to_judge_calls_nothing():
    engine = FakeEngine("x")
    assert GMPRM(engine)([]) == [] and GMPRM(engine)([Sample(PROBLEM, "")])[0].value is None and engine.calls == 0


def test_votes_are_averaged():
    engine = FakeEngine(
        critique(True, False, True, correction="A"), critique(True, True, True), critique(True, False, True, correction="B")
    )
    result = score(engine, votes=3, temperature=0.7)
    assert (engine.requests[0].n, engine.requests[0].seed) == (3, 0)
    assert result.steps == pytest.approx((0.5, 0.5, 0.5)) and len(result.details["critiques"]) == 3  # both words as likely everywhere
    engine.complete = lambda t, r: Completion(t)  # hard verdicts
    result = score(engine, votes=3, temperature=0.7)
    assert result.steps == pytest.approx((1.0, 1 / 3, 1.0)) and (result.first_error, result.correction) == (1, "A")
    with pytest.raises(InputError, match="temperature"):
        GMPRM(engine, votes=2)


def test_usage_counts_only_the_scorers_own_calls():
    engine = FakeEngine(critique(True))
    engine.usage = Usage(completion_tokens=1000, calls=5)
    scorer = GMPRM(engine)
    scorer([Sample(PROBLEM, "one"), Sample(PROBLEM, "two")])
    assert (scorer.usage.completion_tokens, scorer.usage.calls) == (20, 1)


def test_correct_and_other_words():
    scorer = GMPRM(FakeEngine("Step 1\nVerdict: No\nCorrection: see 9"), words=("Yes", "No"))
    assert scorer.correct(PROBLEM, SOLUTION) == "see 9" and scorer.track == (" Yes", " No")
    for words in (("Yes",), "ab", ("Yes", "yes"), ("", "No")):
        with pytest.raises(InputError, match="words"):
            GMPRM(FakeEngine(), words=words)
    with pytest.raises(InputError, match="aggregation"):
        GMPRM(FakeEngine(), aggregation="median")


def test_rederiving_compares_each_step_with_the_models_own():
    own = {"Step 1:": " see 3", "Step 1: see 3\nStep 2:": " see 5 ", "Step 1: see 3\nStep 2: see 4\nStep 3:": " 3 + 4 = 7\nAnswer: 7"}
    engine = FakeEngine("x")
    engine.complete = lambda t, r: Completion(own[r.prefix])
    samples = [Sample(PROBLEM, SOLUTION), Sample(PROBLEM, SOLUTION), Sample(PROBLEM, "")]
    first, second, empty = RederiveScorer(engine)(samples)
    assert first == second and len(engine.requests) == 3 and {r.stop for r in engine.requests} == {("\nStep",)}
    assert (first.steps, first.first_error, first.correction) == ((1.0, 0.0, 1.0), 1, "see 5") and first.value == pytest.approx(2 / 3)
    assert empty.value is None and "no text" in empty.error


def test_loading(tmp_path):
    engine = FakeEngine(critique(True))
    (tmp_path / "vlrm.json").write_text(json.dumps({"scorer": "vlrm.prm.gm_prm:GMPRM", "base": "b", "settings": {"aggregation": "min"}}))
    scorer = load_scorer(tmp_path, engine, max_steps=5)
    assert isinstance(scorer, vlrm.Scorer) and (scorer.aggregation, scorer.max_steps, scorer.engine) == ("min", 5, engine)
    assert isinstance(load_scorer("http://localhost:1/v1", engine, aggregation="last"), GMPRM)
    with pytest.raises(InputError, match="did you mean 'aggregation'"):
        load_scorer(tmp_path, engine, agregation="min")
    with pytest.raises(InputError, match="engine must be"):
        load_scorer(tmp_path, "sglang")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, "no training finished here"),
        ("{", "not valid JSON"),
        ("[]", "must be an object"),
        ('{"scorer": "vlrm.prm.gm_prm:GMPRM", "setings": {}}', "did you mean 'settings'"),
        ('{"scorer": "vlrm.prm.gm_prm:GMPRM", "settings": {"votez": 2}}', "did you mean 'votes'"),
        ('{"scorer": "vlrm.prm.gm_prm:Nothing"}', "cannot load the scorer"),
        ('{"scorer": "no_such_package.module:X"}', "cannot load the scorer"),
        ('{"scorer": ""}', "cannot load the scorer"),
    ],
)
def test_folders_that_cannot_be_loaded(tmp_path, card, message):
    if card is not None:
        (tmp_path / "vlrm.json").write_text(card)
    with pytest.raises(InputError, match=message):
        load_scorer(tmp_path, FakeEngine())
    with pytest.raises(InputError, match="no such folder"):
        load_scorer(tmp_path / "gone")
