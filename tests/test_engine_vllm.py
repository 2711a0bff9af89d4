"""VLLMEngine for real, on the CPU, against transformers. One vLLM, with a LoRA adapter, is started for the whole file."""

from __future__ import annotations

import os
import sys

import pytest

from vlrm.serving import load_engine
from vlrm.types import InputError


@pytest.fixture(scope="module")
def engine(needs_vllm, tiny_path, tiny_adapter):
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    engine = load_engine(f"vllm:{tiny_path}", adapter=tiny_adapter, max_model_len=1024, limit_mm_per_prompt={"image": 4})
    yield engine
    engine.close()
    children = [pid for pid in os.listdir("/proc") if pid.isdigit() and _is_child(pid)] if sys.platform == "linux" else []
    assert not children, "close() ends vLLM's child process"


def _is_child(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            name, fields = file.read().rsplit(")", 1)
    except OSError:
        return False
    return "EngineCore" in name and int(fields.split()[1]) == os.getpid()


@pytest.fixture(scope="module")
def tuned(tiny_path, tiny_adapter):
    return load_engine(tiny_path, adapter=tiny_adapter, device="cpu")


def test_paco_scores_pairs_as_with_transformers(engine, tuned, pictures):
    from vlrm import Sample
    from vlrm.rm.paco import PaCo
    from vlrm.rm.paco_prompt import pair_problem

    samples = [Sample(pair_problem(pictures[i], pictures[j], "identity?"), "") for i, j in ((0, 1), (1, 0), (0, 2), (2, 2))]
    style = {"ending": "", "marks": ("", ""), "words": ("+", "-")}
    ours, theirs = (PaCo(one, **style)(samples) for one in (engine, tuned))
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.value is None) == (other.value is None) and mine.value == pytest.approx(other.value, abs=0.02)


def test_agrees_with_transformers(engine, tuned, mixed_requests, check_agreement):
    check_agreement(tuned, engine, mixed_requests)


def test_samples_by_seed(engine, ask):
    def texts(*seeds, n=4):
        groups = engine.generate([ask(temperature=1.0, max_tokens=12, n=n, seed=seed) for seed in seeds])
        return [[completion.text for completion in group] for group in groups]

    first, second = texts(5, 6)
    assert len(set(first)) == 4 and not set(first) & set(second)
    assert texts(5) == [first] and texts(5, n=2) == [first[:2]]
    assert texts(None) != texts(None)


def test_more_seeded_prompts_than_vllm_reads_in_one_step(engine, ask):
    """Read in pieces, they would end vLLM on a CPU."""
    requests = [ask(f"{i} " + "word " * 150, images=(), temperature=1.0, seed=i, max_tokens=1) for i in range(12)]
    groups = engine.generate(requests)
    assert [len(group) for group in groups] == [1] * 12 and sum(group[0].prompt_tokens for group in groups) > 4096


def test_stop_strings_and_offsets(engine, ask):
    whole = engine.generate([ask(temperature=1.5, seed=1, max_tokens=40, logprobs=True)])[0][0]
    assert whole.tokens[-1].end == len(whole.text)
    stop = whole.text[5:7]
    cut = engine.generate([ask(temperature=1.5, seed=1, max_tokens=40, stop=(stop,), logprobs=True)])[0][0]
    assert cut.text == whole.text[: whole.text.index(stop)] and cut.finish_reason == "stop"
    assert cut.stopped_at == stop and whole.stopped_at == ""
    assert cut.tokens[-1].end == len(cut.text)


def test_tracked_words_without_chosen_ids(engine, ask, monkeypatch):
    request = ask(track=(" Correct",), max_tokens=4)
    exact = engine.generate([request])[0][0]
    monkeypatch.setattr(engine, "picks_ids", False)
    bounded = engine.generate([request])[0][0]
    for a, b in zip(exact.tokens, bounded.tokens, strict=True):
        assert b.tracked[" Correct"] >= a.tracked[" Correct"] - 1e-4, "exact, or an upper bound"


def test_usage(engine, ask):
    before = engine.usage
    [group] = engine.generate([ask(n=3, temperature=1.0, seed=0, max_tokens=7)])
    spent = engine.usage - before
    assert (spent.prompt_tokens, spent.completion_tokens, spent.calls) == (group[0].prompt_tokens, 21, 3)


def test_bad_requests(engine, ask):
    with pytest.raises(InputError, match="vLLM refuses"):
        engine.generate([ask("word " * 2000)])
    with pytest.raises(InputError, match="vLLM refuses"):
        engine.generate([ask(images=(0,) * 5)])
    with pytest.raises(InputError, match=r"' Correct one'.*' Correct two'"):
        engine.choice_logprobs([ask(prefix="Verdict:")], [" Correct one", " Correct two"])
    assert engine.generate([]) == [] and engine.choice_logprobs([], ["a"]) == []
    assert engine.generate([ask(max_tokens=2)])[0][0].text, "it still works"


@pytest.mark.parametrize("prompt_turns", [False, True])
def test_the_places_of_a_chat_are_read_as_transformers_reads_them(engine, tuned, pictures, prompt_turns, monkeypatch):
    from vlrm.prm.verdicts import VerdictStyle

    monkeypatch.setattr(engine, "prompt_turns", prompt_turns)
    style = VerdictStyle(system="Judge + or -.")
    chats = [style.request("3 + 4?", pictures[: n % 3], [f"The red bar is {k}." for k in range(n)]) for n in (1, 4, 7)]
    for ours, theirs in zip(engine.turn_logprobs(chats, ("+", "-")), tuned.turn_logprobs(chats, ("+", "-")), strict=True):
        assert [turn.tokens for turn in ours] == [turn.tokens for turn in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=0.02)
    assert engine.turn_logprobs([], ("+", "-")) == []


def test_missing_vllm_says_what_to_install(tiny_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install \"vlrm\[vllm\]\""):
        load_engine(f"vllm:{tiny_path}")
