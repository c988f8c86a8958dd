"""Approve mode: nothing moves before the yes, the yes moves just that, and not every yes counts."""

import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from recorded import FLEET, PROFILES, SETTINGS, records, seen

from policies.core.types import Mode, OperatingPoint
from serve_app.decisions.approval import VALID_S, Approvals, Approved, NotApproved
from serve_app.decisions.book import DecisionBook
from serve_app.decisions.log import read_decisions
from serve_app.decisions.replay import rows_of
from serve_app.decisions.settings import DecisionLogSettings
from serve_app.decisions.words import told
from serve_app.security.gate import GateMiddleware
from serve_app.security.scopes import Scope
from serve_app.web.routes import add_routes

sys.path.insert(0, str(Path(__file__).parents[1] / "security"))

from asgi_play import KeyFile

WAITING = replace(SETTINGS, mode=Mode.APPROVE)
OFF = DecisionLogSettings(enabled=False)


def proposed(settings=WAITING, free=None, rate=4.0):
    watched = [seen(60.0 * k, rate) for k in range(1, 4)]
    return (
        records(watched, free, settings=settings) if free else records(watched, settings=settings)
    )[-1]


def test_a_proposal_waits_and_says_so():
    one = proposed()
    assert one.decision["chosen_power_limit_watts"] == one.decision["present_power_limit_watts"]
    assert one.decision["proposed_power_limit_watts"] == 300.0
    assert one.decision["notes"][0] == "approve: waits for an operator"
    book = DecisionBook()
    book.take([one.model_dump_json()], PROFILES, OFF, {}.get)
    (row,) = (told(row) for row in book.rows(1, {}.get))
    assert row["words"]["waits"]
    assert "the device's default → 300 W" in row["words"]["move"]
    book.approvals.approve(book.find(one.id), one.time_utc_s, "ops")
    (row,) = (told(row) for row in book.rows(1, {}.get))
    assert (row["approved"], row["approved_by"]) == (True, "ops")
    assert not row["words"]["waits"]


def test_the_yes_holds_for_its_owner_until_the_next_or_another_mode():
    approvals, one, fleet = Approvals(), proposed(), proposed(free=FLEET, rate=200.0)
    assert approvals.of("EnergyLLMServer:m", "r0") == Approved()
    point = approvals.approve(one, one.time_utc_s + VALID_S)
    assert point.power_limit_watts == 300.0
    held = approvals.of("EnergyLLMServer:m", "r0")
    assert (held.point, held.replicas) == (point, None)
    assert approvals.of("EnergyLLMServer:m", "r1").point is None
    approvals.approve(fleet, fleet.time_utc_s)
    assert (
        approvals.of("EnergyLLMServer:m", "r1").replicas == fleet.decision["proposed_num_replicas"]
    )
    assert approvals.of("another", "r1") == Approved()
    approvals.seen(proposed())  # still in the mode
    assert approvals.of("EnergyLLMServer:m", "r0").point == point
    approvals.seen(proposed(SETTINGS))
    assert approvals.of("EnergyLLMServer:m", "r0").point is None


def test_what_cannot_be_approved_is_refused_with_the_reason():
    approvals, one = Approvals(), proposed()
    for record, later_s, words, status in (
        (None, 0.0, "no such decision", 404),
        (proposed(SETTINGS), 0.0, "was made in mode active", 409),
        (one, VALID_S + 1.0, "older than 900 s", 409),
        (_asleep(), 0.0, "nobody could approve a start", 409),
    ):
        with pytest.raises(NotApproved, match=words) as caught:
            approvals.approve(record, one.time_utc_s + later_s)
        assert caught.value.status == status


def _asleep():
    one = proposed(free=FLEET)
    return one.model_copy(update={"decision": {**one.decision, "proposed_num_replicas": 0}})


def test_a_point_is_taken_whole():
    one = proposed()
    point = Approvals().approve(one, one.time_utc_s)
    assert isinstance(point, OperatingPoint)
    assert point.max_num_active_seqs == one.decision["proposed_max_num_active_seqs"]
    assert point.pack_seqs == one.decision["proposed_pack_seqs"]


def test_a_yes_is_in_the_log_with_the_key_that_said_it_and_is_shown(tmp_path):
    book, settings = DecisionBook("llm"), DecisionLogSettings(folder=str(tmp_path))
    app = FastAPI()

    async def view(what, decision, by):
        assert what == "approve"
        return {"approved": asdict(book.approve(decision, by))}

    add_routes(app, view)
    file = KeyFile(tmp_path)
    key = file.add("ops", Scope.ADMIN)
    gated = GateMiddleware(app, settings={"api_keys_file": str(file.path)})
    now = proposed().model_copy(update={"time_utc_s": time.time()})
    book.take([now.model_dump_json()], PROFILES, settings, {}.get)
    client = TestClient(gated)
    said = {"json": {"id": now.id}, "headers": {"Authorization": f"Bearer {key}"}}
    said["headers"]["x-jouleserve-tenant"] = "somebody-else"
    assert client.post("/jouleserve/approve", **said).status_code == 200
    found = read_decisions(tmp_path / "llm.decisions.jsonl")
    assert found.approvals[now.id]["by"] == "ops"
    assert 0.0 <= time.time() - found.approvals[now.id]["time_utc_s"] < 60.0
    (row,) = rows_of(found, 1)
    assert (row["approved"], row["approved_by"], row["words"]["waits"]) == (True, "ops", False)
    assert key not in (tmp_path / "llm.decisions.jsonl").read_text()
