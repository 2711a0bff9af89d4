"""Rankings: metrics by hand in both conventions, files of every form, evaluation with intervals, the command."""

from __future__ import annotations

import io
import json
from itertools import permutations

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from scipy.stats import kendalltau, spearmanr

from vlrm import InputError, Score, Usage, cli
from vlrm.rm.rank_eval import compare, evaluate_ranks, instance_figures, summarize
from vlrm.rm.rank_metrics import chance, footrule, position_accuracy, predicted_order, rank_figures, ranks_of, t1b1
from vlrm.rm.ranks import RankItem, read_ranks, write_ranks
from vlrm.rm.scoring import score_samples
from vlrm.rm.similarity import EmbeddingSimilarity, PixelSimilarity
from vlrm.rm.stats import cluster_bootstrap

# Metrics


def test_the_same_order_and_the_reverse():
    same = rank_figures([2, 0, 3, 1], [2, 0, 3, 1])
    assert same == dict.fromkeys(("accuracy", "t1b1", "kendall_list", "spearman_list", "kendall", "spearman"), 1.0) | {"footrule": 0.0}
    back = rank_figures([1, 3, 0, 2], [2, 0, 3, 1])
    assert (back["accuracy"], back["t1b1"], back["kendall"], back["spearman"], back["footrule"]) == (0.0, 0.0, -1.0, -1.0, 1.0)
    assert (back["kendall_list"], back["spearman_list"]) == (-1.0, -1.0)


def test_values_worked_out_by_hand_where_the_conventions_differ():
    # Truth: item 0 first, then 2, then 1. Predicted: 1, 2, 0. As ranks of items 0, 1, 2: truth (0, 2, 1), predicted (2, 0, 1).
    # Ranks: pairs (0,1): +2 against -2; (0,2): +1 against -1; (1,2): -1 against +1: all three discordant, tau -1.
    # rho: d = (-2, 2, 0), sum d^2 = 8, 1 - 48/24 = -1. The lists (1,2,0) and (0,2,1): +1/+2, -1/+1, -2/-1: two concordant, tau 1/3.
    # rho of the lists: d = (1, 0, -1), sum 2, 1 - 12/24 = 1/2.
    found = rank_figures([1, 2, 0], [0, 2, 1])
    assert found["kendall"] == -1 and found["spearman"] == -1
    assert found["kendall_list"] == pytest.approx(1 / 3) and found["spearman_list"] == pytest.approx(1 / 2)
    # Only item 2 is in its place; first and last are both wrong; items 0 and 1 each moved two places of at most 4 in all.
    assert found["accuracy"] == pytest.approx(1 / 3) and found["t1b1"] == 0 and found["footrule"] == 1.0


def test_four_items_by_hand():
    # Truth 0 1 2 3, predicted 0 2 1 3: the middle two changed places.
    assert position_accuracy([0, 2, 1, 3], [0, 1, 2, 3]) == 0.5 and t1b1([0, 2, 1, 3], [0, 1, 2, 3]) == 1.0
    assert footrule([0, 2, 1, 3], [0, 1, 2, 3]) == 2 / 8
    assert t1b1([0, 3, 2, 1], [0, 1, 2, 3]) == 0.5
    found = rank_figures([0, 2, 1, 3], [0, 1, 2, 3])
    assert found["kendall"] == pytest.approx(4 / 6) and found["spearman"] == pytest.approx(1 - 6 * 2 / 60)


def test_both_conventions_are_scipys():
    differ = pairs = 0
    for predicted in permutations(range(4)):
        for truth in permutations(range(4)):
            found = rank_figures(predicted, truth)
            assert found["kendall_list"] == pytest.approx(kendalltau(predicted, truth).statistic)
            assert found["spearman_list"] == pytest.approx(spearmanr(predicted, truth).statistic)
            if predicted == (1, 3, 0, 2):
                assert found["kendall"] == pytest.approx(kendalltau(ranks_of(predicted), ranks_of(truth)).statistic)
                assert found["spearman"] == pytest.approx(spearmanr(ranks_of(predicted), ranks_of(truth)).statistic)
            pairs, differ = pairs + 1, differ + (abs(found["kendall"] - found["kendall_list"]) > 1e-9)
    assert 0.4 < differ / pairs < 0.6


