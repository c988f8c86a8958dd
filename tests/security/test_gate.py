"""The gate before a fake application: who gets in, with what, and what everybody else is told."""

import pytest
from asgi_play import Downstream, KeyFile, http_scope, play
from hypothesis import given
from hypothesis import strategies as st

from serve_app.security.gate import Gate, GateMiddleware
from serve_app.security.scopes import Scope
from serve_app.security.settings import NO_SECURITY, SecuritySettings

CHAT = "/v1/chat/completions"


class Guarded:
    """A gate with keys of three tenants before an application that remembers."""

    def __init__(self, folder, **settings):
        self.file = KeyFile(folder)
        self.key = self.file.add("team-a")
        self.prometheus = self.file.add("prometheus", Scope.ENERGY)
        self.admin = self.file.add("ops", Scope.ADMIN)
        self.expired = self.file.add("old", *Scope, expires_s=1.0)
        self.app = Downstream()
        given = {"api_keys_file": str(self.file.path), **settings}
        self.gated = GateMiddleware(self.app, settings=given)

    async def ask(self, *headers, path=CHAT, method="POST", body=(b"{}",), **more):
        return await play(self.gated, http_scope(path, headers, method, **more), body)

    async def ask_with(self, key, path=CHAT, **more):
        return await self.ask(("authorization", f"Bearer {key}"), path=path, **more)

    @property
    def refused(self):
        return dict(self.gated.gate.refused)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gate")


@pytest.fixture(scope="module")
def shared(folder):
    return Guarded(folder)


@pytest.fixture
def guarded(shared):
    shared.app.scopes.clear()
    shared.app.body, shared.app.left = b"", False
    shared.gated.gate.refused.clear()
    return shared


# ---- keys


async def test_a_key_lets_in_and_stays_outside(guarded):
    """Behind the gate there is the tenant's name, and no header that could hold a key."""
    answer = await guarded.ask(
        ("Authorization", f"Bearer {guarded.key}"),
        ("x-jouleserve-tenant", "somebody-else"),
        ("content-type", "application/json"),
    )
    assert answer.status == 200
    assert guarded.app.body == b"{}"
    assert guarded.app.headers == {
        b"content-type": b"application/json",
        b"x-jouleserve-tenant": b"team-a",
    }
    assert guarded.refused == {}


@pytest.mark.parametrize("name", ["authorization", "api-key", "x-api-key"])
@pytest.mark.parametrize("form", ["{}", "Bearer {}", "bearer  {} ", "BEARER {}"])
async def test_where_a_key_may_stand(guarded, name, form):
    assert (await guarded.ask((name, form.format(guarded.key)))).status == 200


async def check_refused(guarded, reason, *headers, **more):
    answer = await guarded.ask(*headers, **more)
    assert answer.status == 401
    assert answer.error["type"] == "authentication_error"
    assert answer.error["code"] == "invalid_api_key"
    assert answer.headers[b"www-authenticate"] == b"Bearer"
    assert int(answer.headers[b"content-length"]) == len(answer.body)
    assert answer.received == 0  # of the body
    assert guarded.app.scopes == []
    assert guarded.refused == {reason: 1}
    return answer


async def test_everybody_else_is_told_the_same(guarded):
    answers = []
    for reason, headers in (
        ("no_key", ()),
        ("no_key", (("authorization", ""),)),
        ("no_key", (("authorization", "Bearer "),)),
        ("wrong_key", (("authorization", "Bearer jsk-wrong"),)),
        ("wrong_key", (("authorization", f"Basic {guarded.key}"),)),
        ("wrong_key", (("authorization", f"Bearer {guarded.key}x"),)),
        ("wrong_key", (("authorization", f"Bearer Bearer {guarded.key}"),)),
        ("wrong_key", (("authorization", b"Bearer \xff\xfe\x00\x80"),)),
        ("wrong_key", (("authorization", f"Bearer {guarded.key.upper()}"),)),
        ("expired_key", (("authorization", f"Bearer {guarded.expired}"),)),
        ("no_key", 2 * (("authorization", f"Bearer {guarded.key}"),)),
        ("no_key", (("authorization", f"Bearer {guarded.key}"), ("x-api-key", "other"))),
        ("no_key", (("x-jouleserve-tenant", "team-a"),)),
        ("no_key", (("cookie", f"authorization=Bearer {guarded.key}"),)),
    ):
        guarded.gated.gate.refused.clear()
        answers.append(await check_refused(guarded, reason, *headers))
    assert len({(a.body, tuple(sorted(a.headers.items()))) for a in answers}) == 1
    guarded.gated.gate.refused.clear()
    await check_refused(guarded, "no_key", query_string=f"api_key={guarded.key}".encode())


@given(st.lists(st.tuples(
    st.sampled_from(["authorization", "Authorization", "api-key", "x-api-key", "x-jouleserve-tenant", "host"]),
    st.binary(max_size=30) | st.sampled_from([b"Bearer", b"Bearer \t", b"team-a", b"\xf0\x9f\x92\xa9"]),
), max_size=6))  # fmt: skip
async def test_no_malformed_header_lets_in_or_breaks_the_gate(shared, headers):
    answer = await shared.ask(*headers)
    assert answer.status == 401


