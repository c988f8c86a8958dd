"""From requests to rows: who asked, how it ended, what it cost; and never what was said."""

import asyncio
import hashlib
import json
from types import SimpleNamespace

import pytest

from policies.core.errors import ConfigError
from serve_app.engine.step_link import StepEvent
from serve_app.engine.tap import FinishedRequest
from serve_app.observers.metrics import MetricSet
from serve_app.request_log import open_requests
from serve_app.request_log.open_requests import Identity
from serve_app.request_log.reader import ReadCounts, read_rows
from serve_app.request_log.replica import ReplicaRequests
from serve_app.request_log.tenant import TenantRule
from serve_app.responses import EnergyMiddleware
from serve_app.settings import parse_energy

NAMES = {"application": "llm", "deployment": "d", "replica": "r", "model": "m"}
SECRET_TEXT = "the-prompt-nobody-may-read"
KEY = "sk-live-9f8e7d6c5b4a"
ENERGY = {
    "joules": 3.0,
    "idle_joules": 0.5,
    "prefill_joules": 1.0,
    "decode_joules": 2.0,
    "devices": {"cpu": 3.0},
    "source": "estimated",
    "method": "token_weighted",
    "coverage_ratio": 1.0,
}


@pytest.fixture
def replica(tmp_path, monkeypatch):
    """A replica's request log that waits 20 ms instead of 200 for the last words."""
    monkeypatch.setattr(open_requests, "SETTLE_S", 0.02)
    monkeypatch.setattr(open_requests, "SWEEP_S", 0.01)
    monkeypatch.setattr(open_requests, "ENGINE_WAIT_S", 0.3)
    return Replica(tmp_path)


class Replica:
    def __init__(self, folder, **settings):
        self.folder = folder
        self.asked = []
        block = {"request_log": {"folder": str(folder), **settings}}
        self.log = ReplicaRequests(parse_energy(block, "f"), Identity(**NAMES), self.energy_of)

    def energy_of(self, response):
        self.asked.append(response)
        return ENERGY

    def arrive(self, prefix="chatcmpl", request_id="1", headers=None, **request):
        request = SimpleNamespace(request_id=request_id, **request)
        call = self.log.arrive(request, SimpleNamespace(headers=headers or {}))
        return call.named(prefix, request)

    def finished(self, request_id, **changes):
        facts = {
            "outcome": "stop", "ttft_s": 0.2, "tpot_s": 0.01, "e2e_s": 0.5, "queue_s": 0.0,
            "prompt_tokens": 10, "output_tokens": 5, "cached_tokens": 0,
        }  # fmt: skip
        self.log.finished(FinishedRequest(request_id=request_id, **{**facts, **changes}))

    def aborted(self, *internal_ids):
        self.log.on_step(StepEvent(kind="f", time_s=0.0, shares=(), finished=internal_ids))

    async def rows(self, wait_s=0.1):
        await asyncio.sleep(wait_s)
        self.log.close()
        return list(read_rows(self.folder, ReadCounts()))

    def written(self):
        return b"".join(path.read_bytes() for path in self.folder.iterdir())


DONE = ['data: {"id":"chatcmpl-1"}\n\n', "data: [DONE]\n\n"]


async def test_an_answer_becomes_one_row_whoever_speaks_first(replica):
    for i, engine_first in enumerate((True, False)):
        with replica.log.follow(replica.arrive(request_id=f"{i}", user="ada")) as call:
            if engine_first:
                replica.finished(f"chatcmpl-{i}", cached_tokens=4)
            call.answered(DONE)
        if not engine_first:
            replica.finished(f"chatcmpl-{i}", cached_tokens=4)
    rows = await replica.rows()
    assert [r.response_id for r in rows] == ["chatcmpl-0", "chatcmpl-1"]
    for r in rows:
        assert (r.outcome, r.finish_reason, r.tenant, r.tenant_kind) == (
            "completed", "stop", "ada", "user",
        )  # fmt: skip
        assert (r.prompt_tokens, r.output_tokens, r.cached_tokens) == (10, 5, 4)
        assert (r.joules, r.device_joules, r.source) == (3.0, {"cpu": 3.0}, "estimated")
        assert (r.application, r.deployment, r.replica, r.model) == ("llm", "d", "r", "m")
        wait_s = (r.first_token - r.start).total_seconds()
        assert wait_s == pytest.approx(0.2, abs=2e-6)  # rows keep microseconds
        assert r.end >= r.start
    assert replica.asked == ["chatcmpl-0", "chatcmpl-1"]


