"""`vlrm serve` for real: the tiny model as a GM-PRM, in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from served import TOKEN

from vlrm import Problem, Sample, load_scorer
from vlrm.cli import main
from vlrm.serving.load import model_path

pytest.importorskip("prometheus_client")


def test_the_served_scorer_is_the_scorer(tmp_path, pictures, capfd, monkeypatch):
    folder = tmp_path / "prm"
    shutil.copytree(model_path("tiny"), folder)
    (folder / "vlrm.json").write_text(json.dumps({"scorer": "vlrm.prm.gm_prm:GMPRM", "settings": {"max_tokens": 40}}))
    (tmp_path / "token").write_text(TOKEN + "\n")
    command = [sys.executable, "-m", "vlrm", "serve", "--scorer", str(folder), "--port", "0", "--token_file", str(tmp_path / "token")]
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        said = run.stdout.readline().split()
        assert said[:4] == ["serving", "prm", "at", said[3]], (tmp_path / "log").read_text()
        problems = [Problem(f"p{i}", "Which row?", [pictures[i]]) for i in range(3)]
        batch = [Sample(problem, f"Step 1: row {problem.id}.\nAnswer: 1") for problem in problems]
        here = load_scorer(folder)(batch)
        remote = load_scorer(f"reward+{said[3]}", token=TOKEN, expect="prm")
        there = remote(batch)
        for one, other in zip(here, there, strict=True):
            assert one.value == pytest.approx(other.value, abs=1e-4) and one.steps == pytest.approx(other.steps, abs=1e-4)
            assert one.correction == other.correction and [v.analysis for v in one.verdicts] == [v.analysis for v in other.verdicts]
        assert remote.max_steps == 12 and remote.usage.prompt_tokens > 0
        # another command, through the same door
        rows = [{"id": f"r{i}", "question": "Which?", "steps": ["a b", "c d"], "labels": [1, 0]} for i in range(2)]
        (tmp_path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        monkeypatch.setenv("VLRM_TOKEN", TOKEN)
        arguments = ["--scorer", f"reward+{said[3]}", "--output", str(tmp_path / "eval"), "--resamples", "10"]
        assert main(["eval", "steps", "--data", str(tmp_path / "steps.jsonl"), *arguments]) == 0, capfd.readouterr().err
        assert len((tmp_path / "eval" / "scores.jsonl").read_text().splitlines()) == 2
        run.send_signal(signal.SIGTERM)
        assert run.wait(30) == 0 and run.stdout.read().strip() == "all work is done"
        assert TOKEN not in (tmp_path / "log").read_text()
    finally:
        run.kill()
