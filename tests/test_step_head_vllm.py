"""A step head in vLLM's pooling runner, for real, on the CPU: the folder that training wrote, as it is."""

from __future__ import annotations

import pytest

from vlrm import Problem, Sample
from vlrm.prm.records import StepRecord
from vlrm.prm.train_vl_prm import train_vl_prm
from vlrm.rm.load import load_scorer


def test_vllm_serves_the_trained_head(needs_vllm, tiny_path, pictures, tmp_path):
    records = [
        StepRecord(f"r{i}", "Color?", ("It is red.", "So.", "Yes + no."), (pictures[i % 4],), judge=(True, i % 2 == 0, True))
        for i in range(8)
    ]
    train_vl_prm(tiny_path, records, tmp_path, head=1, max_steps=2, learning_rate=1e-4, system="", progress=False, workers=0, bf16=False)
    samples = [
        Sample(Problem(f"p{n}", "What + what?", pictures[: n % 3]), "\n".join(f"Step {k}: It is {k}." for k in range(1, n + 1)))
        for n in (1, 3, 7)
    ]
    ours = load_scorer(tmp_path, engine_options={"device": "cpu"})(samples)
    scorer = load_scorer(tmp_path, "vllm", {"max_model_len": 1024})
    theirs = scorer(samples)
    scorer.engine.close()
    for one, other in zip(ours, theirs, strict=True):
        assert one.steps == pytest.approx(other.steps, abs=0.01) and one.details["lengths"] == other.details["lengths"]
    assert len({round(p, 3) for score in ours for p in score.steps}) > 3, ours
