"""The ledger's arithmetic: totals over replicas, what a dead replica leaves, one exposition."""

import pytest
from prometheus_client.parser import text_string_to_metric_families
from told import told_ledger

from serve_app.ledger import LedgerState
from serve_app.meters import Device, DeviceKind, DeviceReading, Source
from serve_app.observers.metrics import METRICS, MetricSet
from serve_app.push import Push, device_rows, families_of


def labels(replica):
    return {"application": "llm", "deployment": "d", "replica": replica, "model": "m"}


def reading(gpu, joules, reason=None):
    return DeviceReading(
        device=Device(id=gpu, kind=DeviceKind.GPU, name="H100"),
        joules=None if reason else joules,
        source=Source.UNAVAILABLE if reason else Source.COUNTER,
        reason=reason,
        last_known_joules=joules,
    )


def push(replica, meter=10.0, opened=2.0, devices=()):
    metrics = MetricSet(labels(replica))
    metrics.inc("jouleserve_energy_joules", meter or 0.0, device="cpu", source="estimated")
    metrics.set("jouleserve_num_requests_running", 3)
    books = {
        "meter": meter,
        "attributed": 5.0,
        "open": opened,
        "idle": 4.0,
        "unattributed": 0.0,
        "prepaid": 1.0,
    }
    if meter is None:
        books = dict.fromkeys(books)
    return Push(
        deployment="d",
        replica=replica,
        model="m",
        families=families_of(metrics.registry),
        books=books,
        knobs={"max_num_active_seqs": 8, "num_running": 3, "num_waiting": 0},
        metered={} if meter is None else {"gpu": 0.75 * meter, "cpu": 0.25 * meter},
        devices=device_rows(devices),
    )


def law(energy):
    return (
        energy["attributed_joules"]
        + energy["open_joules"]
        + energy["idle_joules"]
        + energy["unattributed_joules"]
        - energy["prepaid_joules"]
    )


def test_totals_sum_over_replicas_and_obey_the_law():
    ledger = LedgerState()
    ledger.push(push("a"), 0.0)
    ledger.push(push("b"), 0.5)
    energy = ledger.energy(1.0)
    assert energy["meter_joules"] == 20.0 == law(energy)
    assert energy["num_replicas"] == 2


def test_a_dead_replica_keeps_its_joules_and_its_open_ones_become_unattributed():
    ledger = LedgerState()
    ledger.push(push("a"), 0.0)
    ledger.push(push("b"), 99.0)
    energy = ledger.energy(100.0)
    assert energy["num_replicas"] == 1
    assert energy["meter_joules"] == 20.0 == pytest.approx(law(energy))
    assert energy["unattributed_joules"] == pytest.approx(1.0)
    assert [r["replica"] for r in energy["replicas"]] == ["b"]


def test_unmetered_replicas_are_unknown_not_zero():
    ledger = LedgerState()
    ledger.push(push("a", meter=None), 0.0)
    assert ledger.energy(0.0)["meter_joules"] is None
    ledger.push(push("b"), 0.0)
    assert ledger.energy(0.0)["meter_joules"] == 10.0


def test_joules_by_kind_keep_those_of_replicas_that_are_gone():
    ledger = LedgerState()
    assert ledger.energy(0.0)["meter_joules_by_kind"] == {}
    ledger.push(push("a"), 0.0)
    ledger.push(push("b", meter=None), 99.0)
    ledger.push(push("c"), 99.0)
    energy = ledger.energy(100.0)
    assert energy["meter_joules_by_kind"] == {"gpu": 15.0, "cpu": 5.0}
    assert sum(energy["meter_joules_by_kind"].values()) == energy["meter_joules"]


