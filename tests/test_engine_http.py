"""HTTPEngine: against a real `vllm serve`, and against a small server in this file that misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vlrm.serving import Request, load_engine
from vlrm.serving.http_client import Pools, retry_after
from vlrm.types import EngineError, InputError

HELLO = Request([{"role": "user", "content": "hello"}], max_tokens=5)


class Fake:
    """A server whose answers are taken from `replies` first (status, body, headers, seconds to wait), then are plain echoes."""

    def __init__(self):
        self.replies, self.seen, self.busy, self.most, self.delay = [], [], 0, 0, 0.0
        self.models = [{"id": "echo", "owned_by": "somebody"}]
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def engine(self, **options):
        options = {"backoff": 0.001, "retries": 3} | options
        return load_engine(self.url, **options)

    def _handler(fake):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                self.send(200, {"data": fake.models})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with fake.lock:
                    fake.seen.append((self.path, body, self.headers))
                    fake.busy += 1
                    fake.most = max(fake.most, fake.busy)
                    status, answer, headers, wait = fake.replies.pop(0) if fake.replies else (200, echo(body), {}, fake.delay)
                time.sleep(wait)
                with fake.lock:
                    fake.busy -= 1
                self.send(status, answer, headers)

            def send(self, status, answer, headers=None):
                data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), **(headers or {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words):
                pass

        return Handler


def echo(body):
    said = body["messages"][-1]["content"]
    top = [{"token": " Cor", "logprob": -0.5}, {"token": " Correct", "logprob": -1.0}, {"token": " Inc", "logprob": -2.0}]
    content = [{"token": "é"[:1], "bytes": list("é".encode()), "logprob": -0.1, "top_logprobs": top}]
    choice = {"message": {"content": f"é {said}"}, "finish_reason": "stop", "logprobs": {"content": content}}
    count = body.get("n", 1)
    return {"choices": [choice] * count, "usage": {"prompt_tokens": 3, "completion_tokens": 2 * count}}


@pytest.fixture
def fake():
    server = Fake()
    yield server
    server.server.shutdown()
    server.server.server_close()


def test_plain_chat(fake):
    engine = fake.engine()
    [[completion]] = engine.generate([HELLO])
    assert completion.text == "é hello" and completion.finish_reason == "stop" and completion.prompt_tokens == 3
    assert engine.usage.prompt_tokens == 3 and engine.usage.completion_tokens == 2 and engine.usage.calls == 1
    _, body, _ = fake.seen[0]
    assert body["model"] == "echo" and body["max_tokens"] == 5
    assert not {"top_k", "return_token_ids", "logprob_token_ids"} & set(body), "vLLM's own options go to vLLM only"


def test_pools_lend_twenty_places_and_no_client_more_than_eight():
    held: Counter[object] = Counter()
    most, most_of_one = [], []

    async def use(pools):
        with contextlib.suppress(ValueError):
            async with pools.one() as client:
                held[client] += 1
                most.append(held.total())
                most_of_one.append(max(held.values()))
                await asyncio.sleep(0)
                held[client] -= 1
                raise ValueError("a place comes back from a request that fails, too")

    async def run():
        pools = Pools(20, {})
        await asyncio.gather(*[use(pools) for _ in range(100)])
        await pools.close()

    asyncio.run(run())
    assert len(most) == 100 and max(most) == 20 and max(most_of_one) == 8 and len(held) == 3


def test_order_and_concurrency(fake):
    fake.delay = 0.02
    engine = fake.engine(concurrency=4)
    requests = [Request([{"role": "user", "content": str(i)}]) for i in range(24)]
    assert [group[0].text for group in engine.generate(requests)] == [f"é {i}" for i in range(24)]
    assert 2 <= fake.most <= 4


def test_several_servers_share_the_work_and_stand_in_for_each_other(fake):
    other = Fake()
    engine = load_engine(f"{fake.url}, {other.url}", backoff=0.001)
    engine.generate([HELLO] * 10)
    assert len(fake.seen) == 5 and len(other.seen) == 5
    other.server.shutdown()
    other.server.server_close()
    assert len(engine.generate([HELLO] * 4)) == 4 and len(fake.seen) == 9


@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_failures_are_tried_again(fake, status):
    fake.replies = [(status, "busy", {}, 0)] * 2
    assert fake.engine().generate([HELLO])[0][0].text == "é hello"
    assert len(fake.seen) == 3


def test_retry_after_is_respected(fake):
    fake.replies = [(429, "slow down", {"retry-after": "0.3"}, 0)]
    started = time.perf_counter()
    fake.engine().generate([HELLO])
    assert 0.3 <= time.perf_counter() - started < 3


def test_retry_after_as_a_date_and_as_nonsense():
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2115 07:28:00 GMT") == 60
    assert retry_after("soon") == retry_after(None) == 0


def test_lasting_500_is_one_clear_line(fake):
    fake.replies = [(500, "x" * 1000 + "\nline", {}, 0)] * 9
    with pytest.raises(EngineError, match=r"chat/completions answers 500: x{200} \(tried 4 times\)$") as caught:
        fake.engine().generate([HELLO])
    assert "\n" not in str(caught.value) and len(fake.seen) == 4


@pytest.mark.parametrize(("status", "kind"), [(400, InputError), (404, InputError), (401, InputError), (418, EngineError)])
def test_refusals_are_not_tried_again(fake, status, kind):
    fake.replies = [(status, {"error": {"message": "max_tokens is\ntoo large"}}, {}, 0)]
    with pytest.raises(kind, match=rf"answers {status}: max_tokens is too large") as caught:
        fake.engine().generate([HELLO])
    assert len(fake.seen) == 1
    assert ("VLRM_API_KEY" in str(caught.value)) == (status == 401)


def test_server_down_says_where_to_look():
    with pytest.raises(EngineError, match=r"http://127\.0\.0\.1:9/v1/models cannot be reached.*is the server running"):
        load_engine("http://127.0.0.1:9/v1", retries=1, backoff=0.001).generate([HELLO])


def test_slow_server_times_out(fake):
    fake.replies = [(200, "{}", {}, 0.5)] * 2
    with pytest.raises(EngineError, match=r"no answer within 0\.1 s"):
        fake.engine(timeout=0.1, retries=1).generate([HELLO])


@pytest.mark.parametrize("answer", ["<html>hi</html>", "[1, 2]", '{"choices": []}', '{"choices": [{"text": "a"}]}', "null"])
def test_garbage_is_an_error(fake, answer):
    fake.replies = [(200, answer, {}, 0)]
    with pytest.raises(EngineError, match=r"not JSON|not a chat completion"):
        fake.engine().generate([HELLO])


def test_a_failure_stops_the_rest(fake):
    fake.delay = 0.05
    fake.replies = [(400, "no", {}, 0)]
    with pytest.raises(InputError):
        fake.engine(concurrency=1).generate([HELLO] * 50)
    time.sleep(0.2)
    assert len(fake.seen) < 5


def test_model_names(fake):
    fake.models = [{"id": "a"}, {"id": "b"}]
    with pytest.raises(InputError, match=r"serves a, b; name one: .*#MODEL"):
        fake.engine().generate([HELLO])
    with pytest.raises(InputError, match="does not serve 'c', only a, b"):
        load_engine(fake.url + "#c").generate([HELLO])
    load_engine(fake.url + "#b").generate([HELLO])
    load_engine(fake.url, adapter="a").generate([HELLO])
    assert [body["model"] for _, body, _ in fake.seen] == ["b", "a"]


def test_api_key_is_sent(fake, monkeypatch):
    fake.engine(api_key="one").generate([HELLO])
    monkeypatch.setenv("VLRM_API_KEY", "two")
    fake.engine().generate([HELLO])
    assert [headers["authorization"] for _, _, headers in fake.seen] == ["Bearer one", "Bearer two"]


def test_inside_a_running_event_loop(fake):
    async def notebook():
        return fake.engine().generate([HELLO])

    assert asyncio.run(notebook())[0][0].text == "é hello"


def test_images_travel_as_data_urls(fake, ask):
    fake.engine().generate([ask("look", images=(0, 1), prefix="Step")])
    messages = fake.seen[0][1]["messages"]
    kinds = [part["type"] for part in messages[0]["content"]]
    assert kinds == ["image_url", "image_url", "text"]
    assert messages[0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert messages[1] == {"role": "assistant", "content": "Step"}


def test_words_by_text_where_ids_are_unknown(fake):
    engine = fake.engine()
    assert engine.choice_logprobs([HELLO], [" Correct", " Incorrect"]) == [{" Correct": -1.0, " Incorrect": -2.0}]
    assert engine.choice_logprobs([HELLO], [" Correct", "zebra"])[0]["zebra"] == -2.0, "absent: the smallest of those returned"
    with pytest.raises(InputError, match="do not tell"):
        engine.choice_logprobs([HELLO], [" Corner", " Corn"])
    tracked = engine.generate([Request(HELLO.messages, track=(" Correct",))])[0][0].tokens
    assert [(token.start, token.end, token.tracked) for token in tracked] == [(0, 1, {" Correct": -1.0})]


def test_no_logprobs_from_the_server(fake):
    bare = {"choices": [{"message": {"content": "x"}}], "usage": {}}
    fake.replies = [(200, bare, {}, 0)] * 2
    with pytest.raises(EngineError, match="no log-probabilities"):
        fake.engine().generate([Request(HELLO.messages, logprobs=True)])
    with pytest.raises(EngineError, match="no log-probabilities"):
        fake.engine().choice_logprobs([HELLO], ["a", "b"])


def test_too_few_completions(fake):
    fake.replies = [(200, echo({"messages": [{"content": "x"}], "n": 1}), {}, 0)]
    with pytest.raises(EngineError, match="1 completions instead of n=3"):
        fake.engine().generate([Request(HELLO.messages, n=3, temperature=1.0)])


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"retries": -1}])
def test_bad_options(options):
    with pytest.raises(InputError, match="at least"):
        load_engine("http://127.0.0.1:9/v1", **options)


@pytest.fixture(scope="module")
def engine(vllm_server):
    return load_engine(vllm_server)


def test_vllm_server_agrees_with_transformers(engine, tiny_engine, mixed_requests, check_agreement):
    check_agreement(tiny_engine, engine, mixed_requests)
    assert engine.is_vllm and engine.model == "tiny", "the adapter's name is not taken for a second model"


def test_vllm_server_with_an_adapter(vllm_server, tiny_path, tiny_adapter, mixed_requests, check_agreement):
    tuned = load_engine(tiny_path, adapter=tiny_adapter, device="cpu")
    check_agreement(tuned, load_engine(vllm_server, adapter="tiny-lora"), mixed_requests[:6])


def test_vllm_server_samples_by_seed(engine, ask):
    def texts(**options):
        return [completion.text for completion in engine.generate([ask(temperature=1.0, max_tokens=12, **options)])[0]]

    first = texts(n=4, seed=5)
    assert len(set(first)) == 4 and texts(n=4, seed=5) == first and texts(n=2, seed=5) == first[:2]
    assert not set(texts(n=4, seed=6)) & set(first), "neighbouring seeds share no samples"


def test_vllm_server_stops(engine, ask):
    whole = engine.generate([ask(temperature=1.0, seed=1, max_tokens=40, logprobs=True)])[0][0]
    stop = whole.text[5:7]
    cut = engine.generate([ask(temperature=1.0, seed=1, max_tokens=40, stop=(stop,), logprobs=True)])[0][0]
    assert cut.text == whole.text[: whole.text.index(stop)] and cut.finish_reason == "stop"
    assert cut.stopped_at == stop and whole.stopped_at == ""
    assert cut.tokens[-1].end == len(cut.text)


def test_vllm_server_counts_tokens(vllm_server, ask):
    engine = load_engine(vllm_server)
    [group] = engine.generate([ask(n=3, temperature=1.0, seed=0, max_tokens=7)])
    assert engine.usage.completion_tokens == sum(completion.completion_tokens for completion in group) == 21
    assert engine.usage.prompt_tokens == group[0].prompt_tokens > 36 and engine.usage.calls == 3


def test_vllm_server_refuses_in_its_own_words(engine, ask):
    with pytest.raises(InputError, match="answers 400"):
        engine.generate([ask(max_tokens=100_000)])
    with pytest.raises(InputError, match="answers 400"):
        engine.generate([ask(images=(0,) * 5)])
    with pytest.raises(InputError, match=r"' Correct one'.*' Correct two'.*same token"):
        engine.choice_logprobs([ask(prefix="Verdict:")], [" Correct one", " Correct two"])


def test_a_chat_is_read_by_one_question_a_place(fake):
    turns = [{"role": role, "content": text} for role, text in (("user", "a"), ("assistant", " Correct"), ("user", "b"))]
    engine = fake.engine()
    [[first, second]] = engine.turn_logprobs([Request(turns)], [" Correct", " Inc"])
    assert first.logprobs == {" Correct": -1.0, " Inc": -2.0} and second.tokens == 3
    assert sorted(len(body["messages"]) for _, body, _ in fake.seen) == [1, 3] and engine.usage.calls == 2


def test_why_a_completion_stopped_is_told_where_the_server_tells_it(fake):
    assert fake.engine().generate([HELLO])[0][0].stopped_at is None


def test_places_of_a_chat_at_a_real_server(vllm_server, tiny_engine, pictures):
    from vlrm.prm.verdicts import VerdictStyle

    engine = load_engine(f"{vllm_server}#tiny")
    chats = [VerdictStyle(system="Judge.").request("3 + 4?", pictures[:1], [f"bar {k}" for k in range(n)]) for n in (1, 3)]
    for ours, theirs in zip(engine.turn_logprobs(chats, ("+", "-")), tiny_engine.turn_logprobs(chats, ("+", "-")), strict=True):
        assert [turn.tokens for turn in ours] == [turn.tokens for turn in theirs]
        for one, other in zip(ours, theirs, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=0.02)


def test_a_servers_class_values_are_a_scalar_scorers(fake):
    """vLLM's /classify: the whole chat, no generation prompt, the head's number as it is."""
    from vlrm import Problem, Sample, load_scorer

    scorer = load_scorer(fake.url, method="scalar", offset=1.0, scale=2.0, engine_options={"backoff": 0.001, "concurrency": 1})
    fake.replies = [(200, {"data": [{"probs": [v]}], "usage": {"prompt_tokens": 7}}, {}, 0) for v in (0.5, -1.5)]
    problem = Problem("a", "Color?")
    scores = scorer([Sample(problem, "red"), Sample(problem, "blue"), Sample(problem, " ")])
    assert [score.value for score in scores] == [2.0, -2.0, None] and scorer.usage.prompt_tokens == 14 and scorer.usage.calls == 2
    path, body, _ = fake.seen[0]
    assert path == "/classify" and body["add_generation_prompt"] is False and body["use_activation"] is False and body["model"] == "echo"
    assert body["messages"] == [{"role": "user", "content": "Color?"}, {"role": "assistant", "content": "red"}]
    fake.replies = [(200, {"data": []}, {}, 0)]
    with pytest.raises(EngineError, match="runner pooling"):
        scorer([Sample(problem, "red")])
