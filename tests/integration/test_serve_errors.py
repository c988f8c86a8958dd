"""Wrong requests and overload: an OpenAI error object, and the replica lives."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from running_service import MODEL, eventually
from serve_checks import CHAT, PARIS, check_error

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(420)]


WRONG = {
    "broken JSON": (b'{"model": "x", ', 400, "JSON"),
    "no body": (b"", 400, "body"),
    "not an object": ([1, 2], 400, "body"),
    "unknown model": ({"model": "nope", "messages": PARIS}, 404, "nope"),
    "a prompt longer than the context": (
        {"model": MODEL, "messages": [{"role": "user", "content": "word " * 3000}]},
        400,
        "maximum context length is 2048",
    ),
    "max_tokens -1": ({"model": MODEL, "messages": PARIS, "max_tokens": -1}, 400, "max_tokens"),
    "max_tokens -1, streamed": (
        {"model": MODEL, "messages": PARIS, "max_tokens": -1, "stream": True},
        400,
        "max_tokens",
    ),
    "a wrong type": ({"model": MODEL, "messages": "hello"}, 400, "messages"),
    "a temperature below 0": (
        {"model": MODEL, "messages": PARIS, "temperature": -3},
        400,
        "temperature",
    ),
    "invalid UTF-8": (
        b'{"model": "' + MODEL.encode() + b'", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        400,
        "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_request_gets_an_openai_error_and_the_replica_lives(service, case):
    body, expected, message = WRONG[case]
    pids = service.replica_pids()
    status, headers, answer = service.request("POST", CHAT, body)
    assert status == expected
    assert headers["content-type"].startswith("application/json")
    assert check_error(answer, message)["type"] == "invalid_request_error"
    assert service.replica_pids() == pids
    assert service.chat("Hi", max_tokens=2)["usage"]["completion_tokens"] == 2


def test_a_route_that_is_not_there(service):
    for method, path, expected in (("GET", "/v1/nothing", 404), ("GET", CHAT, 405)):
        status, _, answer = service.request(method, path)
        assert status == expected
        check_error(answer)


def test_overload_is_told_as_such(service, client):
    pids = service.replica_pids()
    service.put(service.edited(max_ongoing_requests=2, max_queued_requests=2))

    def burst():
        body = {"model": MODEL, "messages": PARIS, "max_tokens": 60, "ignore_eos": True}
        with ThreadPoolExecutor(12) as pool:
            return list(pool.map(lambda _: service.request("POST", CHAT, body), range(12)))

    def shed():
        answers = burst()
        return answers if any(status == 503 for status, *_ in answers) else None

    answers = eventually(shed, 40, "requests beyond the queue are refused")
    assert {status for status, *_ in answers} == {200, 503}
    for status, headers, body in answers:
        if status == 503:
            assert int(headers["retry-after"]) == 2
            error = check_error(body, "overloaded")
            assert (error["type"], error["code"]) == ("server_error", "overloaded")
    service.put(service.config)

    def all_answered():
        return all(status == 200 for status, *_ in burst())

    eventually(all_answered, 30, "the queue is long again")
    assert service.replica_pids() == pids
