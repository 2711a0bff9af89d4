"""A scalar head served by vLLM, for real, on the CPU: the folder that training wrote, as it is, gives the same scores."""

from __future__ import annotations

import pytest
from conftest import served

from vlrm import Problem, Sample, load_scorer
from vlrm.rm.preferences import Preference
from vlrm.rm.train_scalar import train_bradley_terry


@pytest.fixture(scope="module")
def trained(needs_vllm, tiny_path, pictures, tmp_path_factory):
    """A folder that training wrote, samples, and what transformers gives for them."""
    folder = tmp_path_factory.mktemp("scalar")
    pairs = [Preference(Problem(f"p{i}", "Color?", [pictures[i % 4]]), f"It is {i}.", f"It is not {i}.") for i in range(8)]
    train_bradley_terry(tiny_path, pairs, folder, max_steps=2, learning_rate=1e-3, progress=False, workers=0, bf16=False)
    samples = [Sample(Problem(f"s{n}", "What + what?", pictures[: n % 4]), "It is so. " * n) for n in range(1, 13)]
    ours = [score.value for score in load_scorer(folder, engine_options={"device": "cpu"})(samples)]
    assert len({round(value, 2) for value in ours}) > 3, ours
    return folder, samples, ours


def gap(ours, scores):
    return sum(abs(one - score.value) for one, score in zip(ours, scores, strict=True)) / len(ours)


def test_vllm_gives_the_trained_heads_scores(trained):
    folder, samples, ours = trained
    scorer = load_scorer(folder, "vllm", {"max_model_len": 1024})
    theirs = scorer(samples)
    scorer.engine.close()
    assert gap(ours, theirs) <= 0.02


def test_a_vllm_server_gives_the_trained_heads_scores(trained, tmp_path):
    folder, samples, ours = trained
    with served(folder, ["--runner", "pooling"], tmp_path) as url:
        for scorer in (load_scorer(folder, url), load_scorer(url, method="scalar")):
            scores = scorer(samples)
            assert gap(ours, scores) <= 0.02 and scorer.usage.prompt_tokens == sum(score.details["tokens"] for score in scores)