def test_chance_is_the_mean_over_all_orders():
    rows = [rank_figures(order, [0, 1, 2, 3]) for order in permutations(range(4))]
    for name, value in chance(4).items():
        assert sum(row[name] for row in rows) / len(rows) == pytest.approx(value, abs=1e-12)


def test_equal_scores_are_ordered_by_lot_or_as_in_the_file():
    assert predicted_order([0.5, 0.5, 0.9, 0.1]) == [2, 0, 1, 3]
    drawn = {tuple(predicted_order([1.0, 1.0, 1.0], seed)) for seed in range(60)}
    assert len(drawn) == 6 and predicted_order([0.0, 1.0, 1.0], "x") == predicted_order([0.0, 1.0, 1.0], "x")
    item = RankItem("i", "r", ["a", "b", "c"], (0, 1, 2))
    assert instance_figures(item, [1.0, 1.0, 1.0], "file")["accuracy"] == 1.0
    constant = [instance_figures(RankItem(str(i), "r", ["a", "b", "c"], (0, 1, 2)), [1.0] * 3)["accuracy"] for i in range(600)]
    assert sum(constant) / 600 == pytest.approx(1 / 3, abs=0.06)


def test_bad_orders():
    for predicted, truth in (([0], [0]), ([0, 1], [0, 2]), ([0, 0], [0, 1]), ([0, 1, 2], [0, 1])):
        with pytest.raises(InputError, match="same items"):
            rank_figures(predicted, truth)
    with pytest.raises(InputError, match="order must name each"):
        RankItem("i", "r", ["a", "b"], (0, 2))


def test_clusters_are_resampled_whole():
    values, clusters = [1.0] * 50 + [0.0] * 50, ["a"] * 50 + ["b"] * 50
    mean, low, high, _ = cluster_bootstrap(values, clusters, resamples=500)
    assert (mean, low, high) == (0.5, 0.0, 1.0)
    _, low, high, p = cluster_bootstrap(values, range(100), resamples=2000)
    assert 0.38 < low < 0.45 < 0.55 < high < 0.62 and p == pytest.approx(1 / 2000)
    assert cluster_bootstrap([1.0, -1.0] * 20, range(40), resamples=2000)[3] > 0.5
    with pytest.raises(InputError, match="cluster"):
        cluster_bootstrap([1.0], ["a", "b"])


# Files


