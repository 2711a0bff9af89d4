import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlrm.prm.critique import WORDS, Critique, StepCritique, format_critique, parse_critique

TEXT = """Step 1
Intent: read row 1
Image: red circle | red circle ok; blue square | green square no => Incorrect
Logic: none => Correct
Verdict: Incorrect
Correction: row 1 is red circle green square
Step 2
Intent: add
Image: => Correct
Logic: 2 + 3 = 5 | 5 ok => Correct
Verdict: Correct"""
CRITIQUE = Critique(
    steps=(
        StepCritique("read row 1", "red circle | red circle ok; blue square | green square no", False, "none", True, False),
        StepCritique("add", "", True, "2 + 3 = 5 | 5 ok", True, True),
    ),
    first_error=0,
    correction="row 1 is red circle green square",
)


def verdicts(parsed):
    return [step.judgement for step in parsed.steps]


def test_format():
    assert format_critique(CRITIQUE) == TEXT
    assert format_critique(CRITIQUE, stop_at_first_error=True) == TEXT[: TEXT.index("\nStep 2")]
    assert "Verdict: No\n" in format_critique(CRITIQUE, words=("Yes", "No"))
    bare = Critique((StepCritique(ok=True), StepCritique(ok=False)), first_error=1)
    assert format_critique(bare) == "Step 1\nVerdict: Correct\nStep 2\nVerdict: Incorrect"


def test_parse_gives_fields_and_spans():
    parsed = parse_critique(TEXT, 2)
    assert (parsed.first_error, parsed.correction, parsed.problems, parsed.failed) == (0, CRITIQUE.correction, (), 0)
    for step, said in zip(parsed.steps, CRITIQUE.steps, strict=True):
        assert (step.intent, step.image_analysis, step.image_ok, step.logic_analysis, step.logic_ok, step.ok) == tuple(vars(said).values())
        for span, ok in ((step.span, said.ok), (step.image_span, said.image_ok), (step.logic_span, said.logic_ok)):
            assert TEXT[slice(*span)] == WORDS[0 if ok else 1]
    assert TEXT[parsed.steps[0].span[0] - 9 : parsed.steps[0].span[0]] == "Verdict: "


line = st.text(st.characters(exclude_categories=["C", "Z"]), max_size=12).map(lambda s: s.replace("=>", "").strip("*_`>-"))
analysis = st.lists(line, max_size=3).map(lambda parts: " ".join(p for p in parts if p))


@st.composite
def critiques(draw):
    steps = []
    for _ in range(draw(st.integers(1, 5))):
        image, logic = draw(st.booleans()), draw(st.booleans())
        steps.append(StepCritique(draw(analysis), draw(analysis), image, draw(analysis), logic, image and logic))
    first = next((i for i, s in enumerate(steps) if not s.ok), None)
    return Critique(tuple(steps), first, "a b\nAnswer: 3" if first is not None else None)


@given(critiques(), st.sampled_from([("Correct", "Incorrect"), ("Yes", "No"), ("+", "-")]))
def test_round_trip(critique, words):
    text = format_critique(critique, words)
    parsed = parse_critique(text, len(critique.steps), words)
    assert verdicts(parsed) == [s.ok for s in critique.steps]
    assert [(s.image_ok, s.logic_ok) for s in parsed.steps] == [(s.image_ok, s.logic_ok) for s in critique.steps]
    assert (parsed.first_error, parsed.correction, parsed.problems) == (critique.first_error, critique.correction, ())
    assert all(text[slice(*s.span)] == words[0 if s.ok else 1] for s in parsed.steps)


@pytest.mark.parametrize(
    ("text", "n", "expected"),
    [
        ("**Step 1**\n- **Verdict:** **Correct**\n### Step 2:\nverdict :   INCORRECT.", 2, [True, False]),
        ("Step 1: Intent: a\nVerdict: Correct\nstep 2. Verdict: the step is incorrect", 2, [True, False]),
        ("Verdict: Correct", 1, [True]),
        ("Step 1\nVerdict: Correct\nStep 2\nVerd", 3, [True, None, None]),
        ("Step 1\nVerdict: maybe", 1, [None]),
        ("Step 1\nVerdict: not Correct", 1, [None]),
        ("Step 1\nImage: a => Correct\nLogic: b => Correct", 1, [True]),
        ("Step 1\nImage: a => Incorrect\nLogic: cut", 1, [False]),
        ("Step 1\nLogic: it is not Correct\nImage: fine, Correct.", 1, [None]),
        ("Step 1\nIntent: say Correct\nVerdict: Incorrect\nVerdict: Correct", 1, [False]),
        ("Step 1\r\nVerdict: Correct\r\nStep 2\r\nVerdict: Incorrect\r\n", 2, [True, False]),
        ("I think it is all Correct.", 2, [None, None]),
        ("", 1, [None]),
    ],
)
def test_tolerance(text, n, expected):
    assert verdicts(parse_critique(text, n)) == expected


