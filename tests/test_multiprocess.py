"""`accelerate launch`: two processes take the same steps as one with their batches together; the configs are read by accelerate."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import vlrm

ROOT = Path(vlrm.__file__).parent
METHODS = {"bradley_terry": "preferences.jsonl"}


@pytest.mark.parametrize("name", ["fsdp", "deepspeed", "cpu"])
def test_accelerate_reads_the_configs(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(ROOT / "configs" / f"accelerate_{name}.yaml"))
    assert config.distributed_type.value == {"fsdp": "FSDP", "deepspeed": "DEEPSPEED", "cpu": "MULTI_GPU"}[name]


@pytest.fixture(scope="module")
def data(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    rows = [
        {"prompt": f"Color {i}?", "chosen": f"It is {i}, yes.", "rejected": f"It is {'not ' * (i % 3)}{i}.", "images": [f"{i % 4}.png"]}
        for i in range(32)
    ]
    (folder / "preferences.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def losses(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_are_one_with_twice_the_batch(method, data, tiny_path, tmp_path):
    common = ["-m", "vlrm", "train", "--method", method, "--model", tiny_path, "--data", str(data / METHODS[method])]
    common += ["--max_steps", "4", "--logging_steps", "1", "--workers", "0", "--bf16", "false", "--learning_rate", "1e-3"]
    common += ["--progress", "false", "--warmup", "0"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(ROOT / "configs" / "accelerate_cpu.yaml")]
    launch += ["--main_process_port", port]
    one = [sys.executable, *common, "--output_dir", str(tmp_path / "one"), "--batch_size", "8"]
    two = [*launch, *common, "--output_dir", str(tmp_path / "two"), "--batch_size", "4"]
    for command in (one, two):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=500, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    first, second = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert len(first) == len(second) == 4 and first == pytest.approx(second, abs=1e-3), (first, second)
    assert len({round(loss, 4) for loss in first}) == 4
    card = json.loads((tmp_path / "two" / "vlrm.json").read_text())
    assert card["training"]["steps"] == 4 and (tmp_path / "two" / "model.safetensors").exists()