def test_each_replica_names_its_devices_and_a_lost_one_keeps_what_it_had():
    ledger = LedgerState()
    devices = [reading("GPU-1", 7.0), reading("GPU-2", 3.0, "GPU is lost"), reading("GPU-3", None)]
    ledger.push(push("a", devices=devices), 0.0)
    (replica,) = ledger.energy(0.0)["replicas"]
    first, lost, silent = replica["devices"]
    assert first == {
        "id": "GPU-1", "kind": "gpu", "name": "H100", "joules": 7.0, "source": "counter", "reason": None,
    }  # fmt: skip
    assert (lost["joules"], lost["source"], lost["reason"]) == (3.0, "unavailable", "GPU is lost")
    assert silent["joules"] is None


def test_a_push_replaces_totals_it_does_not_add():
    ledger = LedgerState()
    ledger.push(push("a", meter=10.0), 0.0)
    ledger.push(push("a", meter=12.0), 1.0)
    assert ledger.energy(1.0)["meter_joules"] == 12.0


def families(ledger, now_s):
    return {f.name: f for f in text_string_to_metric_families(ledger.exposition(now_s).decode())}


def test_one_exposition_merges_replicas_and_drops_gauges_of_the_dead():
    ledger = LedgerState()
    ledger.push(push("a"), 0.0)
    ledger.push(push("b"), 99.0)
    found = families(ledger, 100.0)
    energy = found["jouleserve_energy_joules"].samples
    assert {s.labels["replica"]: s.value for s in energy} == {"a": 10.0, "b": 10.0}
    running = found["jouleserve_num_requests_running"].samples
    assert [s.labels["replica"] for s in running] == ["b"]


def test_the_exposition_holds_every_metric_once_and_no_creation_times():
    ledger = LedgerState()
    ledger.push(push("a"), 0.0)
    text = ledger.exposition(0.0).decode()
    assert "_created" not in text
    for spec in METRICS:
        name = f"{spec.name}_total" if spec.kind == "counter" else spec.name
        assert text.count(f"# TYPE {name} ") == 1, name


def test_gauges_can_be_taken_back_and_counters_never_fall():
    metrics = MetricSet(labels("a"))
    metrics.set("jouleserve_power_limit_watts", 300.0)
    metrics.set("jouleserve_power_limit_watts", None)
    metrics.set("jouleserve_power_limit_watts", None)
    assert metrics.registry.get_sample_value("jouleserve_power_limit_watts", labels("a")) is None
    for amount in (2.0, -5.0, float("nan"), float("inf"), 1.0):
        metrics.inc("jouleserve_output_tokens", amount)
    assert metrics.registry.get_sample_value("jouleserve_output_tokens_total", labels("a")) == 3.0


def test_the_gates_of_the_application_are_in_the_exposition():
    """Those of the ingress have no replica's push; a sleeping application keeps its ledger by them."""
    state = LedgerState()
    gate = {"application": "llm", "deployment": "OpenAiIngress", "replica": "i1"}

    def told(count):
        return [
            ("jouleserve_api_keys", "Keys.", "gauge", [("jouleserve_api_keys", gate, 2.0)]),
            ("jouleserve_http_refused_requests", "Refused.", "counter", [("jouleserve_http_refused_requests_total", gate, count)]),
        ]  # fmt: skip

    def values(now_s):
        text = state.exposition(now_s).decode()
        return {s.name: s.value for f in text_string_to_metric_families(text) for s in f.samples}

    assert state.last_push_s() is None
    state.gate("i1", told(3.0), 1.0)
    state.gate("i1", told(5.0), 2.0)
    assert values(3.0) == {
        "jouleserve_api_keys": 2.0,
        "jouleserve_http_refused_requests_total": 5.0,
    }
    assert values(60.0) == {"jouleserve_http_refused_requests_total": 5.0}
    assert state.last_push_s() == 2.0
    assert state.energy(3.0)["num_replicas"] == 0


def test_a_decision_of_a_replica_that_is_gone_is_not_in_force():
    ledger, now_s = told_ledger(3)
    assert [row["in_force"] for row in ledger.decisions(9, now_s)] == [True, True, False, False]
    later = ledger.decisions(9, now_s + 60.0)
    assert [(row["replica"], row["in_force"]) for row in later if row["in_force"]] == [(None, True)]
