"""Answers of the running service: chat, completions, streams, JSON mode, tools; each with its energy."""

from __future__ import annotations

import json

import pytest
from running_service import MODEL
from serve_checks import CHAT, COMPLETIONS, GREEDY, PARIS, check_energy, data_of

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(420)]


def test_chat_answers_paris_and_its_price(service):
    answer = service.chat("What is the capital of France?")
    assert "Paris" in answer["choices"][0]["message"]["content"]
    assert answer["usage"]["completion_tokens"] > 0
    check_energy(answer["energy"])
    ready = service.output.read_text()
    assert "Paris" in ready
    assert service.url in ready.replace("\n", "")


def test_completions_of_several_prompts_have_one_price(service):
    prompts = ["One two three", "The sun rises in the"]
    answer = service.post(COMPLETIONS, prompt=prompts, temperature=0, max_tokens=6)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 12
    check_energy(answer["energy"])


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, {"messages": PARIS}), (COMPLETIONS, {"prompt": "The capital of France is"})],
)
def test_a_stream_without_usage_tells_its_energy_in_a_comment(service, path, body):
    events = list(service.stream(path, **body, **GREEDY))
    assert events[-1] == "data: [DONE]"
    (comment,) = [e for e in events if e.startswith(":")]
    assert events[-2] == comment
    check_energy(json.loads(comment.removeprefix(": energy ")))
    chunks = data_of(events)
    assert len(chunks) > 3
    assert all("energy" not in chunk for chunk in chunks)
    assert len({chunk["id"] for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("path", "body"),
    [(CHAT, {"messages": PARIS}), (COMPLETIONS, {"prompt": "The capital of France is"})],
)
def test_a_stream_with_usage_tells_its_energy_in_the_last_chunk(service, path, body):
    body = {**body, **GREEDY, "stream_options": {"include_usage": True}}
    events = list(service.stream(path, **body))
    assert events[-1] == "data: [DONE]"
    assert not [e for e in events if e.startswith(":")]
    *others, last = data_of(events)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] > 0
    check_energy(last["energy"])
    assert all("energy" not in chunk for chunk in others)


# ---- JSON mode and tools, as Ray gives them

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome"]},
        "capital": {"type": "boolean"},
    },
    "required": ["city", "capital"],
    "additionalProperties": False,
}


def test_json_mode_gives_json(client):
    ask = [{"role": "user", "content": "Give a JSON object with the key name."}]
    for attempt in range(3):  # a small model may ramble past any limit
        answer = client.chat.completions.create(
            model=MODEL,
            messages=ask,
            max_tokens=150,
            temperature=0.5,
            seed=attempt,
            response_format={"type": "json_object"},
        )
        text = answer.choices[0].message.content
        assert text.lstrip().startswith("{")
        if answer.choices[0].finish_reason == "stop":
            assert isinstance(json.loads(text), dict)
            return
    pytest.fail(f"never came to an end: {text}")


def test_json_schema_mode_gives_what_the_schema_says(client):
    answer = client.chat.completions.create(
        model=MODEL,
        messages=PARIS,
        temperature=0,
        max_tokens=100,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": SCHEMA},
        },
    )
    data = json.loads(answer.choices[0].message.content)
    assert data["city"] in {"Paris", "Rome"}
    assert isinstance(data["capital"], bool)


def test_tool_calls(client):
    tool = {"name": "look_up", "description": "Look up a city.", "parameters": SCHEMA}
    for choice in ("required", {"type": "function", "function": {"name": "look_up"}}):
        answer = client.chat.completions.create(
            model=MODEL,
            messages=PARIS,
            temperature=0,
            max_tokens=150,
            tools=[{"type": "function", "function": tool}],
            tool_choice=choice,
        )
        (call,) = answer.choices[0].message.tool_calls[:1]
        assert call.function.name == "look_up"
        assert json.loads(call.function.arguments)["city"] in {"Paris", "Rome"}
        assert answer.energy["joules"] > 0
