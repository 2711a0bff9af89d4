"""TransformersEngine against plain transformers, and its own promises: seeds, batches, stops, prefixes, offsets."""

from __future__ import annotations

import json
import math
import shutil

import pytest

from vlrm.serving import load_engine
from vlrm.types import EngineError, InputError

torch = pytest.importorskip("torch")


def reference(engine, request, ids):
    """Log-probabilities (T, V) of `ids` after the request's prompt, by one forward pass of transformers."""
    inputs = engine._inputs([engine.prompter.text(request)], [request])
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], dim=1)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with torch.inference_mode():
        logits = engine.model(**inputs).logits[0, prompt - 1 : -1]
    return logits.log_softmax(-1)


def test_greedy_is_what_transformers_generates(tiny_engine, ask):
    request = ask(max_tokens=32)
    [[completion]] = tiny_engine.generate([request])
    inputs = tiny_engine._inputs([tiny_engine.prompter.text(request)], [request])
    ids = tiny_engine.model.generate(**inputs, do_sample=False, max_new_tokens=32, suppress_tokens=tiny_engine.banned_ids)
    ids = ids[0, inputs["input_ids"].shape[1] :]
    assert completion.text == tiny_engine.tokenizer.decode(ids, skip_special_tokens=True)
    assert completion.completion_tokens == len(ids)
    assert completion.prompt_tokens == inputs["input_ids"].shape[1]


def test_mixed_batch_equals_one_by_one(tiny_engine, ask):
    requests = [
        ask(),
        ask("And the blue one? Say where it stands, row by row.", images=(1, 2), max_tokens=40),
        ask("No picture here", images=(), max_tokens=3),
        ask(prefix="Step 1: row 1 is", images=(3,)),
        ask(temperature=0.9, seed=7, n=3, top_p=0.9),
        ask(temperature=1.1, seed=8, n=2, top_k=5, max_tokens=50),
    ]
    together = tiny_engine.generate(requests)
    assert [len(group) for group in together] == [request.n for request in requests]
    for request, group in zip(requests, together, strict=True):
        assert tiny_engine.generate([request]) == [group]


def test_batch_size_does_not_matter(tiny_path, tiny_engine, ask):
    requests = [ask(f"question {i}" * (i % 3 + 1), images=(i % 4,), n=4, temperature=1.0, seed=i, max_tokens=30) for i in range(6)]
    small = load_engine(tiny_path, batch_size=3, device="cpu")
    assert [[c.text for c in group] for group in small.generate(requests)] == [
        [c.text for c in group] for group in tiny_engine.generate(requests)
    ]


def test_models_without_a_repeatable_cache(tiny_path, tiny_engine, ask, monkeypatch):
    """Sliding windows, recurrent layers: every row reads its own prompt, and the results are the same."""
    monkeypatch.setattr("vlrm.serving.decoding.roomy_cache", lambda config: None)
    requests = [ask(n=3, temperature=1.0, seed=1, max_tokens=9), ask("two", images=(1, 2), max_tokens=14, logprobs=True)]
    plain = load_engine(tiny_path, device="cpu").generate(requests)
    monkeypatch.undo()
    for ours, theirs in zip(tiny_engine.generate(requests), plain, strict=True):
        assert [completion.text for completion in ours] == [completion.text for completion in theirs]


def test_fast_is_near_and_does_not_depend_on_the_batch(tiny_path, tiny_engine, ask):
    fast = load_engine(tiny_path, device="cpu", dtype="fast")
    requests = [ask(f"question {i} " * (i % 3 + 1), images=(i % 4,), n=3, temperature=1.0, seed=i, max_tokens=20) for i in range(6)]
    together = fast.generate(requests)
    fast.batch_size = 4
    same = [
        a.text == b.text for left, right in zip(together, fast.generate(requests), strict=True) for a, b in zip(left, right, strict=True)
    ]
    assert sum(same) >= 0.9 * len(same)
    choices = [" Correct", " Incorrect"]
    probes = [ask(f"question {i}", prefix="Verdict:") for i in range(4)]
    for ours, theirs in zip(fast.choice_logprobs(probes, choices), tiny_engine.choice_logprobs(probes, choices), strict=True):
        assert ours == pytest.approx(theirs, abs=0.3)


def test_seeds(tiny_engine, ask):
    def texts(seed, n=4):
        return [completion.text for completion in tiny_engine.generate([ask(temperature=1.0, n=n, seed=seed)])[0]]

    first = texts(1)
    assert texts(1) == first
    assert texts(1, n=2) == first[:2], "a sample depends on its index, not on n"
    assert texts(2) != first
    assert len(set(first)) == 4
    assert texts(None) != texts(None)


