"""Step metrics with intervals, baselines and calibration, against scikit-learn, hand counts and simulation."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, roc_auc_score

from vlrm import InputError
from vlrm.rm import calibration, step_eval
from vlrm.rm.step_eval import ScoredSolution, counts_of, evaluate, expected_counts, length_verdicts, weighted_auc
from vlrm.rm.step_metrics import Judged, first_error, first_error_accuracy, kind_recall, macro_f1, process_f1

flag = st.sampled_from([True, False, None])
solution = st.lists(st.tuples(flag, flag), min_size=1, max_size=6)


def made(n: int = 60, seed: int = 0, skill: float = 2.0) -> list[ScoredSolution]:
    """Solutions whose scores follow the truth with some noise; verdicts are scores from 0.5 on."""
    rng = random.Random(seed)
    items = []
    for _ in range(n):
        truth = [rng.choice([True, True, True, False, None]) for _ in range(rng.randint(1, 7))]
        scores = [1 / (1 + math.exp(-(skill * (1 if t else -1) + rng.gauss(0, 2)))) for t in truth]
        kinds = [rng.choice(["perception", "reasoning"]) if t is False else None for t in truth]
        lengths = [rng.randint(3, 20) + (8 if t is False else 0) for t in truth]
        items.append(ScoredSolution(Judged([s >= 0.5 for s in scores], truth, kinds), lengths, scores))
    return items


@given(st.lists(solution, min_size=1, max_size=5))
@settings(deadline=None)
def test_the_counts_add_up_to_the_plain_metrics(solutions):
    judged = [Judged([p for p, _ in s], [t for _, t in s], ["perception" if t is False else None for _, t in s]) for s in solutions]
    sums = {name: np.array(float(sum(counts_of(j)[name] for j in judged))) for name in counts_of(judged[0])}
    value = {name: float(metric(sums)) for name, metric in step_eval.METRICS.items()}
    said, true = [p for j in judged for p in j.predicted], [t for j in judged for t in j.truth]
    assert value["macro_f1"] == pytest.approx(macro_f1(said, true))
    measurable = [j for j in judged if any(t is not None for t in j.truth)]
    assert value["first_error_accuracy"] == pytest.approx(first_error_accuracy(measurable) if measurable else np.nan, nan_ok=True)
    recall = kind_recall(judged, "perception")
    assert value["perception_recall"] == pytest.approx(np.nan if recall is None else recall, nan_ok=True)
    assert value["parse_failure_rate"] == said.count(None) / len(said)
    if {first_error(j.truth) is None for j in measurable} == {True, False}:
        assert value["process_f1"] == pytest.approx(process_f1(measurable))


def test_macro_f1_is_scikit_learns_with_neutral_steps_removed():
    items = made()
    pairs = [(p, t) for item in items for p, t in zip(item.judged.predicted, item.judged.truth, strict=True) if t is not None]
    expected = f1_score([t for _, t in pairs], [p for p, _ in pairs], average="macro")
    assert evaluate(items, resamples=10)["scorer"]["macro_f1"]["value"] == pytest.approx(expected)


def test_process_f1_by_hand():
    right, wrong = Judged([True, True], [True, True]), Judged([True, False], [True, False])
    missed, alarmed = Judged([False, True], [True, False]), Judged([False], [True])
    items = [ScoredSolution(j, [1] * len(j.truth)) for j in (right, right, alarmed, wrong, missed)]
    found = evaluate(items, resamples=10)["scorer"]
    assert found["accuracy_on_sound"]["value"] == pytest.approx(2 / 3) and found["accuracy_on_faulty"]["value"] == 0.5
    assert found["process_f1"]["value"] == pytest.approx(2 * (2 / 3) * 0.5 / (2 / 3 + 0.5))
    assert evaluate(items[:3], resamples=10)["scorer"]["process_f1"] is None  # no faulty solution to measure it on


@given(solution, st.integers(0, 10))
@settings(max_examples=20, deadline=None)
def test_the_random_baseline_is_the_mean_of_random_verdicts(steps, tenths):
    p, rng = tenths / 10, np.random.default_rng(0)
    item = Judged([True] * len(steps), [t for _, t in steps], ["reasoning" if t is False else None for _, t in steps])
    draws = rng.random((1500, len(steps))) < p
    rows = [counts_of(Judged([bool(v) for v in draw], item.truth, item.kinds)) for draw in draws]
    for name, value in expected_counts(item, p).items():
        assert value == pytest.approx(np.mean([row[name] for row in rows]), abs=0.25), name


def test_auc_and_its_resamples_are_scikit_learns():
    rng = np.random.default_rng(1)
    scores, truth, weights = rng.integers(0, 8, 300) / 8, rng.random(300) < 0.6, rng.integers(0, 4, (3, 300)).astype(float)
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(scores[order]) > 0))
    expected = [roc_auc_score(truth, scores, sample_weight=row) for row in weights]
    assert weighted_auc(weights[:, order], truth[order], starts) == pytest.approx(expected)


def test_intervals_are_resampled_over_solutions_not_steps():
    """Steps that are all right or all wrong within a solution hold no more news than one step."""
    rng = random.Random(0)
    once = [ScoredSolution(Judged([rng.random() < 0.7], [True]), [5]) for _ in range(200)]
    tenfold = [ScoredSolution(Judged([*item.judged.predicted] * 10, [True] * 10), [5] * 10) for item in once]
    narrow, wide = [evaluate(items, resamples=400)["scorer"]["f1_right"]["ci95"] for items in (once, tenfold)]
    assert wide == pytest.approx(narrow)
    again = evaluate(once, resamples=400)["scorer"]["f1_right"]["ci95"]
    assert again == narrow and evaluate(once, resamples=400, seed=1)["scorer"]["f1_right"]["ci95"] != narrow


def test_the_interval_covers_the_truth():
    truth = evaluate(made(4000, seed=99), resamples=10)["scorer"]["macro_f1"]["value"]
    hits = 0
    for seed in range(40):
        low, high = evaluate(made(80, seed=seed), resamples=200)["scorer"]["macro_f1"]["ci95"]
        hits += low <= truth <= high
    assert hits >= 33


def test_the_length_baseline_learns_from_other_folds_only(monkeypatch):
    items = made(100)
    whole = evaluate(items, baselines_only=True, resamples=50)
    assert "scorer" not in whole and whole["length"]["auc"]["value"] > 0.6 > whole["random"]["auc"]["value"]
    # one long right step among short ones: its own fold must not be what calls it right
    monkeypatch.setattr(step_eval, "_best_limit", lambda others: max(n for item in others for n in item.lengths))
    items = [ScoredSolution(Judged([None], [True]), [5]) for _ in range(9)] + [ScoredSolution(Judged([None], [True]), [50])]
    assert [j.predicted[0] for j in length_verdicts(items)] == [True] * 9 + [False]


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=12))
@settings(deadline=None)
def test_the_best_limit_is_the_best_of_all(steps):
    items = [ScoredSolution(Judged([None] * len(steps), [t for _, t in steps]), [n for n, _ in steps])]
    truth = [t for _, t in steps]
    limit = step_eval._best_limit(items)
    best = max(macro_f1([n <= cut for n, _ in steps], truth) for cut in range(6))
    assert macro_f1([n <= limit for n, _ in steps], truth) == pytest.approx(best)


def test_reliability_bins_and_ece_by_hand():
    scores, truth = [0.05, 0.95, 0.95, 1.0], [False, True, False, True]
    rows = calibration.reliability_bins(scores, truth)
    assert [row["count"] for row in rows] == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert rows[1]["right"] is None and rows[9]["right"] == pytest.approx(2 / 3) and rows[9]["score"] == pytest.approx(2.9 / 3)
    assert calibration.ece(scores, truth) == pytest.approx((0.05 + 3 * abs(2.9 / 3 - 2 / 3)) / 4)


def test_ece_is_zero_for_honest_scores_and_temperature_finds_the_lie():
    rng = np.random.default_rng(0)
    honest = rng.random(40_000)
    truth = rng.random(40_000) < honest
    assert calibration.ece(honest, truth) < 0.01
    assert calibration.fit_temperature(honest, truth) == pytest.approx(1, abs=0.03)
    boastful = calibration.with_temperature(honest, 1 / 3)
    assert calibration.ece(boastful, truth) > 0.1
    assert calibration.fit_temperature(boastful, truth) == pytest.approx(3, abs=0.1)
    mended = calibration.cross_fitted(boastful, truth, np.arange(40_000) // 4)
    assert calibration.ece(mended, truth) < 0.01


def test_evaluate_agrees_with_the_calibration_functions():
    items = made(80)
    pairs = [(s, t) for item in items for s, t in zip(item.scores, item.judged.truth, strict=True) if t is not None]
    scores, truth = [s for s, _ in pairs], [t for _, t in pairs]
    found = evaluate(items, resamples=60)
    assert found["scorer"]["ece"]["value"] == pytest.approx(calibration.ece(scores, truth))
    assert found["scorer"]["temperature"]["value"] == pytest.approx(calibration.fit_temperature(scores, truth))
    assert found["scorer"]["auc"]["value"] == pytest.approx(roc_auc_score(truth, scores))
    assert sum(row["count"] for row in found["reliability"]) == found["steps"] == len(truth)
    for figure in found["scorer"].values():
        assert figure["ci95"][0] <= figure["value"] + 1e-9 and figure["value"] <= figure["ci95"][1] + 1e-9


def test_what_cannot_be_measured_is_none_or_refused():
    found = evaluate([ScoredSolution(Judged([True, True], [True, None]), [3, 4], [0.9, 0.2])], resamples=20)
    assert found["scorer"]["auc"] is None and found["scorer"]["perception_recall"] is None and found["random"]["auc"] is None
    assert found["neutral_steps"] == 1 and found["steps"] == 1
    with pytest.raises(InputError, match="no step"):
        evaluate([ScoredSolution(Judged([True], [None]), [3])])
    with pytest.raises(InputError, match="no solution"):
        evaluate([])
    with pytest.raises(InputError, match="2 lengths for 1 steps"):
        ScoredSolution(Judged([True], [True]), [3, 4])


def test_unread_steps_count_in_the_auc_and_not_in_the_calibration():
    items = made(40)
    hidden = [ScoredSolution(Judged([None] * len(i.judged.truth), i.judged.truth), i.lengths, [0.5] * len(i.judged.truth)) for i in items]
    mixed = evaluate([*items, *hidden], resamples=20)
    alone = evaluate(items, resamples=20)
    assert mixed["scorer"]["ece"]["value"] == pytest.approx(alone["scorer"]["ece"]["value"])
    assert mixed["reliability"] == alone["reliability"]
    assert 0.5 < mixed["scorer"]["auc"]["value"] < alone["scorer"]["auc"]["value"]
    nothing = evaluate(hidden, resamples=20)
    assert nothing["scorer"]["auc"]["value"] == 0.5 and "ece" not in nothing["scorer"] and nothing["reliability"] is None
