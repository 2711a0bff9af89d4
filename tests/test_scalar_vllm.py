"""A scalar head served by vLLM, for real, on the CPU: the folder that training wrote, as it is, gives the same scores."""

from __future__ import annotations

from vlrm import Problem, Sample, load_scorer
from vlrm.rm.preferences import Preference
from vlrm.rm.train_scalar import train_bradley_terry


def test_vllm_serves_the_trained_head(needs_vllm, tiny_path, pictures, tmp_path):
    pairs = [Preference(Problem(f"p{i}", "Color?", [pictures[i % 4]]), f"It is {i}.", f"It is not {i}.") for i in range(8)]
    train_bradley_terry(tiny_path, pairs, tmp_path, max_steps=2, learning_rate=1e-3, progress=False, workers=0, bf16=False)
    samples = [Sample(Problem(f"s{n}", "What + what?", pictures[: n % 4]), "It is so. " * n) for n in range(1, 13)]
    ours = [score.value for score in load_scorer(tmp_path, engine_options={"device": "cpu"})(samples)]
    scorer = load_scorer(tmp_path, "vllm", {"max_model_len": 1024})
    theirs = [score.value for score in scorer(samples)]
    scorer.engine.close()
    gaps = [abs(one - other) for one, other in zip(ours, theirs, strict=True)]
    assert sum(gaps) / len(gaps) <= 0.02, gaps
    assert len({round(value, 2) for value in ours}) > 3, ours
