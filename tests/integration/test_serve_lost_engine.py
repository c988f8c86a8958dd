"""The running service's own steps correct its model; then the engine's process is killed in the middle
of a stream, and the replica that comes in its place goes on with what was learned."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest
from running_service import MODEL, eventually
from serve_checks import CHAT, GREEDY, PARIS, check_books, check_energy, check_error, data_of

from policies.model.drift import Verdict

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(540)]


def corrected(service):
    """The one replica once its model has been judged by its steps."""

    def judged():
        service.chat("Count.", max_tokens=60, ignore_eos=True)
        (replica,) = service.energy()["replicas"]
        return replica if replica["model_verdict"] else None

    replica = eventually(judged, 120, "ten windows of steps were seen")
    assert replica["model_verdict"] in set(Verdict)
    assert replica["model_reason"].startswith("step time is ")
    sensors = {device["source"] for device in replica["devices"]}
    assert "step energy" not in replica["model_reason"] or "estimated" not in sensors
    assert service.counted("jouleserve_model_bias_ratio", quantity="step_time") > 0.0
    return replica


def test_a_killed_engine_is_told_replaced_and_booked(service):
    taught = corrected(service)
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
        # One step: too few for a replica to learn from.
        body = {"model": MODEL, "messages": PARIS, **GREEDY, "max_tokens": 1}
        status, headers, answer = service.request("POST", CHAT, body, timeout_s=200)
        if status != 200:
            assert status == 503, answer
            assert int(headers["retry-after"]) >= 1
            check_error(answer)
            return None
        return json.loads(answer)

    answer = eventually(answers_again, 200, "an answer after the engine died", every_s=1.0)
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
    (reborn,) = service.energy()["replicas"]
    assert reborn["replica"] != taught["replica"]
    assert reborn["model_verdict"]  # one step was not enough to learn that
    assert "Paris" in service.chat(PARIS[0]["content"])["choices"][0]["message"]["content"]
    books = service.at_rest()
    check_books(books)
    assert books["meter_joules"] > before["meter_joules"]  # what was spent stays on the books
    assert books["attributed_joules"] + books["unattributed_joules"] > (
        before["attributed_joules"] + before["unattributed_joules"]
    )