def test_sampling_follows_the_models_distribution(tiny_engine, ask):
    request = ask(n=2000, temperature=0.7, seed=3, max_tokens=1, logprobs=True)
    [group] = tiny_engine.generate([request])
    expected = (reference(tiny_engine, request, [0])[0] / 0.7).softmax(-1)
    counts = torch.zeros_like(expected)
    for completion in group:
        counts[completion.tokens[0].id] += 1
    likely = expected * 2000 > 20
    assert likely.sum() >= 3
    error = (counts - expected * 2000)[likely] / (expected * 2000)[likely].sqrt()
    assert error.abs().max() < 4.5


@pytest.mark.parametrize(("options", "allowed"), [({"top_k": 3}, 3), ({"top_p": 1e-6}, 1)])
def test_top_k_and_top_p_cut_the_tail(tiny_engine, ask, options, allowed):
    request = ask(n=200, temperature=1.5, seed=0, max_tokens=1, logprobs=True, **options)
    [group] = tiny_engine.generate([request])
    best = set(reference(tiny_engine, request, [0])[0].topk(allowed).indices.tolist())
    assert {completion.tokens[0].id for completion in group} == best


def test_logprobs_and_tracked_words(tiny_engine, ask):
    request = ask(n=2, temperature=1.3, seed=5, logprobs=True, track=(" Correct", " Incorrect"), max_tokens=12)
    correct, incorrect = (tiny_engine.tokenizer.encode(":" + word)[1] for word in request.track)
    for completion in tiny_engine.generate([request])[0]:
        ids = [token.id for token in completion.tokens]
        expected = reference(tiny_engine, request, ids)
        for token, row in zip(completion.tokens, expected, strict=True):
            assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
            assert token.tracked[" Correct"] == pytest.approx(row[correct].item(), abs=1e-4)
            assert token.tracked[" Incorrect"] == pytest.approx(row[incorrect].item(), abs=1e-4)


def test_offsets_cover_the_text(tiny_engine, ask):
    for completion in tiny_engine.generate([ask(n=8, temperature=2.0, seed=1, logprobs=True, max_tokens=40)])[0]:
        ends = [0] + [token.end for token in completion.tokens]
        assert [token.start for token in completion.tokens] == ends[:-1]
        assert ends[-1] == len(completion.text)


def test_no_tokens_unless_asked(tiny_engine, ask):
    plain, detailed = tiny_engine.generate([ask(), ask(logprobs=True)])
    assert plain[0].tokens == () and detailed[0].tokens
    assert plain[0].text == detailed[0].text


def test_stop_strings_cut_the_text(tiny_engine, ask):
    whole = tiny_engine.generate([ask(max_tokens=30)])[0][0]
    assert whole.finish_reason == "length" and whole.completion_tokens == 30
    stop = whole.text[9:12]
    [[completion]] = tiny_engine.generate([ask(max_tokens=30, stop=("never there", stop), logprobs=True)])
    assert completion.text == whole.text[: whole.text.index(stop)]
    assert completion.finish_reason == "stop" and completion.stopped_at == stop and whole.stopped_at == ""
    assert completion.completion_tokens < 30
    assert completion.tokens[-1].end == len(completion.text)


def test_prefix_goes_on_from_its_last_character(tiny_engine, ask):
    whole = tiny_engine.generate([ask(max_tokens=30, logprobs=True)])[0][0]
    half = whole.tokens[14].end
    rest = tiny_engine.generate([ask(prefix=whole.text[:half], max_tokens=15)])[0][0]
    if tiny_engine.prompter.ids(whole.text[:half]) == [token.id for token in whole.tokens[:15]]:  # the text has one tokenization
        assert rest.text == whole.text[half:]
    assert not rest.text.startswith(whole.text[:half])


def test_a_templates_own_space_is_written_once(tiny_path, ask):
    from transformers import AutoProcessor

    from vlrm.serving.prompting import Prompter

    processor = AutoProcessor.from_pretrained(tiny_path)
    turn = "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{{ p['text'] or '<image>' }}{% endfor %};{% endfor %}"
    processor.chat_template = turn + "{% if add_generation_prompt %}assistant:{% endif %}"
    prompter = Prompter(processor, "x")
    assert prompter.text(ask("q")) == "user: <image>q;assistant:"
    assert prompter.text(ask("q", prefix="Step")) == prompter.text(ask("q", prefix=" Step")) == "user: <image>q;assistant: Step"


def test_choice_logprobs(tiny_engine, ask):
    requests = [ask(prefix="Verdict:"), ask("A much longer question. " * 5, prefix="Step 1: ok. Verdict:", images=(0, 1))]
    results = tiny_engine.choice_logprobs(requests, [" Correct", " Incorrect"])
    for request, result in zip(requests, results, strict=True):
        ids = tiny_engine.prompter.choice_ids(tiny_engine.prompter.text(request), [" Correct", " Incorrect"])
        row = reference(tiny_engine, request, [0])[0]
        assert result == pytest.approx({" Correct": row[ids[0]].item(), " Incorrect": row[ids[1]].item()}, abs=1e-4)
        assert sum(math.exp(value) for value in result.values()) < 1


