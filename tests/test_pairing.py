"""The consistency world, automated sub-figure pairing, rankings to pairs, the command."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import combinations

import pytest
from PIL import Image

from vlrm import InputError, cli
from vlrm.data_synth.consistency_pairs import make_consistency
from vlrm.data_synth.consistency_world import DIMENSIONS, WEIGHTS, agreement, consistency, draw, draw_grid, make_story, reasons, split_of
from vlrm.data_synth.pairing import Grid, by_score, majority, pair_subfigures, pairs_from_ranks, read_grids
from vlrm.rm.pairs import PairRecord, read_pairs
from vlrm.rm.ranks import RankItem, read_ranks


def test_pairing_gives_48_instances_a_prompt_and_33984_for_708():
    grids = [Grid(f"{p}_{seed}", f"prompt-{p}", [f"{p}.{seed}.{k}" for k in range(4)]) for p in range(708) for seed in range(4)]
    own, count, first = {g.id: set(g.figures) for g in grids}, 0, set()
    for item in pair_subfigures(grids):
        count += 1
        prompt, seed, _ = item.reference.split(".")
        assert item.reference not in item.candidates and not own[f"{prompt}_{seed}"] & set(item.candidates)  # never its own grid
        assert all(candidate.startswith(f"{prompt}.") for candidate in item.candidates)
        if prompt == "0":
            first.add((item.reference, tuple(item.candidates)))
    assert count == 33_984 and len(first) == 48


def test_lonely_grids_are_counted():
    counts = Counter()
    assert list(pair_subfigures([Grid("a", "p", ["1", "2"])], counts)) == []
    assert counts["dropped: prompt with one grid only"] == 1


def test_rules_and_orders():
    item = RankItem("i", "r", ["a", "b", "c", "d"], (2, 0, 3, 1))
    said = {rule: {p.images[1]: p.label for p in pairs_from_ranks([item], rule)} for rule in ("halves", "extremes")}
    assert said == {"halves": {"c": True, "a": True, "d": False, "b": False}, "extremes": {"c": True, "b": False}}
    three = RankItem("i", "r", ["a", "b", "c"], (2, 0, 1))
    assert {p.images[1]: p.label for p in pairs_from_ranks([three])} == {"c": True, "b": False}
    counts = Counter()
    assert list(pairs_from_ranks([RankItem("i", "r", ["a", "b"])], counts=counts)) == []
    assert counts == {"dropped: instance without an order": 1}
    assert by_score(item, [0.1, 0.4, 0.2, 0.3]).order == (1, 3, 2, 0) and by_score(item, [0.1, 0.1, 0.2, 0.3]) is None
    with pytest.raises(InputError, match="unknown rule"):
        list(pairs_from_ranks([item], "thirds"))


def test_votes_of_several_annotators():
    def vote(name, images, label):
        return PairRecord(name, images, label)

    records = [vote("1", ["a", "b"], True), vote("2", ["b", "a"], True), vote("3", ["a", "b"], False), vote("4", ["a", "c"], True),
               vote("5", ["c", "a"], False), vote("6", ["b", "c"], False)]  # fmt: skip
    counts = Counter()
    assert [(r.id, r.label) for r in majority(records, counts)] == [("1", True), ("6", False)]
    assert counts == {"merged": 2, "dropped: tied votes": 1}


# The world


def test_a_story_is_always_the_same_and_strays_to_one_other_value():
    story = make_story(3, "train", 0)
    assert story == make_story(3, "train", 0) and story != make_story(4, "train", 0)
    assert make_story(3, "train", 0, grids=2).grids == story.grids[:2]
    for figures in story.grids:
        ways = {tuple(f.values[d] == story.canon[d] for d in DIMENSIONS) for f in figures}
        assert len(ways) == 4
        assert all(f.values[d] in (story.canon[d], story.other[d]) for f in figures for d in DIMENSIONS)
    assert story.canon["identity"] in story.prompt


def test_every_ranking_is_strict_whatever_the_reference():
    for number in range(30):
        story = make_story(number, "train", 1)
        for mine, other in combinations(story.grids, 2):
            assert all(len({consistency(figure, candidate) for candidate in other}) == 4 for figure in mine)


def test_consistency_and_reasons_name_the_dimensions():
    a, b = make_story(0, "train", 0).grids[0][:2]
    same = agreement(a, b)
    assert consistency(a, a) == 1 and consistency(a, b) == consistency(b, a) == sum(WEIGHTS[d] for d in DIMENSIONS if same[d]) / 7
    lines = reasons(a, b).split("\n")
    assert [line.split()[0] for line in lines] == list(DIMENSIONS)
    for d, line in zip(DIMENSIONS, lines, strict=True):
        assert line == f"{d} {'ok' if same[d] else 'no'}: {a.values[d]} | {b.values[d]}"


def test_splits_share_no_picture():
    shown = {
        split: {(tuple(f.values.items()), f.pose) for n in range(40) for g in make_story(n, split, 0).grids for f in g}
        for split in ("train", "test")
    }
    assert not shown["train"] & shown["test"]
    assert all(split_of(f) == "test" for g in make_story(0, "test", 0).grids for f in g)


def test_what_differs_is_seen_and_what_does_not_may_differ_too():
    story = make_story(1, "train", 0)
    pictures = {}
    for figures in story.grids:
        for figure in figures:
            pictures.setdefault(tuple(figure.values.values()), []).append(draw(figure, random.Random(0)).tobytes())
    assert len({data for group in pictures.values() for data in group}) == 16  # poses differ even where all dimensions agree
    assert draw_grid(story.grids[0], random.Random(0)).size == (192, 192)
    dark = {count: sum(p < (90, 90, 90) for p in draw(f, random.Random(0)).getdata()) for count, f in _plain_by_balls().items()}
    assert dark["1"] < dark["2"] < dark["3"]


def _plain_by_balls():
    from vlrm.data_synth.consistency_world import SubFigure

    places = (13, 41, 69)
    return {str(n): SubFigure({"identity": "red circle", "style": "plain", "logic": str(n)}, (48, 30, 12, *places[:n])) for n in (1, 2, 3)}


def test_the_worlds_files_are_balanced_exact_and_repeatable(tmp_path):
    counts = make_consistency(tmp_path / "a", "train", 4, 0, instances=3, criteria=12, ranks=5)
    assert counts == {"stories": 4, "pairs": 4 * (3 * 4 + 12), "consistent": 4 * (3 * 2 + 6), "rankings": 20}
    pairs, ranks = read_pairs(tmp_path / "a" / "pairs.jsonl"), read_ranks(tmp_path / "a" / "ranks.jsonl")
    asked = Counter((pair.question, pair.label) for pair in pairs)
    assert asked == {
        ("consistent?", True): 24,
        ("consistent?", False): 24,
        **{(f"{d}?", label): 8 for d in DIMENSIONS for label in (True, False)},
    }
    for pair in pairs:
        if "dimension" in pair.meta:
            assert f"{pair.meta['dimension']} {'ok' if pair.label else 'no'}:" in pair.reasons
    for item in ranks:
        weight = [sum(WEIGHTS[d] for d in DIMENSIONS if same[d]) for same in item.meta["agreement"]]
        assert list(item.order) == sorted(range(4), key=lambda k: -weight[k])
    assert Image.open(ranks[0].reference).size == (96, 96)
    again = make_consistency(tmp_path / "b", "train", 4, 0, instances=3, criteria=12, ranks=5)
    assert again == counts and (tmp_path / "a" / "pairs.jsonl").read_text() == (tmp_path / "b" / "pairs.jsonl").read_text()
    paper = make_consistency(tmp_path / "c", "dev", 1, 0, instances=1, criteria=3, ranks=1, wording="paper")
    assert paper["pairs"] == 7 and {p.task for p in read_pairs(tmp_path / "c" / "pairs.jsonl")} == {"ask", "criterion"}
    for wrong in ({"n": 0}, {"wording": "x"}, {"split": "x"}):
        with pytest.raises(InputError):
            make_consistency(tmp_path / "d", **{"split": "train", "n": 1, **wrong})


def test_both_pictures_fit_the_tiny_model(tmp_path, tiny_engine):
    from vlrm import Sample
    from vlrm.rm.paco import PaCo

    make_consistency(tmp_path, "dev", 1, 0, ranks=1)
    [item] = read_ranks(tmp_path / "ranks.jsonl")
    scores = PaCo(tiny_engine, ending="", marks=("", ""))(item.samples())
    assert len(scores) == 4 and all(0 < score.value < 1 for score in scores)
    assert isinstance(item.samples("criteria")[0], Sample)


# Grids of one's own, and the command


def test_grids_of_a_folder_are_cut_and_paired(tmp_path, capsys):
    for prompt in ("fox", "cat"):
        (tmp_path / "grids" / prompt).mkdir(parents=True)
        for seed in range(3):
            Image.new("RGB", (9, 6), (80 * seed, 0, len(prompt))).save(tmp_path / "grids" / prompt / f"{seed}.png")
    out = tmp_path / "out"
    assert cli.main(["synth", "pairs", "--grids", str(tmp_path / "grids"), "--layout", "1x3", "--output", str(out)]) == 0
    items = read_ranks(out / "ranks.jsonl")
    assert len(items) == 2 * 9 * 2 and all(item.order is None and len(item.candidates) == 3 for item in items)
    assert "36 rankings" in capsys.readouterr().out and Image.open(items[0].reference).size == (3, 6)
    rows = [json.loads(line) for line in (out / "ranks.jsonl").read_text().splitlines()]
    (out / "done.jsonl").write_text("".join(json.dumps({**row, "order": [1, 0, 2]}) + "\n" for row in rows[:5]))
    assert cli.main(["synth", "pairs", "--ranks", str(out / "done.jsonl"), "--rule", "extremes", "--output", str(out)]) == 0
    pairs = read_pairs(out / "pairs.jsonl")
    assert len(pairs) == 10 and sum(pair.label for pair in pairs) == 5 and pairs[0].group == items[0].group
    assert cli.main(["synth", "pairs", "--grids", "a", "--ranks", "b", "--output", str(out)]) == 2


def test_grids_of_a_flat_folder_and_of_a_file(tmp_path):
    for name in ("a_b_0", "a_b_1", "c_0"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    grids = read_grids(tmp_path, tmp_path / "cut")
    assert [(grid.id, grid.group, len(grid.figures)) for grid in grids] == [("a_b_0", "a_b", 4), ("a_b_1", "a_b", 4), ("c_0", "c", 4)]
    path = tmp_path / "grids.jsonl"
    row = {"image": "c_0.png", "prompt": "a cat", "layout": "1x2", "criteria": {"Style": {"x": "y"}}}
    path.write_text(json.dumps(row) + "\n" + json.dumps({"images": ["a_b_0.png", "a_b_1.png"], "group": "g"}) + "\n")
    first, second = read_grids(path, tmp_path / "cut2")
    assert (first.prompt, len(first.figures), first.meta) == ("a cat", 2, {"criteria": {"Style": {"x": "y"}}})
    assert second.figures == [str(tmp_path / "a_b_0.png"), str(tmp_path / "a_b_1.png")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no grid pictures"):
        read_grids(tmp_path / "empty", tmp_path / "cut3")
    path.write_text('{"image": "c_0.png"}\n')
    with pytest.raises(InputError, match="line 1: a grid has"):
        read_grids(path, tmp_path / "cut4")
