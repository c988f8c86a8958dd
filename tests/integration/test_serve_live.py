"""Live updates: `serve deploy` of an edited file moves the knobs and keeps the processes."""

from __future__ import annotations

import copy
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from running_service import eventually

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(420)]


def replica(service):
    (one,) = service.energy()["replicas"]
    return one


def fleet_decisions(service):
    """What the controller logs of the fleet's decisions, oldest first."""
    marked = re.findall(r"jouleserve_fleet_decision (\{.*\})", service.controller_log())
    return [json.loads(one) for one in marked]


def fleet_ticks(service):
    return service.counted("jouleserve_fleet_decisions_total")


def test_the_joint_policy_decides_about_the_fleet_on_what_replicas_report(service):
    """It needs the lengths of 64 requests that a replica has reported, so ask as many."""

    def joint(decision):
        return any(note.startswith("load ") for note in decision["notes"])

    def explained():
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda i: service.chat(f"Say {i}.", max_tokens=2), range(16)))
        return [one for one in fleet_decisions(service) if joint(one)]

    *_, decision = eventually(explained, 90, "the joint policy has decided", every_s=1.0)
    assert decision["policy"] == "energy_slo"
    assert re.match(r"load \d+\.\d\d/s, margin -?\d\.\d\d, need 1", decision["notes"][0])
    assert decision["chosen_num_replicas"] == 1
    assert 0.0 < decision["decision_s"] < 0.1
    errors = [one for one in fleet_decisions(service) if one["reason"] == "error"]
    assert not errors


def test_a_live_update_moves_the_cap_and_keeps_the_process(service):
    pids = service.replica_pids()
    live = {"max_num_active_seqs": 4, "mode": "advisory", "slo": {"ttft_ms": 700}}
    done = service.deploy(service.edited(user_config=live))
    assert done.returncode == 0, done.stderr
    eventually(lambda: replica(service)["max_num_active_seqs"] == 4, 20, "the cap is 4")

    def ask(i):
        return service.chat(f"Count to {i}.", max_tokens=80, ignore_eos=True)

    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, i) for i in range(8)]
        seen = []
        while not all(answer.done() for answer in answers):
            seen.append(replica(service)["num_running"])
            time.sleep(0.3)
        assert all(answer.result()["usage"]["completion_tokens"] == 80 for answer in answers)
    assert 0 < max(seen) <= 4
    # Without a pin and without a policy that acts: the engine's own capacity.
    service.put(service.edited(user_config={"mode": "advisory"}))
    eventually(lambda: replica(service)["max_num_active_seqs"] == 64, 20, "the pin is gone")
    service.put(service.config)
    assert service.replica_pids() == pids


def test_a_wrong_live_update_is_refused_readably_and_the_service_lives(service):
    pids = service.replica_pids()
    before = service.counted("jouleserve_control_errors_total", stage="config")
    service.put(service.edited(user_config={"max_num_active_seqs": 3}))
    eventually(lambda: replica(service)["max_num_active_seqs"] == 3, 20, "the cap is 3")
    service.put(service.edited(user_config={"max_num_active_seqz": 5}))

    def refused():
        return replica(service)["refused_user_config"]

    reason = eventually(refused, 20, "the refusal is told")
    assert reason.endswith(
        "user_config.max_num_active_seqz: unknown key (allowed: slo, mode, max_num_active_seqs, "
        "fleet_budget_watts, over_budget)"
    )
    eventually(lambda: reason in service.log.read_text(), 20, "the log says it too")
    assert replica(service)["max_num_active_seqs"] == 3  # the settings in force stay
    assert service.counted("jouleserve_control_errors_total", stage="config") == before + 1
    assert (
        "Paris"
        in service.chat("What is the capital of France?")["choices"][0]["message"]["content"]
    )
    service.put(service.config)
    eventually(lambda: not refused(), 20, "a good update clears the refusal")
    assert service.replica_pids() == pids


def test_a_typo_in_the_energy_block_is_refused_in_a_line_and_the_old_version_serves(service):
    """What `serve run` and `serve deploy` make of it: Ray builds the application in its cluster."""
    pids = service.replica_pids()
    config = copy.deepcopy(service.config)
    config["applications"][0]["args"]["energy"]["slo"] = {"ttft_mss": 800}
    service.put(config)
    eventually(lambda: service.status()["status"] == "DEPLOY_FAILED", 90, "the build fails")
    first, fault = service.status()["message"].strip().splitlines()
    assert first == "Deploying app 'llm' failed with exception:"
    assert fault == (
        "application args: energy.slo.ttft_mss: unknown key (allowed: ttft_ms, tpot_ms, percentile)"
    )

    def told():  # by `serve run`, whose log follows a moment later
        return [line for line in service.log.read_text().splitlines() if fault in line]

    (line,) = eventually(told, 20, "the log says it too")
    assert "Traceback" not in line
    assert service.chat("Hi", max_tokens=2)["usage"]["completion_tokens"] == 2
    service.put(service.config)
    eventually(lambda: service.status()["status"] == "RUNNING", 60, "the good file is back")
    assert service.replica_pids() == pids
    # Ray itself would ask no policy from here on.
    asked = eventually(lambda: fleet_ticks(service), 30, "the fleet's policy is asked again")
    eventually(lambda: fleet_ticks(service) > asked, 30, "and again")