@pytest.mark.parametrize(
    ("text", "n", "problem"),
    [
        ("Step 1\nVerdict: Correct", 2, "step 2: missing"),
        ("Step 1\nVerdict: Correct\nStep 1\nVerdict: Incorrect", 1, "step 1: judged twice"),
        ("Step 1\nVerdict: Correct\nStep 7\nVerdict: Correct", 1, "step 7: there is no such step"),
        ("Step 1\nVerdict: perhaps", 1, "step 1: no verdict, or an unknown verdict word"),
        ("Step 1\nVerdict: Correct\nCorrection: x", 1, "step 1: correction without error"),
        ("Step 1\nVerdict: Incorrect", 1, "step 1: error without correction"),
        ("Step 1\nVerdict: Incorrect\nCorrection: none", 1, "step 1: error without correction"),
        (
            "Step 1\nImage: => Incorrect\nLogic: => Correct\nVerdict: Correct",
            1,
            "step 1: the verdict contradicts the image and logic verdicts",
        ),
    ],
)
def test_problems(text, n, problem):
    assert parse_critique(text, n).problems == (problem,)


def test_only_the_first_errors_correction_counts():
    text = "Step 1\nVerdict: Incorrect\nCorrection: one\nStep 2\nVerdict: Incorrect\nCorrection: two"
    parsed = parse_critique(text, 2)
    assert (parsed.first_error, parsed.correction) == (0, "one")
    assert parsed.problems == ("step 2: correction of a step that is not the first error",)


def test_stopping_at_the_first_error_leaves_nothing_missing():
    text = "Step 1\nVerdict: Correct\nStep 2\nVerdict: Incorrect\nCorrection: x"
    parsed = parse_critique(text, 4, stop_at_first_error=True)
    assert (parsed.problems, parsed.failed, parsed.stopped) == ((), 0, True)
    assert parse_critique(text, 4).failed == 2
    right = parse_critique("Step 1\nVerdict: Correct", 2, stop_at_first_error=True)
    assert (right.failed, right.stopped) == (1, False)


def test_a_correction_may_hold_lines_that_look_like_fields():
    critique = Critique((StepCritique(ok=False), StepCritique(ok=True)), 0, "a\nStep 2\nVerdict: Correct\nAnswer: 3")
    parsed = parse_critique(format_critique(critique), 2)
    assert parsed.correction == "a Step 2 Verdict: Correct\nAnswer: 3" and verdicts(parsed) == [False, True]


def json_step(number, image, logic, overall, refinement="null"):
    return (
        f'{{"step": {number}, "step_intent": "see \\"judgment\\": x", "image_alignment": {{"analysis": "a {{", "judgment": "{image}"}}, '
        f'"reasoning_logic": {{"analysis": "b", "judgment": "{logic}"}}, "judgment": "{overall}", "step_refinement": {refinement}}}'
    )


BOTH = f"{json_step(1, 'Correct', 'Correct', 'Correct')}, {json_step(2, 'Incorrect', 'Correct', 'Incorrect', chr(34) + 'new' + chr(34))}"


@pytest.mark.parametrize(
    "text",
    [
        f"[{BOTH}]",
        f'```json\n{{"critiques": [{BOTH}]}}\n```',
        f"Here it is: [{BOTH}, {{'broken",
        f"[{BOTH}, " + json_step(3, "Correct", "Correct", "Correct")[:-40],
        BOTH.replace('"step": 1', '"step": 0').replace('"step": 2', '"step": 1'),
        BOTH.replace('"step": 1, ', "").replace('"step": 2, ', ""),
    ],
)
def test_json(text):
    parsed = parse_critique(text, 2)
    assert verdicts(parsed) == [True, False] and (parsed.first_error, parsed.correction) == (1, "new")
    assert [(s.image_ok, s.logic_ok) for s in parsed.steps] == [(True, True), (False, True)]
    assert [text[slice(*s.span)] for s in parsed.steps] == ["Correct", "Incorrect"]
    assert [text[slice(*s.image_span)] for s in parsed.steps] == ["Correct", "Incorrect"]
    assert text[: parsed.steps[0].span[0]].endswith('"judgment": "')
    assert parsed.steps[0].image_analysis == "a {"


pieces = st.sampled_from(
    ["Step 1", "step 2:", "\n", "Verdict:", " Correct", " Incorrect", "=>", "Image:", "Logic:", "Correction:", "{", "}",
     '"judgment"', ":", "[", "]", '"step": 1', ",", '"', "\\", "*", " ", "not", "```", "9", "é", "\x00", '"image_alignment": {', "Intent:"]
)  # fmt: skip


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=200), st.lists(pieces, max_size=40).map("".join)), st.integers(0, 4), st.booleans())
def test_never_raises(text, n, stop):
    parsed = parse_critique(text, n, stop_at_first_error=stop)
    assert len(parsed.steps) == n and 0 <= parsed.failed <= n
    for step in parsed.steps:
        for span, ok in ((step.span, step.ok), (step.image_span, step.image_ok), (step.logic_span, step.logic_ok)):
            assert (span is None) == (ok is None)
            if span is not None:
                assert text[slice(*span)].casefold() == WORDS[0 if ok else 1].casefold()
    assert parsed.first_error is None or parsed.steps[parsed.first_error].judgement is False


@pytest.mark.parametrize(
    "text",
    [
        "{" * 20000, "[" * 20000 + "{", '{"a":' * 5000, "*" * 20000, " " * 20000 + "x", "Step 1" + " " * 20000 + "x", "=>" * 10000,
        "Verdict: " + "*" * 20000, "Image:" + " " * 20000 + "x => Correct", "\n" * 20000, "Correct " * 4000, '{"judgment": ' * 2000,
    ],
)  # fmt: skip
def test_hostile_lengths_stay_quick(text):
    start = time.perf_counter()
    parse_critique(text, 3)
    assert time.perf_counter() - start < 2