async def test_several_prompts_and_samples_are_one_row_with_openais_token_counts(replica):
    with replica.log.follow(replica.arrive("cmpl")) as call:
        for prompt in (0, 1):
            for sample, cached in ((0, 0), (1, 8)):  # the second sample finds the first's prefix
                replica.finished(
                    f"cmpl-1-{prompt}", cached_tokens=cached, outcome=("stop", "length")[sample],
                    ttft_s=0.1 + prompt, output_tokens=2 + 4 * sample, tpot_s=0.01 + 0.01 * sample,
                )  # fmt: skip
        call.answered(SimpleNamespace(usage=object(), error=None))
    (r,) = await replica.rows()
    assert r.num_sequences == 4
    assert r.engine_request_ids == ("cmpl-1-0", "cmpl-1-1")
    assert (r.prompt_tokens, r.output_tokens, r.cached_tokens) == (20, 16, 0)
    assert r.ttft_s == 0.1
    assert r.tpot_s == pytest.approx((2 * 1 * 0.01 + 2 * 5 * 0.02) / 12)
    assert r.finish_reason == "length+stop"


async def test_a_client_that_leaves_has_its_row_when_the_engine_has_let_go(replica):
    with pytest.raises(asyncio.CancelledError), replica.log.follow(replica.arrive()):
        raise asyncio.CancelledError
    await asyncio.sleep(0.1)
    assert replica.asked == []  # asking would settle what the engine still works on
    replica.aborted("chatcmpl-1-0a1b2c3d", "somebody-else-0a1b2c3d")
    (r,) = await replica.rows()
    assert (r.outcome, r.finish_reason, r.output_tokens, r.joules) == ("aborted", None, None, 3.0)
    assert replica.asked == ["chatcmpl-1"]


async def test_an_abort_that_the_engine_never_hears_of_has_its_row_in_the_end(replica):
    with replica.log.follow(replica.arrive()):
        pass  # the client left before the engine had it
    (r,) = await replica.rows(wait_s=0.5)
    assert r.outcome == "aborted"


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (SimpleNamespace(error=SimpleNamespace(code=400), usage=None), "rejected"),
        (SimpleNamespace(error=SimpleNamespace(code=503), usage=None), "rejected"),
        (SimpleNamespace(error=SimpleNamespace(code=500), usage=None), "failed"),
        (['data: {"error": {"message": "boom"}}\n\n', "data: [DONE]\n\n"], "failed"),
        (['data: {"choices":[{"delta":{"content":"\\"error\\""}}]}\n\n', DONE[1]], "completed"),
    ],
)
async def test_error_answers_are_told_apart(replica, answer, outcome):
    with replica.log.follow(replica.arrive()) as call:
        call.answered(answer)
    (r,) = await replica.rows(wait_s=0.45)
    assert r.outcome == outcome


async def test_an_engine_that_dies_fails_its_requests(replica):
    with pytest.raises(RuntimeError), replica.log.follow(replica.arrive()):
        raise RuntimeError
    with replica.log.follow(replica.arrive(request_id="2")) as call:
        replica.finished("chatcmpl-2", outcome="error")
        call.completed()
    rows = await replica.rows()
    assert [r.outcome for r in rows] == ["failed", "failed"]


async def test_a_request_of_another_endpoint_has_its_row_and_a_late_word_has_none(replica):
    replica.finished("resp_5", output_tokens=1, tpot_s=None)
    replica.finished("jouleserve-warm-up")
    with replica.log.follow(replica.arrive()) as call:
        call.answered(DONE)
        replica.finished("chatcmpl-1")
    await asyncio.sleep(0.06)
    replica.finished("chatcmpl-1")
    rows = await replica.rows()
    assert [r.response_id for r in rows] == ["resp_5", "chatcmpl-1"]
    assert rows[0].duration_s == pytest.approx(0.5, abs=0.05)
    assert rows[0].tenant is None


# ---- who asked


