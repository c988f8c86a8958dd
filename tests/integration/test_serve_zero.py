"""A deployment that may have no replica: it wakes for a request, sleeps when nobody asks, and wakes."""

from __future__ import annotations

import json

import pytest
from running_service import DEPLOYMENT, MODEL, eventually, started
from serve_checks import CHAT, PARIS

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(420)]


def may_sleep(config):
    arguments = config["applications"][0]["args"]
    options = arguments["llm_configs"][0]["deployment_config"]
    options["autoscaling_config"] = {"min_replicas": 0, "max_replicas": 1}
    # A start is believed to be cheap, so that it pays to sleep after twice these seconds.
    arguments["energy"]["policy"] |= {"cold_start_s": 5, "dwell_down_s": 10}


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with started(tmp_path_factory.mktemp("zero"), may_sleep) as service:
        yield service


def running(service):
    deployment = service.status()["deployments"][DEPLOYMENT]
    return sum(one["state"] == "RUNNING" for one in deployment["replicas"])


def last_decision(service):
    lines = service.controller_log().splitlines()
    said = [line for line in lines if "jouleserve_fleet_decision" in line]
    return json.loads(said[-1].partition("jouleserve_fleet_decision ")[2])


def test_a_service_sleeps_when_nobody_asks_and_wakes_for_a_request(service):
    """`jouleserve serve` asks a first question of its own, which has woken it."""
    first = service.energy()
    assert (running(service), first["num_replicas"]) == (1, 1)
    eventually(lambda: running(service) == 0, 90, "nobody asks: no replica", every_s=1.0)
    decision = last_decision(service)
    assert (decision["reason"], decision["chosen_num_replicas"]) == ("no_traffic", 0)
    asleep = eventually(
        lambda: (books := service.energy())["num_replicas"] == 0 and books, 15, "nobody reports"
    )
    assert asleep["meter_joules"] >= first["meter_joules"] > 0.0  # not lost with the replica
    question = {"model": MODEL, "messages": PARIS, "max_tokens": 16, "temperature": 0}
    status, _, answer = service.request("POST", CHAT, question, timeout_s=300)
    assert status == 200, answer
    assert "Paris" in json.loads(answer)["choices"][0]["message"]["content"]
    assert running(service) == 1
