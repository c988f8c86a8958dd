"""The running service's own steps correct its model, and a replica that replaces another goes on."""

from __future__ import annotations

import os
import signal

import pytest
from running_service import MODEL, eventually

from policies.model.drift import Verdict

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(540)]


def bias(service):
    return service.counted("jouleserve_model_bias_ratio", quantity="step_time")


def test_live_steps_correct_the_model_and_the_next_replica_goes_on_with_it(service):
    def judged():
        service.chat("Count.", max_tokens=60, ignore_eos=True)
        (replica,) = service.energy()["replicas"]
        return replica if replica["model_verdict"] else None

    replica = eventually(judged, 120, "ten windows of steps were seen")
    assert replica["model_verdict"] in set(Verdict)
    assert replica["model_reason"].startswith("step time is ")
    sensors = {device["source"] for device in replica["devices"]}
    assert "step energy" not in replica["model_reason"] or "estimated" not in sensors
    assert bias(service) > 0.0

    (old,) = service.replica_pids()
    os.kill(old, signal.SIGKILL)
    eventually(lambda: set(service.replica_pids()) - {old}, 60, "Serve starts another replica")

    def answers_again():
        body = {"model": MODEL, "prompt": "Hi", "max_tokens": 1}
        return service.request("POST", "/v1/completions", body, timeout_s=200)[0] == 200

    eventually(answers_again, 240, "it answers", every_s=1.0)
    seen = eventually(lambda: service.energy()["replicas"], 30, "it is on the ledger")
    (reborn,) = [one for one in seen if one["replica"] != replica["replica"]]
    assert reborn["model_verdict"]  # one step was not enough to learn that