def released(folder, rows=None):
    """A hand-made ConsistencyRank: two folders, references and candidates of one colour each, brighter is nearer."""
    rows = rows or [
        {"folder": "0007_fox", "ref_image": "r.png", "comp_images": ["a.png", "b.png", "c.png", "d.png"],
         "rank_images": ["c.png", "a.png", "d.png", "b.png"]},
        {"folder": "0009_cat", "ref_image": "r.png", "comp_images": ["a.png", "b.png", "c.png", "d.png"],
         "rank_images": ["a.png", "b.png", "c.png", "d.png"]},
    ]  # fmt: skip
    shades = {"r.png": 250, "a.png": 150, "b.png": 50, "c.png": 200, "d.png": 100}
    for row in rows:
        place = folder / "images" / row["folder"]
        place.mkdir(parents=True, exist_ok=True)
        for name, shade in shades.items():
            Image.new("RGB", (8, 8), (shade,) * 3).save(place / name)
    path = folder / "consistency_full_rank.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = [{"idx": 7, "prompt": "a fox", "criteria": {"Style": {"ink": "same ink"}}}, {"idx": "0009_cat", "prompt": "a cat"}]
    (folder / "prompt_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    return path


def test_consistencyrank_is_read_as_it_is(tmp_path):
    first, second = read_ranks(released(tmp_path))
    assert first.order == (2, 0, 3, 1) and second.order == (0, 1, 2, 3) and first.group == "0007_fox"
    assert first.reference.endswith("images/0007_fox/r.png") and first.candidates[1].endswith("0007_fox/b.png")
    assert first.meta["prompt"] == "a fox" and second.meta == {"prompt": "a cat"}
    assert first.samples("theme")[0].problem.question == "a fox" and first.samples("theme")[0].problem.meta == {"task": "theme"}
    assert first.samples("criteria")[0].problem.meta == {"criteria": {"Style": {"ink": "same ink"}}}
    with pytest.raises(InputError, match="has no criteria"):
        second.samples("criteria")
    assert len(read_ranks(tmp_path / "consistency_full_rank.jsonl", limit=1)) == 1


@pytest.mark.parametrize(("change", "message"), [
    ({"rank_images": ["c.png", "a.png", "d.png", "d.png"]}, "line 1: column rank_images must hold"),
    ({"rank_images": None}, "column rank_images is missing"),
])  # fmt: skip
def test_faults_name_their_line(tmp_path, change, message):
    row = {"folder": "1", "ref_image": "r.png", "comp_images": ["a.png", "b.png", "c.png", "d.png"]}
    with pytest.raises(InputError, match=message):
        read_ranks(released(tmp_path, [{**row, **change}]))


def test_our_own_form_comes_back_as_it_was(tmp_path):
    item = RankItem(
        "i", str(tmp_path / "r.png"), [str(tmp_path / "a.png"), str(tmp_path / "b.png")], (1, 0), "Same?", "ask", "g", {"prompt": "x"}
    )
    write_ranks(tmp_path / "ranks.jsonl", [item])
    assert read_ranks(tmp_path / "ranks.jsonl") == [item]
    (tmp_path / "bad.jsonl").write_text('{"id": "i", "reference": "r.png", "candidates": ["a.png", "b.png"], "order": [0]}\n')
    with pytest.raises(InputError, match=r"bad.jsonl, line 1: instance i: order must"):
        read_ranks(tmp_path / "bad.jsonl")
    (tmp_path / "twice.jsonl").write_text('{"id": "i", "reference": "r.png", "candidates": ["a.png", "b.png"]}\n' * 2)
    with pytest.raises(InputError, match="also the id in line 1"):
        read_ranks(tmp_path / "twice.jsonl")


def edits(path, **change):
    """Rows in EditReward-Bench's form: encoded pictures of one shade each; the better edit stands first."""

    def picture(shade):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), (shade,) * 3).save(buffer, format="PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    shades = [("prompt_following", "color_alter", 200, 100), ("prompt_following", "color_alter", 100, 200),
              ("prompt_following", "extract", 90, 90), ("consistency", "extract", 90, 80), ("overall", "extract", 10, 20)]  # fmt: skip
    rows = [
        {"key": [f"{k}a", f"{k}b"], "instruction": f"make it {kind}", "input_image": picture(250), "dimension": dimension,
         "output_images": [picture(better), picture(worse)], "task_type": kind, **change}
        for k, (dimension, kind, better, worse) in enumerate(shades)
    ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_editreward_bench_is_read_and_counted_as_published(tmp_path):
    path = edits(tmp_path / "bench.parquet")
    first, *others = read_ranks(path, keep=tmp_path / "kept")
    assert first.order == (0, 1) and first.id == "prompt_following/0a/0b" and first.group == "make it color_alter"
    assert [item.task for item in others[1:]] == ["edit_following", "edit_consistency", "edit"]
    assert len({item.reference for item in [first, *others]}) == 1 and len(list((tmp_path / "kept").iterdir())) == 7
    assert isinstance(read_ranks(path)[0].reference, bytes)
    found = evaluate_ranks(path, tmp_path / "out", Bright, resamples=50)["edits"]
    # colours: one of two right; extract: a tie, wrong by > and right by >=. The mean is over task types, not pairs.
    assert found["prompt_following"]["task_types"]["color_alter"] == {"strict": 0.5, "at_least": 0.5, "pairs": 2}
    assert (found["prompt_following"]["strict"], found["prompt_following"]["at_least"]) == (0.25, 0.75)
    assert found["consistency"]["strict"] == 1 and found["overall"]["at_least"] == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "mean over task types" in page and "prompt following &gt;=" in page


@pytest.mark.parametrize(("change", "message"), [
    ({"dimension": "looks"}, "column dimension must be one of prompt_following"),
    ({"key": ["one"]}, "column key must hold two"),
    ({"instruction": None}, "column instruction is missing"),
])  # fmt: skip
def test_faults_of_edits_name_their_line(tmp_path, change, message):
    with pytest.raises(InputError, match=f"line 1: {message}"):
        read_ranks(edits(tmp_path / "bench.parquet", **change))


def test_a_folder_that_datasets_saved_is_read(tmp_path):
    from datasets import Dataset

    Dataset.from_parquet(str(edits(tmp_path / "bench.parquet"))).save_to_disk(tmp_path / "saved")
    assert [item.id for item in read_ranks(tmp_path / "saved")] == [item.id for item in read_ranks(tmp_path / "bench.parquet")]
    with pytest.raises(InputError, match="does not exist"):
        read_ranks("./nowhere")


# Evaluation


class Bright:
    """Scores a pair by the brightness of the second picture; refuses what `broken` names."""

    def __init__(self, broken=None, stop_after=None):
        self.usage, self.broken, self.seen, self.stop_after = Usage(), broken, 0, stop_after

    def __call__(self, samples):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        if any(self.broken and self.broken in sample.problem.images[1] for sample in samples):
            raise InputError(f"image {self.broken!r} is truncated or damaged; replace the file")
        self.seen += len(samples)
        self.usage += Usage(5 * len(samples), 0, len(samples), 0.5)
        values = [Image.open(sample.problem.images[1]).getpixel((0, 0))[0] / 255 for sample in samples]
        return [Score(value, details={"order_gap": 0.25}) for value in values]


def test_a_scorer_is_measured_beside_pixels_and_chance(tmp_path):
    results = evaluate_ranks(released(tmp_path), tmp_path / "out", Bright, resamples=200)
    figures = results["metrics"]
    # Brightest first is 2 0 3 1: right in the first folder; in the second one of four places (none) and neither end.
    assert figures["scorer"]["accuracy"]["value"] == pytest.approx((1 + position_accuracy([2, 0, 3, 1], [0, 1, 2, 3])) / 2)
    assert figures["scorer"]["t1b1"]["value"] == 0.5 and figures["chance"]["accuracy"]["value"] == 0.25
    assert figures["pixels"]["accuracy"]["value"] == figures["scorer"]["accuracy"]["value"]  # the reference is the brightest of all
    assert figures["scorer"]["kendall"]["ci95"][0] <= figures["scorer"]["kendall"]["value"] <= figures["scorer"]["kendall"]["ci95"][1]
    assert results["scorer - pixels"]["accuracy"] == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}
    assert (results["instances"], results["groups"], results["prompt_tokens"], results["order_gap"]) == (2, 2, 40, 0.25)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "The 1 worst rankings" in page and "0009_cat/2" in page and "0007_fox/1" not in page  # the first is right, so no case
    assert page.count("<img") == 5 and "src='http" not in page


