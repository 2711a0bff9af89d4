import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlrm.rm.answers import extract_answer, same_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Step 1: x\nAnswer: 7", "7"),
        ("Answer: 3\nno wait\nAnswer: red circle ", "red circle"),
        ("**Answer:** 12", "12"),
        ("**Final answer: B**", "B"),
        ("Answer: $\\boxed{\\frac{1}{2}}$", "\\frac{1}{2}"),
        ("so it is \\boxed{a{b}c}.", "a{b}c"),
        ("Answer:\n\n42\nbye", "42"),
        ("\\boxed{1} then Answer:", "1"),
        ("the answer is 7", None),
        ("\\boxed{7", None),
        ("", None),
    ],
)
def test_extract(text, answer):
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("7", " 7. "),
        ("Red  Circle", "red circle"),
        ("1,000", "1000.0"),
        ("0.5", "1/2"),
        ("\\frac{1}{2}", "0.5"),
        ("-1/4", "-0.25"),
        ("50%", "50"),
        ("(B)", "b"),
        ("B. red", "B"),
        ("(C) blue one", "c."),
        ("$x$", "x"),
        ("\\text{left}", "left"),
        ("\u22123", "-3"),
        ("\\sqrt{8}", "2\\sqrt{2}"),
    ],
)
def test_same(a, b):
    assert same_answer(a, b) and same_answer(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("7", "8"), ("7", "17"), (None, "7"), (None, None), ("", ""), ("A", "B"), ("a", "a cat"), ("B. red", "A. red"),
        ("1/0", "1"), ("12", "1,2"), ("red circle", "red"), ("\\sqrt{8}", "2"), ("nan", "7"),
    ],
)  # fmt: skip
def test_not_same(a, b):
    assert not same_answer(a, b) and not same_answer(b, a)


@given(st.text(alphabet="Answer: \\boxed{}1/0.,-()aB\n$%", max_size=60))
def test_never_raises(text):
    answer = extract_answer(text)
    assert same_answer(answer, answer) in (True, False)
    assert same_answer(text, "7") in (True, False)
