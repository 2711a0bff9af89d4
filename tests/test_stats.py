"""Statistics and step metrics against figures worked out by hand or by another road."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlrm import InputError
from vlrm.rm import stats
from vlrm.rm.stats import accuracy_ci, bootstrap_ci, mcnemar, paired_bootstrap, wilson
from vlrm.rm.step_metrics import (
    Judged,
    correction_accuracy,
    f1,
    first_error,
    first_error_accuracy,
    kind_recall,
    macro_f1,
    process_f1,
    step_report,
    verdict_accuracy,
)

R, W = True, False


def test_bootstrap_interval_is_the_normal_one_for_many_values():
    values = [1] * 300 + [0] * 700
    low, high = bootstrap_ci(values)
    half = 1.96 * np.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(0.3 - half, abs=0.003) and high == pytest.approx(0.3 + half, abs=0.003)
    values = np.random.default_rng(0).random(50)
    assert bootstrap_ci(values) == bootstrap_ci(values) != bootstrap_ci(values, seed=1)


def test_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        low, high = bootstrap_ci(rng.random(80) < 0.4, resamples=500, seed=seed)
        hits += low <= 0.4 <= high
    assert 0.90 <= hits / 200 <= 0.985


def test_bootstrap_of_equal_values_has_no_width_and_is_chunked_alike(monkeypatch):
    assert bootstrap_ci([1, 1, 1]) == (1.0, 1.0)
    values = np.arange(3.0)
    whole = bootstrap_ci(values, resamples=1001)
    monkeypatch.setattr(stats, "_CHUNK", 30)  # ten resamples at once, one in the last chunk
    assert bootstrap_ci(values, resamples=1001) == whole


def test_paired_bootstrap_uses_the_pairing():
    rng = np.random.default_rng(0)
    second = rng.random(500)
    difference, low, high = paired_bootstrap(second + 0.1, second)
    assert difference == pytest.approx(0.1) and low == pytest.approx(0.1) and high == pytest.approx(0.1)
    assert paired_bootstrap([1, 0, 1, 1], [0, 1, 0, 0])[0] == 0.5


@pytest.mark.parametrize(("only_first", "only_second"), [(6, 1), (1, 6), (10, 2), (3, 3), (0, 5)])
def test_mcnemar_is_the_two_sided_binomial_of_the_discordant_pairs(only_first, only_second):
    n, k = only_first + only_second, min(only_first, only_second)
    by_hand = min(1.0, 2 * sum(comb(n, i) for i in range(k + 1)) / 2**n)
    first = [1] * only_first + [0] * only_second + [1] * 20 + [0] * 9
    second = [0] * only_first + [1] * only_second + [1] * 20 + [0] * 9
    assert mcnemar(first, second) == pytest.approx(by_hand)


def test_mcnemar_without_a_difference_is_one():
    assert mcnemar([1, 0, 1], [1, 0, 1]) == 1.0


def test_wilson_by_hand():
    # 8 of 10 at z = 1.96: centre (0.8 + 0.19208) / 1.38416, half width 1.96 * sqrt(0.016 + 0.009604) / 1.38416
    low, high = wilson(8, 10)
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 10)[0] == 0.0 and wilson(10, 10)[1] == 1.0


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(case):
    k, n = case
    low, high = wilson(k, n)
    assert 0 <= low <= k / n <= high <= 1
    assert wilson(n - k, n) == (pytest.approx(1 - high), pytest.approx(1 - low))


def test_accuracy_with_its_interval():
    accuracy, low, high = accuracy_ci([True] * 6 + [False] * 4)
    assert accuracy == 0.6 and 0.2 < low < 0.6 < high < 0.95


@pytest.mark.parametrize("call", [
    lambda: bootstrap_ci([]), lambda: bootstrap_ci([1, float("nan")]), lambda: mcnemar([1], [1, 0]),
    lambda: wilson(3, 2), lambda: wilson(0, 0), lambda: Judged((R,), (R, W)), lambda: Judged((R,), (R,), kinds=(None, None)),
])  # fmt: skip
def test_what_cannot_be_measured_is_an_input_error(call):
    with pytest.raises(InputError):
        call()


def test_f1_and_macro_f1_by_hand():
    said, true = [R, R, R, W, W, R], [R, R, W, W, R, R]
    assert f1(said, true) == pytest.approx(6 / 8)  # 3 hits, 4 said, 4 true
    assert macro_f1(said, true) == pytest.approx((6 / 8 + 2 / 4) / 2)
    assert macro_f1([R, R], [R, W]) == pytest.approx((2 / 3 + 0) / 2)  # always "right" earns nothing for wrong steps
    assert f1([False], [False]) == 0.0


def test_unjudged_steps_are_left_out_and_unread_ones_are_wrong():
    assert macro_f1([R, W, W], [R, None, W]) == 1.0
    assert macro_f1([R, None, W], [R, R, W]) == macro_f1([R, W, W], [R, R, W]) < 1
    assert macro_f1([None, R, W], [W, R, W]) == macro_f1([R, R, W], [W, R, W]) < 1


def test_first_error():
    assert (first_error([R, W, W]), first_error([R, None, W]), first_error([R, R]), first_error([])) == (1, 2, None, None)


def test_first_error_accuracy_and_process_f1():
    judged = [
        Judged((R, W), (R, W)),  # located
        Judged((W, W), (R, W)),  # too early
        Judged((R, R), (R, W)),  # missed
        Judged((R, R), (R, R)),  # rightly kept
        Judged((R, None), (R, R)),  # unread: nobody said that it is right
        Judged((W, R), (None, R)),  # the step called wrong is not judged
    ]
    assert first_error_accuracy(judged) == 3 / 6
    wrong, right = 1 / 3, 2 / 3
    assert process_f1(judged) == pytest.approx(2 * wrong * right / (wrong + right))
    assert first_error_accuracy([]) is None and process_f1([]) == 0.0


def test_recall_by_kind():
    judged = [
        Judged((R, W, W), (W, W, W), ("perception", "perception", "reasoning")),
        Judged((None, R), (W, R), ("reasoning", None)),
    ]
    assert kind_recall(judged, "perception") == 1 / 2
    assert kind_recall(judged, "reasoning") == 1 / 2
    assert kind_recall([Judged((R,), (R,))], "reasoning") is None


def test_verdicts_and_corrections_count_where_the_error_was_located():
    judged = [
        Judged((R, W), (R, W), image=(W, W), logic=(R, R), correction_right=True),
        Judged((R, W), (R, W), image=(R, W), logic=(W, R), correction_right=False),
        Judged((R, W), (R, W), image=(None, W), logic=(R, R), correction_right=None),
        Judged((W, W), (R, W), image=(W, W), logic=(R, R), correction_right=True),  # not located
        Judged((R, R), (R, R)),
    ]
    assert verdict_accuracy(judged) == 1 / 3 and correction_accuracy(judged) == 1 / 3
    report = step_report(judged)
    assert (report["count"], report["steps"], report["located"], report["unread"]) == (5, 10, 3, 0)
    assert report["macro_f1"] == macro_f1([R, W] * 3 + [W, W, R, R], [R, W] * 4 + [R, R])
    assert report["perception_recall"] is None
