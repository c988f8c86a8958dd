"""What every answer of the service has to keep, and the requests that the tests share."""

from __future__ import annotations

import json

import pytest

PARIS = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "max_tokens": 24}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def check_energy(energy):
    assert energy["joules"] > 0
    assert energy["prefill_joules"] + energy["decode_joules"] == pytest.approx(
        energy["joules"], abs=1e-5
    )
    assert sum(energy["devices"].values()) == pytest.approx(energy["joules"], abs=1e-5)
    assert 0 <= energy["idle_joules"] <= energy["joules"]
    assert energy["source"] in {"estimated", "counter", "integrated"}
    assert energy["method"] == "model_weighted"  # the service has a profile
    return energy["joules"]


def data_of(events):
    return [json.loads(e[6:]) for e in events if e.startswith("data: {")]


def check_error(answer, message=""):
    error = json.loads(answer)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert message in error["message"]
    assert "Traceback" not in error["message"]
    return error


def check_books(books, tolerance=1e-6):
    """metered = attributed + open + idle + unattributed - prepaid"""
    told = books["attributed_joules"] + books["open_joules"] + books["idle_joules"]
    told += books["unattributed_joules"] - books["prepaid_joules"]
    assert told == pytest.approx(books["meter_joules"], rel=tolerance)