SHA = hashlib.sha256(KEY.encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("policy", "user", "headers", "tenant"),
    [
        ("as_given", " team a ", {"authorization": f"Bearer {KEY}"}, ("team a", "user")),
        ("as_given", None, {"authorization": f"Bearer {KEY}"}, (SHA, "key_hash")),
        ("as_given", "", {"authorization": f"bearer  {KEY} "}, (SHA, "key_hash")),
        ("as_given", 7, {"x-api-key": KEY}, (SHA, "key_hash")),
        ("as_given", None, {"authorization": "Bearer "}, (None, None)),
        ("as_given", None, {}, (None, None)),
        ("as_given", "a\x1b[31m\nb\ud800", {}, ("a?[31m?b?", "user")),
        ("as_given", "x" * 1000, {}, ("x" * 256, "user")),
        ("hashed", KEY, {}, (SHA, "user_hash")),
        ("off", "ada", {"authorization": f"Bearer {KEY}"}, (None, None)),
    ],
)
def test_tenants(policy, user, headers, tenant):
    assert TenantRule(policy).tenant(user, headers) == tenant


@pytest.mark.parametrize(
    ("policy", "user", "headers", "tenant"),
    [
        ("as_given", "ada", {"x-jouleserve-tenant": "team-a"}, ("team-a", "key")),
        ("hashed", "ada", {"x-jouleserve-tenant": "team-a"}, ("team-a", "key")),
        ("off", "ada", {"x-jouleserve-tenant": "team-a"}, (None, None)),
        ("as_given", "ada", {"authorization": f"Bearer {KEY}"}, (None, None)),
    ],
)
def test_behind_the_gate_the_tenant_is_the_keys(policy, user, headers, tenant):
    """And without the gate nobody is believed to be one."""
    assert TenantRule(policy, gated=True).tenant(user, headers) == tenant
    assert TenantRule(policy).tenant(user, headers).name != "team-a"


def test_a_secret_changes_every_hash():
    ask = ("", {"authorization": f"Bearer {KEY}"})
    first, second = (TenantRule("as_given", s).tenant(*ask).name for s in (b"one", b"two"))
    assert len({first, second, SHA}) == 3
    assert TenantRule("as_given", b"one").tenant(*ask).name == first


# ---- direct streaming


