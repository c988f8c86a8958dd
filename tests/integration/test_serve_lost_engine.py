"""The engine's process is killed in the middle of a stream."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest
from running_service import MODEL, eventually
from serve_checks import CHAT, GREEDY, PARIS, check_books, check_energy, check_error, data_of

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(540)]


def test_a_killed_engine_is_told_replaced_and_booked(service):
    before = service.at_rest()
    (old_replica,) = service.replica_pids()
    (engine,) = service.titled(r"^VLLM::EngineCore")
    workers = service.titled(r"^VLLM::Worker")
    stream = service.stream(CHAT, messages=PARIS, max_tokens=1500, ignore_eos=True)
    events = [next(stream) for _ in range(20)]
    time.sleep(2)  # the ledger hears of the open request
    os.kill(engine, signal.SIGKILL)
    killed_s = time.monotonic()
    events += list(stream)
    assert time.monotonic() - killed_s < 30
    assert events[-1] == "data: [DONE]"
    (error,) = [chunk["error"] for chunk in data_of(events) if "error" in chunk]
    assert error["code"] == 500
    assert error["message"]

    def answers_again():
        body = {"model": MODEL, "messages": PARIS, **GREEDY}
        status, headers, answer = service.request("POST", CHAT, body, timeout_s=200)
        if status != 200:
            assert status == 503, answer
            assert int(headers["retry-after"]) >= 1
            check_error(answer)
            return None
        return json.loads(answer)

    answer = eventually(answers_again, 200, "an answer after the engine died", every_s=1.0)
    assert "Paris" in answer["choices"][0]["message"]["content"]
    check_energy(answer["energy"])
    assert service.replica_pids() != [old_replica]

    def one_new_replica():
        return len(service.replica_pids()) == 1 and old_replica not in service.replica_pids()

    eventually(one_new_replica, 60, "the old replica is gone")
    eventually(lambda: not any(map(psutil.pid_exists, workers)), 20, "its workers are gone")

    def counted_out():
        books = service.energy()
        return books["num_replicas"] == 1 and books

    eventually(counted_out, 30, "the dead replica is off the list")
    books = service.at_rest()
    check_books(books)
    assert books["meter_joules"] > before["meter_joules"]  # what was spent stays on the books
    assert books["attributed_joules"] + books["unattributed_joules"] > (
        before["attributed_joules"] + before["unattributed_joules"]
    )