def test_what_is_not_scored_is_left_out_and_counted(tmp_path):
    path = released(tmp_path)
    results = evaluate_ranks(path, tmp_path / "out", lambda: Bright("0009_cat/c.png"), resamples=50)
    assert results["instances"] == 1 and results["counts"] == {"instances with a candidate that was not scored": 1}
    [(reason, count)] = results["unscored"].items()
    assert "damaged" in reason and count == 1 and results["metrics"]["scorer"]["accuracy"]["value"] == 1
    alone = evaluate_ranks(path, tmp_path / "alone", None, resamples=50)
    assert set(alone["metrics"]) == {"pixels", "chance"} and alone["instances"] == 2


def test_an_interrupted_run_goes_on_and_other_settings_are_refused(tmp_path):
    path, out = released(tmp_path), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        evaluate_ranks(path, out, lambda: Bright(stop_after=4), chunk=2, resamples=50)
    second = Bright()
    results = evaluate_ranks(path, out, lambda: second, chunk=2, resamples=50)
    assert second.seen == 4 and results["instances"] == 2
    evaluate_ranks(path, out, lambda: pytest.fail("nothing is missing"), chunk=2, resamples=50)
    with pytest.raises(InputError, match="other settings"):
        evaluate_ranks(path, out, Bright, settings={"scorer": "another"}, resamples=50)
    for wrong in ({"instruction": "x"}, {"ties": "x"}):
        with pytest.raises(InputError):
            evaluate_ranks(path, out, None, **wrong)
    (out / "scores.jsonl").write_text("[]\n")
    with pytest.raises(InputError, match="is not a score"):
        score_samples([], Bright, out / "scores.jsonl", settings={})