async def asgi(replica, body, answer, headers=(), path="/v1/chat/completions", chunks=3):
    """Send one raw request through the middleware; returns what the app below received."""
    seen = {}
    cut = [body[i * len(body) // chunks : (i + 1) * len(body) // chunks] for i in range(chunks)]
    messages = [
        {"type": "http.request", "body": part, "more_body": i + 1 < chunks}
        for i, part in enumerate(cut)
    ]
    messages.append({"type": "http.disconnect"})

    async def receive():
        return messages.pop(0)

    async def app(scope, receive, send):
        seen["headers"] = dict(scope["headers"])
        seen["body"] = b""
        while (message := await receive())["type"] == "http.request":
            seen["body"] += message["body"]
            if not message["more_body"]:
                break
        seen["after"] = (await receive())["type"]
        await answer(seen["headers"][b"x-request-id"].decode(), send)

    async def send(_):
        pass

    scope = {"type": "http", "path": path, "headers": list(headers)}
    layer = EnergyMiddleware(app, energy_of=replica.energy_of, requests=replica.log)
    await layer(scope, receive, send)
    return seen


def answering(status, content_type, *bodies):
    async def answer(request_id, send):
        headers = [(b"content-type", content_type)]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for i, data in enumerate(bodies):
            data = data.replace(b"ID", request_id.encode())
            more = i + 1 < len(bodies)
            await send({"type": "http.response.body", "body": data, "more_body": more})

    return answer


BODY = json.dumps({"user": "ada", "messages": [{"content": SECRET_TEXT}]}).encode()
CHUNK = b'data: {"id":"chatcmpl-ID","choices":[{"delta":{"content":"x"}}]}\n\n'


async def test_raw_requests_are_named_before_they_start(replica):
    stream = answering(200, b"text/event-stream", CHUNK, b"data: [DONE]\n\n")
    seen = await asgi(replica, BODY, stream)
    assert seen["body"] == BODY
    assert seen["after"] == "http.disconnect"
    chosen = seen["headers"][b"x-request-id"].decode()
    replica.finished(f"chatcmpl-{chosen}")
    given = [(b"X-Request-Id".lower(), b"mine"), (b"authorization", f"Bearer {KEY}".encode())]
    whole = answering(200, b"application/json", b'{"id":"cmpl-ID","usage":{}}')
    await asgi(replica, b"not json", whole, given, "/v1/completions", chunks=1)
    replica.finished("cmpl-mine")
    rows = await replica.rows()
    assert [r.response_id for r in rows] == [f"chatcmpl-{chosen}", "cmpl-mine"]
    assert [r.outcome for r in rows] == ["completed", "completed"]
    assert [r.tenant for r in rows] == ["ada", SHA]
    assert all(r.output_tokens == 5 for r in rows)


async def test_raw_errors_and_broken_streams_are_told_apart(replica):
    cut = answering(200, b"text/event-stream", CHUNK)
    refused = answering(400, b"application/json", b'{"error":{}}')
    for answer in (refused, cut):
        await asgi(replica, BODY, answer)
    rows = await replica.rows(wait_s=0.5)
    assert sorted(r.outcome for r in rows) == ["aborted", "rejected"]


async def test_no_text_and_no_key_reaches_the_disk(replica):
    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"cookie", SECRET_TEXT.encode())]
    body = json.dumps({"prompt": SECRET_TEXT, "stop": [SECRET_TEXT]}).encode()
    secret = answering(
        200, b"text/event-stream", CHUNK.replace(b'"x"', f'"{SECRET_TEXT}"'.encode())
    )
    await asgi(replica, body, secret, headers)
    with replica.log.follow(
        replica.arrive(
            headers={"Authorization": f"Bearer {KEY}"},
            messages=[{"role": "user", "content": SECRET_TEXT}],
            prompt=SECRET_TEXT,
        )
    ) as call:
        call.answered([f'data: {{"content":"{SECRET_TEXT}"}}\n\n', DONE[1]])
        replica.finished("chatcmpl-1")
    with pytest.raises(ValueError), replica.log.follow(replica.arrive(request_id="2")):
        raise ValueError(SECRET_TEXT)
    rows = await replica.rows(wait_s=0.5)
    assert len(rows) == 3
    assert SHA in replica.written().decode()
    assert SECRET_TEXT.encode() not in replica.written()
    assert KEY.encode() not in replica.written()


# ---- settings and metrics


async def test_metrics_count_the_rows(replica):
    metrics = MetricSet(NAMES)
    replica.finished("resp_1")
    await replica.rows()
    replica.log.publish(metrics)
    replica.log.publish(metrics)
    name = "jouleserve_request_log_rows_total"
    assert metrics.registry.get_sample_value(name, {**NAMES, "fate": "written"}) == 1
    assert metrics.registry.get_sample_value(name, {**NAMES, "fate": "dropped"}) is None


async def test_a_log_that_is_off_writes_nothing_and_touches_no_body(tmp_path):
    off = Replica(tmp_path, enabled=False)
    with off.log.follow(off.arrive(user="ada")) as call:
        call.answered(DONE)
    off.finished("chatcmpl-1")

    async def answer(_, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    given = [(b"x-request-id", b"1")]
    await asgi(off, BODY, answer, given)
    await asyncio.sleep(0.05)
    assert list(tmp_path.iterdir()) == []


def test_the_default_folder_is_the_users_state(monkeypatch, tmp_path):
    from serve_app.settings import request_log_folder

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert request_log_folder() == tmp_path / "jouleserve" / "requests"
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", "/home/ada")
    assert str(request_log_folder()) == "/home/ada/.local/state/jouleserve/requests"


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({"folder": "logs"}, "f: energy.request_log.folder: .*must be an absolute path"),
        ({"fodler": "/x"}, r"f: energy.request_log.fodler: unknown key \(allowed: enabled, folder"),
        ({"max_bytes": 2**20}, "max_bytes must be at least 4 times max_file_bytes"),
        ({"format": "parquet"}, "energy.request_log.format: Input should be 'jsonl'"),
    ],
)
def test_settings_are_checked(block, line):
    with pytest.raises(ConfigError, match=line):
        parse_energy({"request_log": block}, "f")
