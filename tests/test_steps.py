from itertools import pairwise

import pytest

from vlrm.prm.steps import prefix_before, prefix_with, render_steps, split_steps, without_answer
from vlrm.types import InputError

WORLD = "Step 1: read the rows\nStep 2: 3 + 4 = 7\nAnswer: 7"


def test_marked_steps_have_bodies_and_spans():
    steps = split_steps(WORLD)
    assert [s.text for s in steps] == ["read the rows", "3 + 4 = 7\nAnswer: 7"]
    assert [WORLD[s.start : s.end] for s in steps] == ["Step 1: read the rows", "Step 2: 3 + 4 = 7\nAnswer: 7"]
    assert render_steps([s.text for s in steps]) == WORLD


@pytest.mark.parametrize(
    ("text", "bodies"),
    [
        ("**Step 1:** red\n**Step 2:** blue", ["red", "blue"]),
        ("### Step 1: red\nmore\n\n### Step 2: blue\nAnswer: b", ["red\nmore", "blue\nAnswer: b"]),
        ("step 1. red\n  STEP 2) blue", ["red", "blue"]),
        ("Let me see.\nStep 1: red\nStep 2: blue", ["Let me see.\nred", "blue"]),
        ("Step 1:\nStep 2: blue", ["", "blue"]),
        ("in step 2: we add", ["in step 2: we add"]),
        ("one\n\ntwo\nstill two\n \n\nthree\n\nAnswer: 3", ["one", "two\nstill two", "three\n\nAnswer: 3"]),
        ("Answer: 3", ["Answer: 3"]),
        ("", []),
        (" \n\n ", []),
    ],
)
def test_split(text, bodies):
    steps = split_steps(text)
    assert [s.text for s in steps] == bodies
    assert all(0 <= s.start <= s.end <= len(text) for s in steps)
    assert all(a.end <= b.start for a, b in pairwise(steps))


def test_paragraphs_are_merged_in_groups_of_the_ceiling():
    text = "\n\n".join(f"p{i}" for i in range(25))
    steps = split_steps(text, max_steps=12)
    assert [len(s.text.split("\n\n")) for s in steps] == [3] * 8 + [1]
    assert len(split_steps("\n".join(f"Step {i}: x{i}" for i in range(30)))) == 10
    with pytest.raises(InputError):
        split_steps(text, max_steps=0)


def test_prefixes_keep_the_solutions_own_spelling():
    steps = split_steps(WORLD)
    assert prefix_before(WORLD, steps, 0) == ""
    assert prefix_before(WORLD, steps, 1) == "Step 1: read the rows"
    assert prefix_with(WORLD, steps, 0, "new") == "Step 1: new"
    assert prefix_with(WORLD, steps, 1, " 3 + 4 = 8 \n") == "Step 1: read the rows\nStep 2: 3 + 4 = 8"
    bold = "Hm.\n**Step 1:** a\n\n**Step 2:** b\n\n**Step 3:** c"
    assert prefix_with(bold, split_steps(bold), 0, "x") == "**Step 1:** x"
    assert prefix_with(bold, split_steps(bold), 2, "x") == "Hm.\n**Step 1:** a\n\n**Step 2:** b\n\n**Step 3:** x"
    foreign = "first\n\nsecond\n\nthird"
    assert prefix_with(foreign, split_steps(foreign), 1, "x") == "first\n\nx"


def test_corrected_prefix_never_holds_the_step_or_a_later_one():
    text = "\n".join(f"Step {i}: body{i}" for i in range(1, 9))
    steps = split_steps(text)
    for k in range(8):
        prefix = prefix_with(text, steps, k, "fixed")
        assert prefix.endswith(f"Step {k + 1}: fixed")
        assert not any(f"body{j}" in prefix for j in range(k + 1, 9))
        assert all(f"body{j}" in prefix for j in range(1, k + 1))


def test_without_answer():
    assert without_answer("3 + 4 = 7\nAnswer: 7") == "3 + 4 = 7"
    assert without_answer("Answer: 7") == "Answer: 7"
    assert without_answer("one\ntwo") == "one\ntwo"