def test_comparison_is_paired():
    better, worse = [{"m": 1.0}, {"m": 0.6}], [{"m": 0.9}, {"m": 0.5}]
    found = compare(better, worse, ["a", "b"], resamples=200)["m"]
    assert found["difference"] == pytest.approx(0.1) and found["ci95"] == pytest.approx([0.1, 0.1]) and found["p"] == 1 / 200
    assert summarize(better, ["a", "b"], resamples=50)["m"]["value"] == 0.8


def test_similarity_of_pixels_and_of_embeddings(tmp_path, tiny_engine, pictures):
    from vlrm.rm.paco_prompt import pair_problem
    from vlrm.types import Sample

    black, white = Image.new("RGB", (8, 8), "black"), Image.new("RGB", (8, 8), "white")
    pixels = PixelSimilarity()
    pairs = [(black, white), (black, black.copy()), (black, Image.new("RGB", (40, 4), (51, 51, 51)))]
    assert [round(s.value, 6) for s in pixels([Sample(pair_problem(*pair), "") for pair in pairs])] == [0.0, 1.0, 0.8]
    embedding = EmbeddingSimilarity(tiny_engine)
    same, other = embedding([Sample(pair_problem(pictures[0], pictures[k]), "") for k in (0, 1)])
    assert same.value == pytest.approx(1, abs=1e-5) and 0 <= other.value < same.value and len(embedding.known) == 2
    with pytest.raises(InputError, match="no picture features"):
        EmbeddingSimilarity(Bright())


def test_the_command_evaluates_an_untrained_model(tmp_path, tiny_path, capsys):
    path, out = released(tmp_path), tmp_path / "out"
    arguments = ["eval", "ranks", "--data", str(path), "--scorer", tiny_path, "--output", str(out), "--resamples", "50"]
    assert cli.main([*arguments, "--instruction", "theme", "--scorer_settings", '{"both_orders": false}']) == 0
    said = capsys.readouterr().out
    assert "2 instances of 2 groups" in said and "kendall_list" in said and "chance" in said
    results = json.loads((out / "results.json").read_text())
    assert results["instruction"] == "theme" and results["calls"] == 8 and results["order_gap"] is None
    arguments[arguments.index(str(out))] = str(tmp_path / "fresh")
    assert cli.main([*arguments, "--scorer_settings", '{"wrods": ["a", "b"]}']) == 2
    assert "did you mean 'words'" in capsys.readouterr().err
