"""Shapers: where steps lie among tokens, and every credit rule on numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vlrm.policy.shapers import SHAPERS, Batch
from vlrm.policy.shapers.batch import named, token_steps
from vlrm.policy.shapers.credit import error_factors, first_error, normalised, step_advantage, step_changes, step_value, step_values
from vlrm.policy.shapers.pearl import pearl, weight
from vlrm.policy.shapers.vppo import blacken, dependency, top_tokens, trajectory_factors, vppo
from vlrm.prm.steps import split_steps
from vlrm.serving.tokens import spans
from vlrm.types import InputError, Problem, Sample, Score, Verdict

TEXT = "Step 1: ab\nStep 2: cd\nAnswer: 7"
PIECES = [b"Step", b" 1: a", b"b", b"\nStep", b" 2:", b" cd", b"\nAnswer", b": 7", b""]
STEPS_OF_PIECES = [0, 0, 0, 1, 1, 1, 1, 1, 1]


def batch(scores, texts=None, metas=None, group_size=2, **more):
    """A batch whose completions all have the tokens of TEXT, the last one cut in the odd rows."""
    texts = texts or [TEXT] * len(scores)
    metas = metas or [{}] * len(scores)
    samples = [Sample(Problem(f"p{i}", "q", [], "7", meta), text) for i, (text, meta) in enumerate(zip(texts, metas, strict=True))]
    mask = torch.ones(len(scores), len(PIECES), dtype=torch.long)
    mask[1::2, -1] = 0
    own = [spans(PIECES)[1][: int(row.sum())] for row in mask]
    return Batch(samples, {"prm": scores}, mask, own, group_size, **more)


def test_tokens_belong_to_the_last_step_that_begins_before_their_end():
    assert spans(PIECES)[0] == TEXT
    assert token_steps(spans(PIECES)[1], split_steps(TEXT)) == STEPS_OF_PIECES
    paragraphs = "ab\n\ncd\n\n"
    pieces = [b"a", b"b", b"\n\n", b"cd", b"\n\n", b""]
    assert token_steps(spans(pieces)[1], split_steps(paragraphs)) == [0, 0, 0, 1, 1, 1]
    umlaut = "Step 1: \u00e4\nStep 2: b"
    split = [b"Step 1: ", b"\xc3", b"\xa4", b"\n", b"Step 2", b": b"]
    assert spans(split)[0] == umlaut and token_steps(spans(split)[1], split_steps(umlaut)) == [0, 0, 0, 0, 1, 1]


def test_step_advantage_is_the_normalised_change_of_the_prefix_beside_the_outcome():
    scores = [Score(0.7, (0.8, 0.5)), Score(0.9, (1.0, 1.0))]
    changes = [-0.2, -0.4, 0.0, 0.0]
    mean = sum(changes) / 4
    std = math.sqrt(sum((c - mean) ** 2 for c in changes) / 3)
    z = [(c - mean) / (std + 1e-4) for c in changes]
    shaped = step_advantage(torch.tensor([-1.0, 1.0]), batch(scores), weight=0.5)
    expected = [-1 + 0.5 * z[k] for k in STEPS_OF_PIECES]
    assert shaped[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert shaped[1].tolist()[:8] == pytest.approx([1 + 0.5 * z[2 + k] for k in STEPS_OF_PIECES][:8], abs=1e-5)
    assert step_changes([0.8, 0.5], "product") == pytest.approx([-0.2, -0.4])
    assert step_changes([0.8, 0.9], "min") == pytest.approx([-0.2, 0.0])
    assert step_changes([0.8, 0.9], "last") == pytest.approx([-0.2, 0.1])


def test_step_value_to_the_end_is_the_process_supervision_of_grpo():
    """DeepSeekMath, section 4.1.3: the sum of the normalised rewards of this and all later steps."""
    scores = [Score(0.5, (1.0, 0.0)), Score(0.5, (0.5, 0.5))]
    flat = torch.tensor([1.0, 0.0, 0.5, 0.5], dtype=torch.float64)
    z = ((flat - flat.mean()) / (flat.std() + 1e-4)).tolist()
    shaped = step_value(torch.tensor([3.0, 4.0]), batch(scores), horizon="rest", outcome_weight=0.0)
    assert shaped[0, 0].item() == pytest.approx(z[0] + z[1], abs=1e-5)
    assert shaped[0, 5].item() == pytest.approx(z[1], abs=1e-5)
    assert normalised([[0.3]], 1) == [[0.0]]


def test_verdicts_of_one_kind_can_stand_for_the_score():
    score = Score(0.6, (0.9, 0.2, 0.7), (Verdict(0, True, 0.9, True, False), Verdict(1, False, 0.2, False, True), Verdict(2, True, 0.7)))
    assert step_values(score, "image") == [1.0, 0.0, 0.7] and step_values(score, "logic") == [0.0, 1.0, 0.7]
    with pytest.raises(InputError, match="part must be"):
        step_values(score, "colour")


def test_tokens_after_the_first_error_lose_credit():
    scores = [Score(0.2, (0.1, 0.9), first_error=0), Score(0.9, (0.9, 0.9))]
    shaped = first_error(torch.tensor([-1.0, 1.0]), batch(scores))
    assert shaped[0].tolist() == [-1.0] * 3 + [0.0] * 6 and shaped[1, :8].tolist() == [1.0] * 8
    late = [Score(0.5, (0.9, 0.1)), Score(0.5, (0.9, 0.1))]
    spared = first_error(torch.tensor([-1.0, 1.0]), batch(late), before=0.0)
    assert spared[0].tolist() == [0.0] * 3 + [-1.0] * 6 and spared[1, :8].tolist() == [1.0] * 8
    assert error_factors(Score(0.5, (0.9, 0.1, 0.9)), 0.5, 0.25) == [1.0, 1.0, 0.25]


@pytest.mark.parametrize("shaper", [step_value, step_advantage, first_error])
def test_unscored_completions_and_those_without_steps_keep_their_advantage(shaper):
    scores = [Score(None, error="no"), Score(0.1, (0.1, 0.9), first_error=0), Score(0.5, (0.5, 0.5, 0.5)), Score(0.5, ())]
    made = batch(scores, texts=[TEXT, TEXT, TEXT, ""], group_size=4)
    shaped = shaper(torch.tensor([0.0, 2.0, -2.0, 1.0]), made)
    assert shaped[0].tolist() == [0.0] * 9 and shaped[2].tolist() == [-2.0] * 9 and shaped[3, :8].tolist() == [1.0] * 8
    assert shaped[1].tolist() != [2.0] * 9
    assert made.metrics["shaper/without_steps"] == 0.75


def test_vppo_on_numbers_worked_out_by_hand():
    s = dependency(torch.zeros(1, 4), torch.tensor([[0.0, 1.0, -1.0, 50.0]]))
    assert s[0].tolist() == pytest.approx([0, math.e - 2, math.exp(-1), 10])
    mask = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
    s = torch.tensor([[0.1, 0.4, 0.3, 0.2, 9.0], [0.5, 0.5, 9, 9, 9]])
    assert top_tokens(s, mask, 0.4).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 0]]
    assert top_tokens(s, mask, 1.0).tolist() == mask.tolist()
    factors = trajectory_factors(torch.tensor([[1.0, 1.0], [2.0, 2.0], [4.0, 4.0]]), torch.ones(3, 2), 0.9)
    assert factors.mean().item() == pytest.approx(1) and factors[0].item() == pytest.approx(0.9)
    assert (factors[1] - factors[0]).item() * 2 == pytest.approx((factors[2] - factors[1]).item())
    assert trajectory_factors(torch.ones(2, 2), torch.ones(2, 2), 0.9).tolist() == [1, 1]


def test_vppo_asks_for_one_pass_with_the_picture_and_one_with_a_damaged_one():
    seen = []

    def logps(change):
        seen.append(change)
        return torch.zeros(2, 9) if change is None else torch.arange(18.0).view(2, 9) / 18

    made = batch([Score(0.1), Score(0.2)], logps=logps)
    shaped = vppo(torch.tensor([1.0, -1.0]), made, trajectory_weight=False)
    assert seen[0] is None and callable(seen[1])
    assert shaped[0].nonzero()[:, 0].tolist() == [5, 6, 7, 8] and shaped[1].nonzero()[:, 0].tolist() == [4, 5, 6, 7]
    assert vppo(torch.tensor([1.0, -1.0]), made, token_mask=False).shape == (2,)
    with pytest.raises(InputError, match="pictures"):
        vppo(torch.tensor([1.0]), batch([Score(0.1)]))


def test_black_squares_take_the_share_and_the_value_that_they_should():
    random = torch.Generator().manual_seed(0)
    pixels = torch.ones(2, 1, 3, 96, 100)
    dark = blacken(pixels, black=(-1.0, -2.0, -3.0), patch=14, random=random)
    assert (pixels == 1).all() and dark.shape == pixels.shape
    assert [set(dark[:, :, c].unique().tolist()) for c in range(3)] == [{-1.0, 1.0}, {-2.0, 1.0}, {-3.0, 1.0}]
    first = dark[:, :, 0, :14, :14].flatten(1)
    assert all(len(row.unique()) == 1 for row in first) and 0.35 < (dark[:, :, 0] < 0).float().mean() < 0.65
    rows = blacken(torch.ones(1000, 6), black=(-1.0, -2.0, -3.0), random=random)
    struck = rows[:, 0] < 0
    assert rows[struck][0].tolist() == [-1, -1, -2, -2, -3, -3] and 0.4 < struck.float().mean() < 0.6


def test_pearl_weights_solutions_by_what_was_seen():
    assert [weight(r) for r in (0, 0.25, 0.75, 1)] == [0, 0.5, 0.75, 1]
    assert [weight(r, "min") for r in (0, 0.25, 0.75, 1)] == [0, 0.25, 0.5, 0.5]
    assert weight(0, gate=False) == 0.5
    metas = [{"item": "a", "kind": "probe"}, {"item": "a", "kind": "probe"}, {"item": "a"}, {"item": "b"}, {"item": "c"}]
    metas += [{"item": "c", "kind": "probe"}]
    scores = [Score(1.0), Score(0.5), Score(0.0), Score(1.0), Score(1.0), Score(0.0)]
    made = batch(scores, metas=metas)
    shaped = pearl(torch.ones(6), made)
    assert shaped.tolist() == pytest.approx([0.1, 0.1, 0.75, 1.0, 0.0, 0.1])
    assert made.metrics == {"pearl/gated": pytest.approx(1 / 3), "pearl/without_probe": pytest.approx(1 / 3)}
    assert pearl(torch.ones(6, 9), made).shape == (6, 9)
    with pytest.raises(InputError, match="no column item"):
        pearl(torch.ones(1), batch([Score(1.0)], metas=[{"kind": "probe"}]))


def test_shapers_are_named_with_their_settings():
    ((name, shaper),) = named({"first_error": {"after": 0.5}}, SHAPERS)
    assert name == "first_error" and shaper(torch.tensor([1.0]), batch([Score(0.1, (0.1, 0.1))]))[0, 5].item() == 0.5
    assert named({"vlrm.policy.shapers.credit:outcome": None}, SHAPERS)[0][1](3, None) == 3
    for wrong, message in (
        ({"credit": {}}, "unknown shaper"),
        ({"outcome": {"a": 1}}, "no setting 'a'"),
        ({"no.such:thing": {}}, "cannot load"),
    ):
        with pytest.raises(InputError, match=message):
            named(wrong, SHAPERS)
    with pytest.raises(InputError, match="asks for the reward 'other'"):
        step_value(torch.tensor([1.0]), batch([Score(0.1, (0.1, 0.1))]), reward="other")
