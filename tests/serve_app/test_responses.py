"""Energy in bodies, streams and raw ASGI traffic; everything else passes unchanged."""

import json

from hypothesis import given
from hypothesis import strategies as st

from serve_app.responses import EnergyMiddleware, StreamAnnotator, error_event, with_energy

ENERGY = {"joules": 1.5, "source": "counter"}


def energy_of(response_id):
    return {**ENERGY, "of": response_id}


def event(**body):
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n"


TOKEN = event(id="chatcmpl-1", choices=[{"delta": {"content": "hi"}}])
USAGE = event(id="chatcmpl-1", choices=[], usage={"completion_tokens": 3})
DONE = "data: [DONE]\n\n"


def test_the_usage_chunk_carries_energy_and_done_stays_bare():
    annotate = StreamAnnotator(energy_of).annotate
    assert annotate(TOKEN) == TOKEN
    usage = json.loads(annotate(USAGE).removeprefix("data: "))
    assert usage["energy"] == {**ENERGY, "of": "chatcmpl-1"}
    assert usage["usage"] == {"completion_tokens": 3}
    assert annotate(DONE) == DONE


def test_without_usage_a_comment_line_comes_before_done():
    annotate = StreamAnnotator(energy_of).annotate
    annotate(TOKEN)
    comment, done = annotate(DONE).strip().split("\n\n")
    assert json.loads(comment.removeprefix(": energy "))["of"] == "chatcmpl-1"
    assert done == "data: [DONE]"


def test_usage_in_every_chunk_is_not_the_last_usage_chunk():
    annotate = StreamAnnotator(energy_of).annotate
    running = event(id="c", choices=[{"delta": {}}], usage={"completion_tokens": 1})
    assert annotate(running) == running


def test_energy_is_told_once():
    annotate = StreamAnnotator(energy_of).annotate
    text = annotate(TOKEN) + annotate(USAGE) + annotate(USAGE) + annotate(DONE)
    assert text.count('"joules"') == 1


@given(st.text(max_size=200))
def test_content_that_looks_like_protocol_passes(content):
    annotate = StreamAnnotator(energy_of).annotate
    chunk = event(id="c", choices=[{"delta": {"content": content}}])
    assert annotate(chunk) == chunk or content.find("[DONE]") >= 0


def test_an_error_event_ends_the_stream():
    body, done, _ = error_event("gone").split("\n\n")
    assert json.loads(body.removeprefix("data: "))["error"]["message"] == "gone"
    assert done == "data: [DONE]"


def test_bodies_that_are_no_answer_stay_as_they_are():
    for body in (b"not json", b'{"error": {}}', b"[1]", b'{"usage": {}}'):
        assert with_energy(body, energy_of) == body


async def asgi(path, messages):
    async def app(scope, receive, send):
        for message in messages:
            await send(message)

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": path}
    await EnergyMiddleware(app, energy_of=energy_of)(scope, None, send)
    return sent


def start(content_type, status=200):
    headers = [(b"content-type", content_type), (b"content-length", b"2")]
    return {"type": "http.response.start", "status": status, "headers": headers}


def body(data, more=False):
    return {"type": "http.response.body", "body": data, "more_body": more}


async def test_middleware_rewrites_a_json_answer_and_its_length():
    answer = json.dumps({"id": "cmpl-9", "usage": {}}).encode()
    sent = await asgi(
        "/v1/completions",
        [start(b"application/json"), body(answer[:7], more=True), body(answer[7:])],
    )
    data = sent[1]["body"]
    assert json.loads(data)["energy"]["of"] == "cmpl-9"
    assert dict(sent[0]["headers"])[b"content-length"] == str(len(data)).encode()


async def test_middleware_annotates_a_stream():
    sent = await asgi(
        "/v1/chat/completions",
        [
            start(b"text/event-stream; charset=utf-8"),
            body(TOKEN.encode(), True),
            body(DONE.encode()),
        ],
    )
    assert b": energy" in sent[-1]["body"]


async def test_middleware_leaves_errors_and_other_paths_alone():
    messages = [start(b"application/json", status=400), body(b'{"id":"x","usage":{}}')]
    assert await asgi("/v1/completions", messages) == messages
    messages = [start(b"application/json"), body(b'{"id":"x","usage":{}}')]
    assert await asgi("/v1/models", messages) == messages
