"""The reward server behind a real uvicorn: what it answers, what it refuses and how, batches, deadlines, retries, ending."""

from __future__ import annotations

import base64
import io
import json
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from served import TOKEN, Stub, served, value_of, wait_until

from vlrm.serving.wire import digest, plain, score_from_wire, shares
from vlrm.types import Problem, Sample, Score, Usage

pytest.importorskip("prometheus_client")


@pytest.fixture(scope="module")
def shared():
    """A server that no test holds up."""
    with served(body=200_000, image_pixels=10_000, images=2, solutions=8, text=500) as it:
        yield it


def client(it, **headers):
    return httpx.Client(base_url=it.url, headers={"authorization": f"Bearer {TOKEN}", **headers}, timeout=30)


def post(it, body, path="/v1/score", **headers):
    with client(it, **headers) as http:
        return http.post(path, json=body)


def ask(*solutions, **more):
    return {"question": "How many?", "solutions": list(solutions) or ["Answer: 1"], **more}


def message(response) -> str:
    text = response.json()["error"]["message"]
    assert "\n" not in text and len(text) < 400 and response.json()["request_id"] == response.headers["x-request-id"]
    return text


def png(image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


# What it answers


def test_scores_come_in_order_and_whole(shared, pictures):
    answer = post(shared, ask("a", "b", "nothing", "nan", images=[png(pictures[0])], answer="7", id="p1")).json()
    expected = [value_of(Sample(Problem("p1", "How many?", [pictures[0]], "7"), text)) for text in ("a", "b")]
    scores = answer["scores"]
    assert [score["value"] for score in scores] == [*expected, None, None], "pictures and gold answer reached the scorer"
    assert scores[2]["error"] == "no steps" and "nan" in scores[3]["error"]
    assert [score["digest"] for score in scores] == [digest(text) for text in ("a", "b", "nothing", "nan")]
    first = score_from_wire(scores[0])
    assert first.verdicts[0].analysis == "looks fine" and first.correction == "Step 1: better" and first.details["odd"] == [1, None]
    assert sum(score["usage"]["prompt_tokens"] for score in scores) == 40


def test_critiques_say_what_the_scorer_says_of_every_step(shared):
    [one] = post(shared, ask("a"), "/v1/critique").json()["critiques"]
    assert one["steps"][0]["image"] is True and one["steps"][0]["logic"] is False and one["correction"] == "Step 1: better"
    assert one["text"] == "of a"


def test_a_scorer_without_critiques_says_so():
    class Plain(Stub):
        def score(self, sample):
            return Score(0.5)

    with served(Plain()) as it:
        refused = post(it, ask("a"), "/v1/critique")
        assert refused.status_code == 404 and "judges no steps; ask /v1/score" in message(refused)


def test_search_needs_a_policy(shared):
    refused = post(shared, {"question": "q"}, "/v1/search")
    assert refused.status_code == 404 and "--policy" in message(refused)
    with served(search=lambda problems: [{"answer": problem.question, "n": len(problems)} for problem in problems]) as it:
        assert post(it, {"question": "2 + 2?"}, "/v1/search").json()["result"]["answer"] == "2 + 2?"


def test_the_open_pages(shared):
    with client(shared) as http:
        assert http.get("/health").json() == {"status": "ok"} and http.get("/ready").json() == {"status": "ready"}
        told = http.get("/v1/scorer").json()
        assert told["name"] == "scorer" and told["limits"]["solutions"] == 8 and told["search"] is False
        page = http.get("/openapi.json").json()
        assert {"/v1/score", "/v1/critique", "/v1/search", "/metrics"} <= set(page["paths"]) and page["security"] == [{"token": []}]
        schema = page["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(schema["required"]) == {"question", "solutions"} and schema["additionalProperties"] is False


def test_metrics_count_what_happened():
    with served() as it:
        post(it, ask("a", "b", "nothing"))
        post(it, {"question": "q"})
        with client(it) as http:
            page = http.get("/metrics").text
        for line in (
            'vlrm_requests_total{route="/v1/score",status="200"} 1.0',
            'vlrm_requests_total{route="/v1/score",status="422"} 1.0',
            "vlrm_scores_total 2.0",
            'vlrm_scores_none_total{reason="scorer"} 1.0',
            'vlrm_batch_size_sum{kind="score"} 3.0',
            'vlrm_scorer_tokens_total{kind="prompt"} 30.0',
            "vlrm_waiting 0.0",
        ):
            assert line in page
        assert "process_resident_memory_bytes" in page


# What it refuses


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/openapi.json", "/v1/score", "/v1/scorer", "/nothing", "/docs"])
@pytest.mark.parametrize("header", [{}, {"authorization": "Bearer wrong"}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"}])
def test_every_route_wants_the_token(shared, path, header):
    answer = httpx.get(shared.url + path, headers=header)
    assert answer.status_code == 401 and "Authorization: Bearer" in message(answer) and answer.headers["www-authenticate"] == "Bearer"


def test_the_token_is_asked_before_the_body_is_read(shared):
    with socket.create_connection(("127.0.0.1", shared.port)) as raw:
        raw.sendall(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n{")
        assert raw.recv(100).startswith(b"HTTP/1.1 401")


def test_health_may_be_open():
    with served(open_health=True) as it:
        assert httpx.get(it.url + "/health").status_code == httpx.get(it.url + "/ready").status_code == 200
        assert httpx.get(it.url + "/metrics").status_code == 401


@pytest.mark.parametrize(("body", "words"), [
    ({"question": "q"}, "solutions: Field required"),
    (ask(imges=[]), "imges: Extra inputs are not permitted; there are question, images"),
    ({"question": "q", "solutions": [1]}, "solutions[0]: Input should be a valid string"),
    ({"question": "q", "solutions": []}, "solutions: List should have at least 1 item"),
    ({"question": " ", "solutions": ["a"]}, "question must be a non-empty string"),
    ({"question": 3, "solutions": ["a"]}, "question: Input should be a valid string"),
    (ask(answer=7), "answer: Input should be a valid string"),
    (ask(*"abcdefghi"), "solutions: 9 are more than the limit of 8"),
    (ask("x" * 501), "solutions[0]: 501 characters are more than the limit of 500"),
    (ask(images=["", "", ""]), "images: 3 pictures are more than the limit of 2"),
    ([], "the body: Input should be an object"),
])  # fmt: skip
def test_a_malformed_request_is_told_what_to_change(shared, body, words):
    refused = post(shared, body)
    assert refused.status_code == 422 and words in message(refused)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"question": "\\ud800", "solutions": ["a"]}', b"[" * 100_000, b"NaN", b"1e999"])
def test_broken_json_is_refused(shared, body):
    with client(shared) as http:
        refused = http.post("/v1/score", content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 422 and message(refused).startswith("the body")


def test_headers_are_checked(shared):
    def status(content=b"{}", **headers):
        with client(shared) as http:
            answer = http.post("/v1/score", content=content, headers={"content-type": "application/json", **headers})
            return answer.status_code, message(answer)

    assert status(**{"content-type": "text/plain"})[0] == 415
    assert status(**{"content-encoding": "gzip"})[0] == 415
    assert status(**{"x-request-id": "a b"}) == (400, "X-Request-ID must be 1 to 64 letters, digits, dots, dashes or underscores")
    assert all(status(**{"x-timeout": value})[0] == 400 for value in ("0", "-1", "nan", "inf", "soon", "1e3", "0.0"))
    with client(shared) as http:
        assert http.get("/v1/score").status_code == 405
        answer = http.get("/v1/nothing")
        assert answer.status_code == 404 and "there are /health" in message(answer)


def test_a_large_body_is_refused_before_it_is_parsed(shared):
    refused = post(shared, ask(images=["A" * 300_000]))
    assert refused.status_code == 413 and "200,000 bytes" in message(refused)

    def pieces():  # no Content-Length
        for _ in range(40):
            yield b" " * 10_000

    with client(shared) as http:
        refused = http.post("/v1/score", content=pieces(), headers={"content-type": "application/json"})
    assert refused.status_code == 413


def test_a_body_that_does_not_arrive():
    with served(read_seconds=0.2) as it, socket.create_connection(("127.0.0.1", it.port)) as raw:
        head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n"
        raw.sendall(f"{head}Content-Length: 50\r\n\r\n{{".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 408")


# What the scorer does


def test_one_bad_sample_does_not_spoil_the_batch_of_others():
    stub = Stub()
    with served(stub) as it:
        stub.free.clear()
        bodies = [ask("first"), ask("good 1", "good 2"), ask("good 3", "InputError"), ask("InputError"), ask("crash", "good 4")]
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(post, it, bodies[0])
            assert stub.begun.wait(30)
            others = [pool.submit(post, it, body) for body in bodies[1:]]
            wait_until(lambda: it.waiting == 7)
            stub.free.set()
            answers = [future.result() for future in [first, *others]]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 422, 200]
        assert "shorten it" in message(answers[3])
        values = [[score["value"] is not None for score in answer.json()["scores"]] for answer in answers if answer.status_code == 200]
        assert values == [[True], [True, True], [True, False], [False, True]]
        assert "the scorer failed: ZeroDivisionError" in answers[4].json()["scores"][0]["error"]
        assert max(stub.calls) == 7, "all that waited went in one batch"


@pytest.mark.parametrize("text", ["EngineError", "short"])
def test_an_engine_that_fails_is_asked_again_later(text):
    with served() as it:
        answer = post(it, ask(text), **{"x-request-id": "one"})
        assert answer.status_code == 503 and answer.headers["retry-after"] and message(answer)
        post(it, ask(text), **{"x-request-id": "one"})
        assert it.scorer.calls == [1, 1], "a failure is not remembered"


def test_requests_of_many_clients_share_batches_and_get_their_own_scores():
    stub = Stub()
    with served(stub, batch=16) as it:
        stub.free.clear()
        with ThreadPoolExecutor(40) as pool:
            first = pool.submit(post, it, ask("first"))
            assert stub.begun.wait(30)
            futures = [pool.submit(post, it, {**ask(f"s{i}", f"t{i}"), "question": f"q{i}"}) for i in range(24)]
            wait_until(lambda: it.waiting == 48)
            stub.free.set()
            answers = [future.result().json() for future in futures]
            first.result()
        for i, answer in enumerate(answers):
            expected = [value_of(Sample(Problem("x", f"q{i}"), f"{kind}{i}")) for kind in "st"]
            assert [score["value"] for score in answer["scores"]] == expected
        assert stub.calls == [1, 16, 16, 16] and {score["batch"] for answer in answers for score in answer["scores"]} == {1, 2, 3}


def test_an_idle_scorer_waits_a_little_for_company():
    with served(wait=2.0, batch=4) as it:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda i: post(it, ask(str(i))), range(3)))
        assert it.scorer.calls == [3]
        started = time.time()
        post(it, ask("a", "b", "c", "d"))
        assert time.time() - started < 2.0, "a full batch does not wait"


# The queue


def test_a_full_queue_refuses_with_a_time():
    stub = Stub()
    with served(stub, waiting=4, solutions=4, batch=1) as it:
        stub.free.clear()
        with ThreadPoolExecutor(8) as pool:
            first = pool.submit(post, it, ask("first"))
            assert stub.begun.wait(30)
            second = pool.submit(post, it, ask("b", "c", "d"))
            wait_until(lambda: it.waiting == 3)
            refused = post(it, ask("e", "f"))
            assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1 and "3 of 4 places" in message(refused)
            third = pool.submit(post, it, ask("g"))
            wait_until(lambda: it.waiting == 4)
            stub.free.set()
            assert [future.result().status_code for future in (first, second, third)] == [200] * 3
        assert it.metric("vlrm_full_total") == 1 and it.waiting == 0


def test_pictures_of_open_requests_have_a_limit(pictures):
    stub = Stub()
    with served(stub, waiting_pixels=20_000, image_pixels=10_000) as it:
        stub.free.clear()
        with ThreadPoolExecutor(4) as pool:
            held = [pool.submit(post, it, ask(str(i), images=[png(pictures[i])])) for i in range(2)]
            wait_until(lambda: it.metric("vlrm_waiting_pixels") == 2 * 96 * 96)
            assert post(it, ask("more", images=[png(pictures[2])])).status_code == 429
            stub.free.set()
            assert all(future.result().status_code == 200 for future in held)
        wait_until(lambda: it.metric("vlrm_waiting_pixels") == 0)
        assert post(it, ask("more", images=[png(pictures[2])])).status_code == 200 and it.waiting == 0


def test_after_the_deadline_there_is_no_value_and_the_place_is_free():
    stub = Stub()
    with served(stub, batch=1) as it:
        stub.free.clear()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(post, it, ask("first"))
            assert stub.begun.wait(30)
            [late] = post(it, ask("late"), **{"x-timeout": "0.3"}).json()["scores"]
            assert late["value"] is None and late["error"] == "not scored within 0.3 s" and it.waiting == 0
            stub.free.set()
            assert first.result().json()["scores"][0]["value"] is not None
        post(it, ask("last"))
        assert stub.seen == ["first", "last"], "what nobody waits for is not computed"
        assert it.metric("vlrm_scores_none_total", reason="deadline") == 1


def test_a_client_that_goes_away_frees_its_place():
    stub = Stub()
    with served(stub, batch=1) as it:
        stub.free.clear()
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(post, it, ask("first"))
            assert stub.begun.wait(30)
            with pytest.raises(httpx.ReadTimeout), client(it) as http:
                http.post("/v1/score", json=ask("gone 1", "gone 2"), timeout=2.0)
            wait_until(lambda: it.waiting == 0)
            stub.free.set()
            first.result()
        assert post(it, ask("last")).status_code == 200 and stub.seen == ["first", "last"] and it.metric("vlrm_left_total") == 2


# Retries


def test_a_retry_finds_what_was_made():
    with served() as it:
        one, two = (post(it, ask("a", "b"), **{"x-request-id": "same"}) for _ in range(2))
        assert one.json() == two.json() and one.headers["x-request-id"] == "same" and it.scorer.seen == ["a", "b"]
        critique = post(it, ask("a", "b"), "/v1/critique", **{"x-request-id": "same"})
        assert critique.status_code == 200 and it.scorer.seen == ["a", "b"], "its critique is known too"
        other = post(it, ask("c"), **{"x-request-id": "same"})
        assert other.status_code == 409 and "an id of its own" in message(other)
        post(it, ask("a", "b"))
        assert len(it.scorer.seen) == 4, "without an id nothing is remembered"


def test_a_retry_joins_what_is_being_worked_on():
    stub = Stub()
    with served(stub, batch=1) as it:
        stub.free.clear()
        with pytest.raises(httpx.ReadTimeout), client(it, **{"x-request-id": "one"}) as http:
            http.post("/v1/score", json=ask("a", "b"), timeout=2.0)  # "a" is begun, "b" waits
        wait_until(lambda: it.waiting == 0)
        with ThreadPoolExecutor(2) as pool:
            again = [pool.submit(post, it, ask("a", "b"), **{"x-request-id": "one"}) for _ in range(2)]
            wait_until(lambda: it.metric("vlrm_joined_total") == 2)
            stub.free.set()
            one, two = (future.result().json() for future in again)
        assert one == two and all(score["value"] is not None for score in one["scores"]) and sorted(stub.seen) == ["a", "b"]


def test_old_requests_are_forgotten():
    with served(remembered=4) as it:
        for i in range(6):
            post(it, ask("a", "b"), **{"x-request-id": f"r{i}"})
        assert it.metric("vlrm_remembered") == 4
        post(it, ask("a", "b"), **{"x-request-id": "r5"})
        post(it, ask("a", "b"), **{"x-request-id": "r0"})
        assert len(it.scorer.seen) == 14


# Ending

RUN = """
import sys, time
from vlrm.serving.reward_server import RewardServer
from vlrm.serving.run_server import log_to_stderr, leave, run_server
from vlrm.types import Score, Usage

class Slow:
    usage = Usage()
    def __call__(self, samples):
        print("begun", flush=True)
        time.sleep(float(sys.argv[1]))
        return [Score(0.25) for _ in samples]

log_to_stderr("info")
server = RewardServer(Slow(), tokens=["a-token-for-tests"])
run_server(server, port=0, drain_seconds=int(sys.argv[2]), started=lambda url: print(url, flush=True))
print("ended", flush=True)
leave()
"""


def start(*arguments):
    run = subprocess.Popen([sys.executable, "-c", RUN, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return run, run.stdout.readline().strip()


def closed(url):
    try:
        socket.create_connection(("127.0.0.1", int(url.rsplit(":", 1)[1])), timeout=5).close()
    except OSError:
        return True
    return False


def test_sigterm_finishes_what_was_taken_and_refuses_the_rest():
    run, url = start(4, 30)
    try:
        headers = {"authorization": f"Bearer {TOKEN}", "x-request-id": "the-last-one"}
        with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}) as kept:
            assert kept.get("/ready").status_code == 200
            taken = pool.submit(httpx.post, f"{url}/v1/score", json=ask("a"), headers=headers, timeout=30)
            assert run.stdout.readline() == "begun\n"
            run.send_signal(signal.SIGTERM)
            wait_until(lambda: closed(url))
            assert not taken.done(), "new work is refused while the old is finished"
            assert taken.result().json()["scores"][0]["value"] == 0.25
        assert run.wait(20) == 0
        log = run.stderr.read()
        assert run.stdout.read().strip() == "ended" and "the-last-one POST /v1/score 200" in log and TOKEN not in log
    finally:
        run.kill()


def test_a_scorer_that_hangs_does_not_keep_the_server_alive():
    run, url = start(1000, 1)
    try:
        with ThreadPoolExecutor(1) as pool:
            headers = {"authorization": f"Bearer {TOKEN}"}
            held = pool.submit(httpx.post, f"{url}/v1/score", json=ask("a"), headers=headers, timeout=60)
            assert run.stdout.readline() == "begun\n"
            run.send_signal(signal.SIGTERM)
            assert run.wait(20) == 0
            assert held.result().status_code == 503 and "has ended" in message(held.result())
    finally:
        run.kill()


def test_a_server_that_ends_is_not_ready_and_takes_nothing(shared):
    shared.server.draining = True
    try:
        assert post(shared, ask("a")).status_code == 503
        with client(shared) as http:
            assert http.get("/ready").status_code == 503 and http.get("/health").status_code == 200
    finally:
        shared.server.draining = False


def test_a_batch_that_takes_too_long_makes_it_not_ready():
    stub = Stub()
    with served(stub, stuck_seconds=0.1) as it, ThreadPoolExecutor(1) as pool:
        stub.free.clear()
        held = pool.submit(post, it, ask("a"))
        assert stub.begun.wait(30)
        time.sleep(0.2)
        with client(it) as http:
            assert http.get("/ready").status_code == 503
            stub.free.set()
            held.result()
            wait_until(lambda: http.get("/ready").status_code == 200)


def test_the_server_command_tells_what_is_wrong(tmp_path, monkeypatch, capsys):
    from vlrm.cli import main

    monkeypatch.delenv("VLRM_TOKEN", raising=False)
    monkeypatch.delenv("VLRM_DEBUG", raising=False)
    (tmp_path / "empty").write_text("")
    (tmp_path / "brief").write_text("short")
    for arguments, words in [
        ([], "VLRM_TOKEN holds no token; set it"),
        (["--token_file", str(tmp_path / "none")], "there is no token file"),
        (["--token_file", str(tmp_path / "empty")], "holds no token"),
        (["--token_file", str(tmp_path / "brief")], "at least 8 characters, one has 5"),
        (["--auth", "false", "--host", "0.0.0.0"], "loopback address"),
        (["--auth", "false", "--max_batch", "0"], "batch must be at least 1"),
        (["--auth", "false", "--max_solutions", "900"], "must not be above waiting"),
        (["--auth", "false", "--image_root", "/"], "not the whole disk"),
        (["--auth", "false"], "no such folder"),
    ]:
        assert main(["serve", "--scorer", str(tmp_path / "nothing"), *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1 and error.startswith("vlrm: error: ")


# Small parts


def test_shares_add_up():
    parts = shares(Usage(10, 7, 3, 6.0), 4)
    assert sum(parts, Usage()) == Usage(10, 7, 3, 6.0) and all(2 <= part.prompt_tokens <= 3 for part in parts)


def test_details_become_plain_json():
    import numpy as np

    value = {"a": (1, float("nan")), 2: np.float32(0.5), "c": {"u": Usage(1)}, "d": np.arange(2), "e": object, "f": True}
    made = json.loads(json.dumps(plain(value), allow_nan=False))
    assert (
        made["a"] == [1, None] and made["2"] == 0.5 and made["d"] == [0, 1] and made["c"]["u"]["prompt_tokens"] == 1 and made["f"] is True
    )


def test_log_lines_hold_no_line_breaks(shared, caplog):
    with caplog.at_level("INFO", "vlrm.serve"), client(shared) as http:
        http.get("/a%0d%0ab")
        wait_until(lambda: any("404" in record.getMessage() for record in caplog.records))  # written after the answer has gone out
    [line] = [record.getMessage() for record in caplog.records if "404" in record.getMessage()]
    assert "\\r\\n" in line and "\n" not in line