@given(st.binary(max_size=12), st.binary(max_size=12))
async def test_what_is_around_a_key_must_be_nothing(shared, before, after):
    presented = before + shared.key.encode() + after
    answer = await shared.ask(("authorization", b"Bearer " + presented))
    bare = presented.strip() == shared.key.encode()
    # "Bearer bearer KEY" and the like have one scheme too many.
    assert answer.status == (200 if bare else 401)


# ---- scopes


async def test_a_key_without_the_scope(guarded):
    for key, path, scope in (
        (guarded.prometheus, CHAT, "inference"),
        (guarded.key, "/metrics", "energy"),
        (guarded.admin, "/jouleserve/energy", "energy"),
        (guarded.key, "/jouleserve/approve", "admin"),
        (guarded.prometheus, "/collective_rpc", "admin"),
    ):
        guarded.gated.gate.refused.clear()
        answer = await guarded.ask_with(key, path)
        assert (answer.status, answer.error["code"]) == (403, "insufficient_scope")
        assert f"scope '{scope}'" in answer.error["message"]
        challenge = answer.headers[b"www-authenticate"].decode()
        assert challenge == f'Bearer error="insufficient_scope", scope="{scope}"'
        assert guarded.app.scopes == []
        assert guarded.refused == {"no_scope": 1}
    for key, path in (
        (guarded.prometheus, "/metrics"),
        (guarded.prometheus, "/jouleserve/energy"),
        (guarded.admin, "/jouleserve/approve"),
        (guarded.key, "/v1/models"),
    ):
        assert (await guarded.ask_with(key, path)).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models", "/V1/models", "/v1%2fmodels", "/%76%31/models", "/.//v1/models", "/v1;/models",
        "/jouleserve//approve", "/jouleserve/metrics/../approve/..", "/METRICS", "\\v1\\models", "*",
    ],
)  # fmt: skip
async def test_no_spelling_of_a_path_needs_less(guarded, path):
    for key in (guarded.key, "jsk-wrong"):
        answer = await guarded.ask_with(key, path, method="GET")
        below_metrics = path.startswith("/jouleserve/metrics/")
        assert answer.status == (403 if key == guarded.key else 401)
        if key == guarded.key:
            needed = "energy" if below_metrics else "admin"
            assert f"'{needed}'" in answer.error["message"]
    assert guarded.app.scopes == []


async def test_a_mounted_application_is_judged_below_its_prefix(guarded):
    inside = {"path": "/llm/metrics", "root_path": "/llm", "method": "GET"}
    assert (await guarded.ask_with(guarded.key, **inside)).status == 403
    assert (await guarded.ask_with(guarded.prometheus, **inside)).status == 200
    # A prefix that is the client's own word makes nothing public.
    outside = {"path": "/health/v1/models", "root_path": "", "method": "GET"}
    assert (await guarded.ask_with(guarded.key, **outside)).status == 403


async def test_health_and_preflights_need_no_key_and_show_none(guarded):
    for path in ("/health", "/ping"):
        spoofed = (("authorization", "Bearer x"), ("x-jouleserve-tenant", "team-a"))
        assert (await guarded.ask(*spoofed, path=path, method="GET")).status == 200
        assert guarded.app.headers == {}
    preflight = (("origin", "https://a.example"), ("access-control-request-method", "POST"))
    assert (await guarded.ask(*preflight, method="OPTIONS")).status == 200
    assert (await guarded.ask(*preflight, method="POST")).status == 401
    assert (await guarded.ask(method="OPTIONS")).status == 401


async def test_what_is_not_protected_is_open_and_the_rest_is_not(tmp_path):
    guarded = Guarded(tmp_path, protect=["energy"])
    spoofed = (("x-jouleserve-tenant", "team-a"), ("authorization", "Bearer x"))
    assert (await guarded.ask(*spoofed)).status == 200
    assert guarded.app.headers == {}
    assert (await guarded.ask(path="/metrics")).status == 401
    assert (await guarded.ask(path="/jouleserve/approve")).status == 401
    assert not guarded.gated.gate.settings.names_tenants


async def test_without_a_file_everything_is_open_and_nothing_is_touched():
    app = Downstream()
    gated = GateMiddleware(app, settings=SecuritySettings().model_dump(mode="json"))
    headers = (("authorization", "Bearer x"), ("x-jouleserve-tenant", "y"))
    answer = await play(gated, http_scope("/jouleserve/approve", headers))
    assert answer.status == 200
    assert len(app.headers) == 2


async def test_a_key_expires_while_the_gate_stands(tmp_path):
    file = KeyFile(tmp_path)
    key = file.add("a", expires_s=100.0)
    now = [99.0]
    gate = Gate(SecuritySettings(api_keys_file=file.path), now_s=lambda: now[0])
    scope = http_scope(CHAT, [("authorization", f"Bearer {key}")])
    assert gate.judge(scope)[0] is None
    now[0] = 100.0
    assert gate.judge(scope)[0].status == 401


