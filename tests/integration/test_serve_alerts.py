"""The shipped alerts on the running service, through a real Prometheus and Alertmanager: faults are
provoked, alerts fire at a webhook, the faults end, the alerts are resolved.

Windows and `for` are shortened (`monitoring.shortened`); promtool tests them as shipped.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager

import pytest
from monitoring import Monitoring
from monitoring_tools import need
from running_service import DEPLOYMENT, eventually

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(420)]
LABELS = {"application": "llm", "deployment": DEPLOYMENT}
# Faults that nobody provokes here.
MUST_BE_QUIET = {
    "JouleServeMetricsMissing",
    "JouleServeScrapedTwice",
    "JouleServeBooksDoNotBalance",
    "JouleServeEnergyUnavailable",
    "JouleServePowerLimitUnavailable",
    "JouleServePowerLimitDrift",
    "JouleServeEnergyCostBudgetExceeded",
    "JouleServeRequestLogDropping",
}


@pytest.fixture(scope="module")
def monitoring(service, tmp_path_factory):
    need("prometheus")
    need("prometheus-alertmanager", "alertmanager")
    monitoring = Monitoring(tmp_path_factory.mktemp("monitoring"), service.port)
    try:
        monitoring.start()
        yield monitoring
    finally:
        monitoring.stop()


@contextmanager
def asking(service):
    """Somebody asks for two tokens, again and again."""
    over = threading.Event()

    def ask():
        while not over.is_set():
            service.chat("Hi", max_tokens=2)

    clients = [threading.Thread(target=ask) for _ in range(2)]
    for client in clients:
        client.start()
    try:
        yield
    finally:
        over.set()
        for client in clients:
            client.join()


def test_an_slo_that_burns_and_a_refused_update_are_told_and_resolved(service, monitoring):
    pids = service.replica_pids()
    with asking(service):
        eventually(
            lambda: monitoring.query("jouleserve:slo_missed:ratio_rate5m"),
            20,
            "a share that missed",
        )
        assert monitoring.query("jouleserve:slo_budget:ratio")[0][1] == pytest.approx(0.01)
        service.put(service.edited(user_config={"slo": {"ttft_ms": 1}}))  # nobody can
        monitoring.told("JouleServeSLOBurn", "firing", long_window="1h", **LABELS)
        # The update that shall repair it has a typo.
        service.put(service.edited(user_config={"slo": {"ttft_mss": 60_000}}))
        monitoring.told("JouleServeConfigRefused", "firing", **LABELS)
        loose = {"ttft_ms": 60_000, "tpot_ms": 60_000}
        service.put(service.edited(user_config={"slo": loose}))
        monitoring.told("JouleServeSLOBurn", "resolved", long_window="1h", **LABELS)
        monitoring.told("JouleServeConfigRefused", "resolved", **LABELS)
    service.put(service.config)
    eventually(lambda: not service.energy()["replicas"][0]["refused_user_config"], 20, "repaired")
    assert service.replica_pids() == pids


def test_a_service_that_hangs_is_told_and_resolved(service, monitoring):
    target = {"instance": f"127.0.0.1:{service.port}"}
    (ledger,) = service.titled("ray::Ledger")
    os.kill(ledger, signal.SIGSTOP)  # every scrape waits for it
    try:
        monitoring.told("JouleServeDown", "firing", **target)
    finally:
        os.kill(ledger, signal.SIGCONT)
    monitoring.told("JouleServeDown", "resolved", **target)
    books = service.at_rest()
    assert books["num_replicas"] == 1


def test_every_rule_evaluates_on_the_real_metrics(service, monitoring):
    rules = [rule for group in monitoring.get("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 60
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}
    # What a service without GPUs, power limits and faults can have, it has.
    for name in (
        "jouleserve:slo_objective:ratio",
        "jouleserve:replicas_reporting:count",
        "jouleserve:decisions:ratio_rate10m",
        "jouleserve:energy:kwh_increase1d",
        "jouleserve:energy_cost:money_increase1d",
    ):
        assert monitoring.query(f"last_over_time({name}[1m])"), name
    fired = {name for name, _, _ in monitoring.webhook.events}
    assert not fired & MUST_BE_QUIET
