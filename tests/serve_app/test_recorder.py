"""What the recorder counts, of books whose source of energy changes on the way."""

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from policies.core.energy import EnergyBooks
from serve_app.observers.metrics import MetricSet
from serve_app.observers.recorder import Recorder

LABELS = {"application": "llm", "deployment": "d", "replica": "r", "model": "m"}


def counted(metrics, name):
    return {
        (
            sample.labels["device"],
            sample.labels.get("source") or sample.labels["share"],
        ): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
        if sample.name == name
    }


def test_a_source_that_changes_counts_no_joule_twice():
    """Two GPUs, one with a counter and one integrated; the second is lost, then comes back."""
    metrics, books = MetricSet(LABELS), EnergyBooks(0.0)
    recorder = Recorder(metrics)
    for now_s, source in ((1.0, "integrated"), (2.0, "counter"), (3.0, "integrated")):
        books.close_window(now_s, {"gpu": 10.0}, {})
        recorder._books(books, {"gpu": source})
    energy = counted(metrics, "jouleserve_energy_joules_total")
    assert energy == {("gpu", "integrated"): 20.0, ("gpu", "counter"): 10.0}
    assert sum(energy.values()) == books.metered["gpu"]
    assert counted(metrics, "jouleserve_attributed_energy_joules_total")["gpu", "idle"] == 30.0
