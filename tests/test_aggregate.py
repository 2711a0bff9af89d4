import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlrm.prm.aggregate import AGGREGATIONS, aggregate
from vlrm.types import InputError

probabilities = st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=12)


def test_values():
    scores = [0.5, 1.0, 0.25]
    expected = {"mean": 1.75 / 3, "min": 0.25, "product": 0.125, "last": 0.25, "geometric_mean": 0.5}
    assert {how: aggregate(scores, how) for how in AGGREGATIONS} == pytest.approx(expected)
    assert aggregate(scores) == aggregate(scores, "mean")


def test_no_steps_give_the_floor():
    assert [aggregate([], how) for how in AGGREGATIONS] == [0.0] * 5


@given(probabilities)
def test_bounds_and_order(scores):
    values = {how: aggregate(scores, how) for how in AGGREGATIONS}
    assert all(-1e-12 <= value <= 1 + 1e-12 for value in values.values())
    assert values["product"] <= values["min"] + 1e-12
    assert values["min"] <= values["geometric_mean"] + 1e-9
    assert values["geometric_mean"] <= values["mean"] + 1e-9
    assert math.isclose(aggregate(scores[::-1]), values["mean"], abs_tol=1e-12)
    assert aggregate([1.0] * len(scores)) == 1.0


def test_unknown_name():
    with pytest.raises(InputError, match="geometric_mean"):
        aggregate([1.0], "median")
