"""Worlds are exact: right solutions are judged right, every single error is found in its place, and pictures never cross splits."""

import random
from collections import Counter

import pytest

from vlrm.data_synth import blind_accuracy, get_world, judge_steps, load_problems, make_problems
from vlrm.data_synth.corrupt import corrupted, heavy_corruption, single_error
from vlrm.data_synth.problems import scene_problem
from vlrm.data_synth.step_records import exact_critique
from vlrm.data_synth.worlds import WORLDS, sample_scene, split_of
from vlrm.data_synth.worlds.base import Misstate, answer_of, format_solution, right_solution
from vlrm.prm.steps import split_steps
from vlrm.types import InputError, Problem

ALL = pytest.mark.parametrize("world", list(WORLDS.values()), ids=list(WORLDS))


def problems_of(world, count):
    return [scene_problem(world.name, "test", 3, number)[0] for number in range(count)]


def scenes(world, count, split="train", seed=1):
    rng = random.Random(seed)
    return [sample_scene(world, split, rng) for _ in range(count)]


@ALL
def test_right_solution_is_judged_right_and_is_its_own_correction(world):
    for scene in scenes(world, 300):
        steps = right_solution(world, scene)
        truths = world.check(scene, steps)
        assert all(truth.right and truth.error is None for truth in truths)
        assert [truth.corrected for truth in truths] == steps


@ALL
def test_every_single_misstatement_is_found_where_it_was_made_and_changes_the_answer(world):
    rng, changed, total = random.Random(2), 0, 0
    for scene in scenes(world, 200):
        steps = right_solution(world, scene)
        for index, truth in enumerate(world.check(scene, steps)):
            for fact in range(len(truth.claims)):
                wrong = world.write(scene, Misstate(rng, single=(index, fact)))
                if wrong == steps:
                    continue  # a fact that is said twice in one claim
                found = world.check(scene, wrong)
                assert [t.right for t in found].index(False) == index
                assert found[index].corrected == steps[index]
                if found[index].error == "perception" and truth.claims[fact].kind == "perception" and index < len(steps) - 1:
                    total += 1
                    changed += answer_of(wrong) != answer_of(steps)
    assert changed == total  # every perceived fact counts


@ALL
def test_texts_that_are_no_steps_are_wrong_not_crashes(world):
    scene = scenes(world, 1)[0]
    for steps in (["garbage"] * 9, [""], ["Row 9 is", "Start at lane 7.", "Row 1 goes left to lane 0."], ["The red bar is 99."] * 5):
        assert not any(truth.right for truth in world.check(scene, steps))


@ALL
def test_splits_are_disjoint_in_what_the_picture_shows(world):
    train = {str(world.picture_key(scene)) for scene in scenes(world, 1500)}
    test = {str(world.picture_key(scene)) for scene in scenes(world, 500, "test")}
    assert not train & test
    assert all(split_of(world, scene) == "test" for scene in scenes(world, 20, "test"))


@ALL
def test_blind_guessing_by_question_is_hopeless(world):
    """A text-only baseline: the commonest training answer of each question."""
    assert blind_accuracy(problems_of(world, 400), samples=4000) < 0.15


@ALL
def test_corruption_is_balanced_over_steps_and_leaves_right_solutions_in(world):
    rng, first, right = random.Random(4), Counter(), 0
    for scene in scenes(world, 400):
        flags = [truth.right for truth in world.check(scene, corrupted(world, scene, rng))]
        right += all(flags)
        if not all(flags):
            first[flags.index(False)] += 1
    steps = len(right_solution(world, scene))
    assert 0.15 < right / 400 < 0.6
    assert all(first[step] > 0.02 * 400 for step in range(steps))
    assert any(world.check(scene, heavy_corruption(world, scene, rng)) for _ in range(3))
    assert len(single_error(world, scene, rng)) == steps


def test_pictures_are_drawn_in_the_tiny_models_size_and_differ():
    for world in WORLDS.values():
        one, two = scenes(world, 2)
        pictures = [world.draw(scene, random.Random(0)) for scene in (one, two)]
        assert pictures[0].size == (96, 96) and pictures[0].mode == "RGB"
        assert pictures[0].tobytes() != pictures[1].tobytes()


def test_problems_come_back_from_disk_and_a_longer_file_begins_with_a_shorter(tmp_path):
    short = make_problems(["grid", "ladder"], "test", 4, 7, tmp_path / "a")
    long = make_problems(["grid", "ladder"], "test", 8, 7, tmp_path / "b")
    assert [p.id for p in long[:4]] == [p.id for p in short]
    back = load_problems(tmp_path / "a" / "problems.jsonl")
    assert [(p.id, p.question, p.answer, p.meta) for p in back] == [(p.id, p.question, p.answer, dict(p.meta)) for p in short]
    solution = format_solution(right_solution(get_world("grid"), back[0].meta["scene"]))
    assert all(truth.right for truth in judge_steps(back[0], [step.text for step in split_steps(solution)]))


def test_exact_critique_corrects_the_first_wrong_step_only():
    world = get_world("bars")
    scene = scenes(world, 1)[0]
    wrong = world.write(scene, Misstate(random.Random(0), single=(1, 0)))
    critique = exact_critique(world.check(scene, wrong))
    assert critique.first_error == 1 and critique.correction == right_solution(world, scene)[1]
    assert not critique.steps[1].ok and not critique.steps[1].image_ok and critique.steps[1].logic_ok
    assert exact_critique(world.check(scene, right_solution(world, scene))).correction is None


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda path: make_problems("maze", "test", 1, 0, path), "maze"),
        (lambda path: make_problems("grid", "exam", 1, 0, path), "exam"),
        (lambda path: make_problems("grid", "test", 0, 0, path), "n must be"),
        (lambda path: judge_steps(Problem("1", "q"), ["x"]), "world"),
    ],
)
def test_bad_requests_say_what_to_change(call, word, tmp_path):
    with pytest.raises(InputError, match=word):
        call(tmp_path)
