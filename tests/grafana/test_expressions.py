"""Every expression is PromQL, over metrics and labels that there are."""

import pytest
from dashboards import queries
from prometheus_client.parser import text_string_to_metric_families
from promql import read
from served_replicas import Application

from serve_app.observers.fleet_metrics import FLEET_LABELS, FLEET_METRICS
from serve_app.observers.gate_metrics import GATE_LABELS, GATE_METRICS
from serve_app.observers.metrics import BASE_LABELS, METRICS

HISTOGRAM = {"_bucket": ("le",), "_sum": (), "_count": ()}


def series(specs, base):
    """name → (labels, whether it is a counter) as Prometheus sees them."""
    found = {}
    for spec in specs:
        labels = {*base, *spec.labels}
        if spec.kind == "histogram":
            found |= {
                spec.name + end: (labels | set(more), True) for end, more in HISTOGRAM.items()
            }
        else:
            counter = spec.kind == "counter"
            found[spec.name + "_total" * counter] = (labels, counter)
    return found


KNOWN = {
    **series(METRICS, BASE_LABELS),
    **series(FLEET_METRICS, FLEET_LABELS),
    **series(GATE_METRICS, GATE_LABELS),
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    application = Application(tmp_path_factory.mktemp("no_powercap"))
    try:
        text = application.exposition().decode()
    finally:
        application.close()
    return [
        (sample.name, sample.labels)
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    ]


@pytest.mark.parametrize("query", queries(), ids=str)
def test_an_expression_uses_metrics_and_labels_that_there_are(query):
    selectors, grouped = read(query.expr)
    allowed = set()
    for one in selectors:
        assert one.name in KNOWN, one.name
        labels, counter = KNOWN[one.name]
        assert {matcher.name for matcher in one.matchers} <= labels
        assert one.counted == counter, f"{one.name}: counters are rated, gauges are not"
        allowed |= labels
    assert set(grouped) <= allowed


def test_each_selector_alone_finds_something(samples):
    """A label's value that nobody writes would hide behind an `or`."""
    selectors = {str(query): read(query.expr)[0] for query in queries()}
    blind = {
        query: one
        for query, asked in selectors.items()
        for one in asked
        if not any(one.selects(name, labels) for name, labels in samples)
    }
    assert blind == {}


def test_the_exposition_has_all_metrics(samples):
    shown = {name for name, _ in samples}
    assert {name for name in KNOWN if not name.endswith(("_sum", "_count"))} <= shown


@pytest.mark.parametrize("wrong", ["sum(rate(x[5m])", "rate(x)", "sum by (a) of x"])
def test_what_is_no_promql_is_refused(wrong):
    with pytest.raises(ValueError):
        read(wrong)