# ---- what is not HTTP


async def test_a_websocket_needs_a_key_too(guarded):
    def handshake(*headers, **more):
        return {**http_scope("/v1/realtime", headers), "type": "websocket", **more}

    closed = await play(guarded.gated, handshake())
    assert closed.messages == [{"type": "websocket.close", "code": 1008, "reason": ""}]
    told = await play(guarded.gated, handshake(extensions={"websocket.http.response": {}}))
    assert (told.messages[0]["type"], told.status) == ("websocket.http.response.start", 401)
    assert told.error["code"] == "invalid_api_key"
    assert guarded.app.scopes == []
    await play(guarded.gated, handshake(("authorization", f"Bearer {guarded.key}")))
    assert guarded.app.headers == {b"x-jouleserve-tenant": b"team-a"}


async def test_the_applications_own_life_is_none_of_its_business(guarded):
    await play(guarded.gated, {"type": "lifespan"})
    assert guarded.app.scopes == [{"type": "lifespan"}]


# ---- limits

LIMITS = {"max_body_bytes": 1024, "max_header_bytes": 2048}


def limited(app):
    return GateMiddleware(app, settings={**NO_SECURITY.model_dump(mode="json"), **LIMITS})


@given(st.lists(st.binary(max_size=400), min_size=1, max_size=8), st.booleans())
async def test_a_body_passes_whole_or_is_refused_whether_announced_or_not(pieces, announced):
    app, size = Downstream(), sum(map(len, pieces))
    how = ("content-length", str(size)) if announced else ("transfer-encoding", "chunked")
    answer = await play(limited(app), http_scope(CHAT, [how], "POST"), pieces)
    if size <= 1024:
        assert (answer.status, app.body, app.left) == (200, b"".join(pieces), False)
        return
    assert answer.status == 413
    assert answer.error == {
        "message": "the body is larger than 1024 bytes (energy.security.max_body_bytes)",
        "type": "invalid_request_error",
        "param": None,
        "code": "request_too_large",
    }
    assert answer.headers[b"connection"] == b"close"
    assert len(answer.messages) == 2  # nothing of what the application has said to its lost client
    if announced:
        assert (answer.received, app.scopes) == (0, [])
    else:
        assert app.left
        assert len(app.body) <= 1024


@pytest.mark.parametrize("length", ["-1", "1e3", "10 ", "0x10", "", "9" * 30, b"\xb2"])
async def test_a_length_that_is_none_is_not_believed(length):
    app = Downstream()
    scope = http_scope(CHAT, [("content-length", length)], "POST")
    answer = await play(limited(app), scope, [b"x" * 2000])
    assert answer.status == 413
    assert app.body == b""


async def test_lengths_that_disagree(guarded):
    app = Downstream()
    two = [("content-length", "5"), ("content-length", "5000")]
    assert (await play(limited(app), http_scope(CHAT, two, "POST"), [b"x" * 5])).status == 413
    smuggled = [("content-length", "5"), ("transfer-encoding", "chunked")]
    answer = await play(limited(app), http_scope(CHAT, smuggled, "POST"), [b"x" * 600, b"x" * 600])
    assert answer.status == 413


async def test_an_application_that_fails_over_its_lost_client_is_not_heard(caplog):
    async def fails(_, receive, send):
        while (await receive())["type"] != "http.disconnect":
            pass
        raise RuntimeError("the client has left")

    scope = http_scope(CHAT, [("transfer-encoding", "chunked")], "POST")
    assert (await play(limited(fails), scope, [b"x" * 2000])).status == 413
    with pytest.raises(RuntimeError):  # its own failures stay its own
        await play(limited(fails), scope, [b"x"])


async def test_headers_that_are_too_large():
    gated = limited(Downstream())
    for scope in (
        http_scope(CHAT, [("x-a", "y" * 2048)]),
        http_scope(CHAT, [(f"x-{n}", "") for n in range(400)]),
        http_scope("/v1/models/" + "a" * 2048),
        http_scope(CHAT, query_string=b"a" * 2048),
    ):
        answer = await play(gated, scope)
        assert (answer.status, answer.error["code"]) == (431, "headers_too_large")
        assert "max_header_bytes" in answer.error["message"]
    assert (await play(gated, http_scope(CHAT, [("x-a", "y" * 1900)]))).status == 200
    assert gated.gate.refused == {"headers": 4}


async def test_whoever_has_no_key_does_not_learn_the_limits(guarded):
    answer = await guarded.ask(("content-length", str(2**40)))
    assert answer.status == 401


def test_the_defaults_take_what_openai_takes():
    settings = SecuritySettings()
    assert settings.max_body_bytes > 50e6 * 4 / 3  # 50 MB of images, in base64
    assert settings.max_header_bytes == 65536