def test_a_space_before_the_choice_belongs_to_it(tiny_engine, ask):
    spaced = tiny_engine.choice_logprobs([ask(prefix="Verdict: ")], ["Correct", "Incorrect"])[0]
    plain = tiny_engine.choice_logprobs([ask(prefix="Verdict:")], [" Correct", " Incorrect"])[0]
    assert list(spaced.values()) == pytest.approx(list(plain.values()), abs=1e-4)


def test_choices_must_differ_at_their_first_token(tiny_engine, ask):
    with pytest.raises(InputError, match=r"' Correct one'.*' Correct two'"):
        tiny_engine.choice_logprobs([ask(prefix="Verdict:")], [" Correct one", " Correct two"])


def test_out_of_memory_says_what_to_lower(tiny_path, ask, monkeypatch):
    engine = load_engine(tiny_path, device="cpu", batch_size=7)

    def fail(**options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine.model, "generate", fail)
    with pytest.raises(EngineError, match="batch_size below 7"):
        engine.generate([ask()])


def test_a_choice_that_the_tokenizer_joins_with_the_prefix(tiny_engine, ask):
    with pytest.raises(InputError, match="joins the choice 'rect' with the end of the prefix"):
        tiny_engine.choice_logprobs([ask(prefix="Verdict: Cor")], ["rect", " no"])


def test_usage_counts_prompts_once(tiny_engine, ask):
    before = tiny_engine.usage
    [group] = tiny_engine.generate([ask(n=5, temperature=1.0, seed=0, max_tokens=6)])
    spent = tiny_engine.usage - before
    assert spent.prompt_tokens == group[0].prompt_tokens
    assert spent.completion_tokens == sum(completion.completion_tokens for completion in group)
    assert spent.calls == 5 and spent.seconds > 0


def test_adapter_changes_answers(tiny_path, tiny_adapter, tiny_engine, ask):
    tuned = load_engine(tiny_path, adapter=tiny_adapter, device="cpu")
    assert tuned.generate([ask()])[0][0].text != tiny_engine.generate([ask()])[0][0].text
    assert tuned.name != tiny_engine.name


def test_a_folder_with_an_adapter_stands_for_its_base_with_it(tiny_path, tiny_adapter, tmp_path, ask):
    wanted = load_engine(tiny_path, adapter=tiny_adapter, device="cpu").generate([ask()])[0][0].text
    assert load_engine(tiny_adapter, device="cpu").generate([ask()])[0][0].text == wanted, "the base as PEFT names it"
    own = shutil.copytree(tiny_adapter, tmp_path / "own")
    config = json.loads((own / "adapter_config.json").read_text())
    for base, message in (("/no/such/model", "does not exist"), (None, "does not tell its base model")):
        (own / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        with pytest.raises(InputError, match=message):
            load_engine(str(own))
    (own / "policy.json").write_text(json.dumps({"training": {"run": {"model": tiny_path}}}))
    assert load_engine(str(own), device="cpu").generate([ask()])[0][0].text == wanted, "the base as the policy's card names it"
    (own / "policy.json").write_text("[]")
    with pytest.raises(InputError, match="cannot read whose adapter"):
        load_engine(str(own))
    (own / "vlrm.json").write_text(json.dumps({"scorer": "vlrm.prm.gm_prm:GMPRM", "base": tiny_path}))
    assert load_engine(str(own), device="cpu").generate([ask()])[0][0].text == wanted, "the base as a scorer's card names it"


def test_no_requests(tiny_engine):
    assert tiny_engine.generate([]) == [] and tiny_engine.choice_logprobs([], ["a", "b"]) == []


def test_images_must_match_their_parts(tiny_engine, ask, pictures):
    from vlrm.serving import Request

    with pytest.raises(InputError, match="1 image parts but the request has 2"):
        tiny_engine.generate([Request(ask().messages, pictures[:2])])
    with pytest.raises(InputError, match="does not exist"):
        tiny_engine.generate([Request(ask().messages, ["/no/such/picture.png"])])


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("transformers:/no/such/model", {}, "does not exist"),
        ("onnx:model", {}, "unknown engine 'onnx'"),
        ("no-such-model", {}, "does not exist"),
        ("", {}, "named by a string"),
        ("TINY", {"adapter": "/no/adapter"}, "adapter_config.json"),
        ("TINY", {"dtype": "float99"}, "dtype must be"),
        ("vllm:/no/such/model", {}, "does not exist"),
    ],
)
def test_bad_specifications_say_what_to_change(tiny_path, spec, options, message):
    with pytest.raises(InputError, match=message) as caught:
        load_engine(spec.replace("TINY", tiny_path), **options)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        load_engine(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot load"):
        load_engine(str(tmp_path))
