"""The quickstart in small: all its parts, in order, resumed after a loss, refused with other settings."""

import json

import pytest

from vlrm.policy.quickstart import run
from vlrm.types import InputError

SMALL = {"problems": 6, "n": 4, "train_problems": 24, "replay": 6, "batch_size": 8, "seed": 3}
ARMS = {
    "single", "greedy", "majority", "random", "best_of_n", "weighted_best_of_n",
    "refined_best_of_n", "no_fix", "self_critic", "critic_greedy", "oracle",
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    return folder, run(folder, **SMALL)


def without_times(results):
    arms = {name: {k: v for k, v in arm.items() if k != "seconds"} for name, arm in results["arms"].items()}
    return {"arms": arms, "tests": results["tests"], "steps": results["steps"], "worlds": results["worlds"]}


def test_writes_the_promised_files_and_figures(finished):
    folder, results = finished
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(results))
    assert set(results["arms"]) == ARMS
    for arm in results["arms"].values():
        assert 0 <= arm["ci95"][0] <= arm["accuracy"] <= arm["ci95"][1] <= 1
        assert {"policy_tokens", "scorer_tokens", "seconds"} <= set(arm)
    for test in ("best_of_n vs majority", "refined_best_of_n vs best_of_n"):
        assert {"difference", "mcnemar_p"} <= set(results["tests"][test])
    assert results["arms"]["oracle"]["accuracy"] >= results["arms"]["best_of_n"]["accuracy"]
    assert results["arms"]["refined_best_of_n"]["policy_tokens"] <= 1.2 * results["arms"]["best_of_n"]["policy_tokens"]
    assert set(results["worlds"]) == {"grid", "bars", "ladder"}
    assert (folder / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "report.html").read_text()
    assert "http://" not in page and "https://" not in page and page.count("class='problem'") == 6


def test_second_run_reads_what_is_there_and_a_lost_piece_comes_back_the_same(finished):
    folder, results = finished
    before = (folder / "gm_prm" / "model.safetensors").stat().st_mtime_ns
    for piece in (folder / "arms").glob("refined*"):
        piece.unlink()
    again = run(folder, **SMALL)
    assert (folder / "gm_prm" / "model.safetensors").stat().st_mtime_ns == before
    assert without_times(again) == without_times(results)


def test_other_settings_in_the_same_folder_are_refused_and_nothing_is_lost(finished):
    folder, _ = finished
    with pytest.raises(InputError, match="other settings"):
        run(folder, **{**SMALL, "seed": 4})
    assert json.loads((folder / "settings.json").read_text())["seed"] == 3


@pytest.mark.parametrize("change, word", [({"n": 0}, "n must"), ({"problems": 0}, "problems must"), ({"temperature": 0.0}, "temperature")])
def test_bad_settings_leave_nothing_behind(change, word, tmp_path):
    with pytest.raises(InputError, match=word):
        run(tmp_path / "new", **{**SMALL, **change})
    assert not (tmp_path / "new").exists()
