"""The reward server's client: one Scorer over several replicas that may be busy, slow, wrong, or dead for a while."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from served import TOKEN, Served, Stub, served, value_of, wait_until

from vlrm import Completion, EngineError, InputError, Problem, Sample, Usage, best_of_n, load_scorer
from vlrm.rm.remote import RemoteScorer, grouped, replica_urls
from vlrm.serving.wire import digest

pytest.importorskip("prometheus_client")


def samples(count=6, images=(), each=2):
    problems = [Problem(f"p{i}", f"question {i}?", list(images), str(i), {"scene": object()}) for i in range(count)]
    return [Sample(problem, f"Answer: {k}") for problem in problems for k in range(each)]


def remote(*servers, **options):
    options = {"token": TOKEN, "backoff": 0.01, "timeout": 20.0, "connect": 2.0} | options
    return RemoteScorer([getattr(server, "url", server) for server in servers], **options)


def test_it_is_the_same_scorer(pictures):
    batch = samples(images=pictures[:2])
    random.Random(0).shuffle(batch)
    with served() as it:
        scorer = load_scorer(f"reward+{it.url}", token=TOKEN, per_request=3)
        scores = scorer(batch)
        assert [score.value for score in scores] == [value_of(sample) for sample in batch]
        assert scores[0].verdicts[0].logic is False and scores[0].correction == "Step 1: better"
        assert scores[0].details["critique"].startswith("of ") and scores[0].error is None
        assert scorer.usage.prompt_tokens == 120 and scorer.usage.calls == 12 and scorer.usage.seconds > 0
        assert scorer.counts["samples"] == 12 and scorer.counts["unscored"] == 0 and scorer([]) == []
        assert it.metric("vlrm_requests_total", route="/v1/score", status="200") == 6, "a problem's solutions travel together"


def test_pictures_are_read_there_as_they_would_be_here(tmp_path, pictures):
    from vlrm.serving.images import open_image

    paths = [tmp_path / f"a.{kind}" for kind in ("png", "jpg", "tiff", "webp")]
    for path in paths:
        pictures[0].convert("RGB").save(path)
    sources = [*paths, str(paths[0]), paths[1].read_bytes(), pictures[1], pictures[2].convert("RGBA")]
    batch = [Sample(Problem(f"p{i}", "q", [source]), "a") for i, source in enumerate(sources)]
    expected = [value_of(Sample(Problem("x", "q", [open_image(source)]), "a")) for source in sources]
    with served() as it:
        assert [score.value for score in remote(it)(batch)] == expected
        with pytest.raises(InputError, match="does not exist"):
            remote(it)([Sample(Problem("p", "q", [tmp_path / "none.png"]), "a")])


def test_in_an_event_loop_and_from_many_threads():
    with served() as it:
        scorer = remote(it)

        async def both():
            return await asyncio.gather(scorer.score_async(samples(2)), scorer.score_async(samples(3)))

        assert [len(scores) for scores in asyncio.run(both())] == [4, 6]
        found = []
        threads = [threading.Thread(target=lambda: found.append(scorer(samples(2)))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(found) == 8 and all([s.value for s in scores] == [value_of(x) for x in samples(2)] for scores in found)
        scorer.close()
        assert len(scorer(samples(1))) == 2, "it opens again"


def test_replicas_share_the_work():
    slow = Stub()
    with served(slow, batch=1) as one, served() as two:
        slow.free.clear()
        scorer = remote(one, two, per_request=1)
        threading.Timer(1.0, slow.free.set).start()
        scores = scorer(samples(20, each=1))
        assert all(score.value is not None for score in scores)
        assert len(slow.seen) + len(two.scorer.seen) == 20 and slow.seen and two.scorer.seen


def test_a_busy_replica_is_left_alone():
    held = Stub()
    with served(held, waiting=1, solutions=1, batch=1) as one, served() as two:
        held.free.clear()
        scorer = remote(one, two, per_request=1)
        threading.Timer(2.0, held.free.set).start()
        assert all(score.value is not None for score in scorer(samples(10, each=1)))
        assert scorer.counts["busy"] >= 1 and scorer.counts["retries"] >= 1


def test_a_dead_replica_is_stood_in_for():
    with served() as two:
        one = Served()
        scorer = remote(one, two, per_request=1)
        scorer(samples(4))
        one.kill()
        assert all(score.value is not None for score in scorer(samples(10)))


def test_a_server_that_dies_and_comes_back():
    it = Served()
    scorer = remote(it)
    assert scorer(samples(1))[0].value is not None
    it.kill()
    back = []
    threading.Timer(1.0, lambda: back.append(Served(port=it.port))).start()
    scores = scorer(samples(3))
    assert [score.value for score in scores] == [value_of(sample) for sample in samples(3)] and scorer.counts["retries"] >= 1
    back[0].kill()


def test_a_server_that_stays_away_gives_none_and_a_reason():
    it = Served()
    scorer = remote(it, timeout=0.5)
    scorer(samples(1))
    it.kill()
    scores = scorer(samples(3))
    assert all(score.value is None and "cannot be reached" in score.error for score in scores)
    assert scorer.counts["unscored"] == 6 and scorer.counts["gave_up"] == 6


def test_what_the_server_does_not_score_is_none_with_its_words():
    with served(text=50) as it:
        scorer = remote(it)
        problem = Problem("p", "q")
        found = scorer([Sample(problem, text) for text in ("fine", "nothing", "nan", "crash")])
        assert found[0].value is not None and [score.value for score in found[1:]] == [None] * 3
        assert "no steps" in found[1].error and "ZeroDivisionError" in found[3].error
        [long] = scorer([Sample(problem, "x" * 60)])
        assert long.value is None and "answers 422: solutions[0]: 60 characters" in long.error and scorer.counts["refused"] == 1
        [away] = remote(it, timeout=0.4)([Sample(problem, "EngineError")])
        assert away.value is None and "answers 503: the engine is away" in away.error


def test_a_slow_score_is_none_after_the_time():
    stub = Stub()
    with served(stub) as it:
        scorer = remote(it, timeout=0.4)
        scorer.check()
        stub.free.clear()
        started = time.time()
        [score] = scorer(samples(1, each=1))
        assert score.value is None and "not scored within" in score.error and time.time() - started < 3


def test_a_try_that_takes_too_long_is_made_again_but_not_computed_again():
    stub = Stub()
    with served(stub) as it:
        scorer = remote(it, attempt=0.4)
        scorer.check()
        stub.free.clear()
        threading.Timer(1.5, stub.free.set).start()
        [score] = scorer(samples(1, each=1))
        assert score.value is not None and stub.seen == ["Answer: 0"] and scorer.counts["retries"] >= 1


def test_a_slow_replica_is_hedged_once():
    held = Stub()
    with served(held) as one, served() as two, served() as three:
        scorer = remote(one, two, three, hedge=0.3)
        scorer.check()
        held.free.clear()
        scores = [scorer(samples(1, each=1))[0] for _ in range(6)]
        assert all(score.value is not None for score in scores)
        asked = [server.metric("vlrm_requests_total", route="/v1/score", status="200") for server in (two, three)]
        assert 1 <= scorer.counts["hedged"] <= 6 and sum(asked) == 6, "the other replicas answered each request once"
        wait_until(lambda: one.waiting == 0)


class Liar:
    """A server whose /v1/score answers `change(answer)`, and /v1/scorer what `told` says."""

    def __init__(self, change=lambda answer: answer, fingerprint="scorer", status=200):
        liar = self
        self.asked = 0

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                limits = {"body": 10_000, "solutions": 8}
                told = {"name": "scorer", "fingerprint": fingerprint, "version": "1", "search": False, "max_steps": 7, "limits": limits}
                self.send(told if status == 200 else {"error": {"message": "no"}}, status)

            def do_POST(self):
                liar.asked += 1
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                usage = {"prompt_tokens": 1, "completion_tokens": 1, "calls": 1, "seconds": 0.0}
                blank = {"steps": [], "verdicts": [], "first_error": None, "correction": None, "details": {}, "error": None, "batch": 0}
                scores = [{"value": 0.5, **blank, "usage": usage, "digest": digest(text)} for text in body["solutions"]]
                self.send(change({"request_id": self.headers["x-request-id"], "scorer": "scorer", "scores": scores}), 200)

            def send(self, content, status):
                data = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words): ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


def turned(answer):
    return {**answer, "scores": answer["scores"][::-1]}


@pytest.mark.parametrize(("change", "words"), [
    (turned, "belongs to another request"),
    (lambda answer: {**answer, "request_id": "other"}, "belongs to another request"),
    (lambda answer: {**answer, "scores": answer["scores"][:1]}, "belongs to another request"),
    (lambda answer: {**answer, "scorer": "new"}, r"serves another scorer now \(new\) than scorer"),
    (lambda answer: {**answer, "scores": [{**score, "value": "high"} for score in answer["scores"]]}, "not one of a reward server"),
    (lambda answer: {**answer, "scores": [{**score, "value": True} for score in answer["scores"]]}, "not one of a reward server"),
    (lambda answer: [1], "not one of a reward server"),
])  # fmt: skip
def test_an_answer_that_is_not_the_one_asked_for_is_no_score(change, words):
    liar = Liar(change)
    scorer = remote(liar)
    scores = scorer(samples(1))
    assert [score.value for score in scores] == [None, None] and scorer.counts["mixed_up"] >= 2
    with pytest.raises(InputError, match=words):
        raise InputError(scores[0].error)
    liar.server.shutdown()


def test_a_plain_answer_is_believed():
    scorer = remote(Liar())
    assert [score.value for score in scorer(samples(1))] == [0.5, 0.5] and scorer.max_steps == 7
    big = Sample(Problem("p", "q" * 20_000), "a")
    [score] = scorer([big])
    assert score.value is None and "more than the server's limit of 10,000" in score.error


def test_first_contact_is_clear_about_what_is_wrong():
    with served(name="gm") as it, served(name="other") as other:
        with pytest.raises(InputError, match=r"answers 401; give token= or set VLRM_TOKEN"):
            remote(it, token="wrong-token")(samples(1))
        with pytest.raises(InputError, match=r"serves gm \(gm\), not 'vl'"):
            remote(it, expect="vl").check()
        with pytest.raises(InputError, match=r"must serve one scorer, but .*gm.*other"):
            remote(it, other).check()
        assert remote(it, expect="gm").check()["limits"]["solutions"] == 64
    with pytest.raises(InputError, match="no reward server"):
        remote(Liar(status=404)).check()
    with pytest.raises(EngineError, match=r"cannot be reached .* is `vlrm serve` running there"):
        remote("http://127.0.0.1:9", connect=0.2)(samples(1))


def test_the_token_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("VLRM_TOKEN", TOKEN)
    with served() as it:
        assert load_scorer(f"reward+{it.url}")(samples(1))[0].value is not None


def test_urls_and_settings():
    assert replica_urls("reward+http://a:1, b:2,reward+https://c/") == ["http://a:1", "http://b:2", "https://c"]
    for wrong in ("reward+a:1", "reward+http://", "reward+ftp://a", "reward+http://a b", "reward+http://a,http://a", []):
        with pytest.raises(InputError):
            replica_urls(wrong)
    for wrong in ({"timeout": 0}, {"hedge": -1}, {"concurrency": 0}, {"per_request": 0}):
        with pytest.raises(InputError, match="must be"):
            RemoteScorer("http://a", **wrong)
    with pytest.raises(InputError, match="unknown setting 'timeot'; did you mean 'timeout'"):
        load_scorer("reward+http://a", timeot=3)
    with pytest.raises(InputError, match="has its own engine"):
        load_scorer("reward+http://a", engine_options={"device": "cpu"})


def test_samples_of_one_problem_are_grouped():
    batch = samples(2, each=3)
    mixed = [batch[i] for i in (0, 3, 1, 4, 2, 5)]
    assert grouped(mixed, 2) == [[0, 2], [4], [1, 3], [5]] and grouped(mixed, 8) == [[0, 2, 4], [1, 3, 5]]


class Policy:
    """Writes a different solution each time."""

    name, usage = "policy", Usage()

    def generate(self, requests):
        return [[Completion(f"Step 1: look.\nAnswer: {k}", completion_tokens=5, prompt_tokens=3) for k in range(r.n)] for r in requests]


def test_search_takes_a_remote_scorer(pictures):
    problem = Problem("p", "Which row holds the red circle?", [pictures[0]])
    with served() as it:
        [result] = best_of_n([problem], Policy(), remote(it), n=3, seed=0)
        it.scorer.free.clear()
        [again] = best_of_n([problem], Policy(), remote(it, timeout=0.3), n=3, seed=0)
        it.scorer.free.set()
    expected = [value_of(Sample(problem, candidate.text)) for candidate in result.candidates]
    assert [candidate.value for candidate in result.candidates] == expected and result.chosen == expected.index(max(expected))
    assert result.cost.scorer.prompt_tokens == 30 and result.cost.scorer.calls == 3
    assert again.details["unscored"] == 3 and [candidate.value for candidate in again.candidates] == [None] * 3


def test_httpx_is_not_left_open():
    with served() as it:
        scorer = remote(it)
        scorer(samples(1))
        clients = scorer.client.pools.clients
        scorer.close()
        assert clients and all(isinstance(client, httpx.AsyncClient) and client.is_closed for client in clients)
