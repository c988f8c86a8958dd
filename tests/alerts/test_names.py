"""Every metric and label that a rule or a dashboard reads is one that the service exports."""

from __future__ import annotations

import json
import re

import promql_parser as promql
import pytest
from rule_files import ROOT, RULE_FILES, exported, known, labels_of, names, rules

DASHBOARDS = sorted((ROOT / "configs" / "grafana").rglob("*.json"))
RAYS_PREFIX = "ray_"
# What others export beside us; their labels are theirs.
OTHERS = re.compile(r"(vllm:|ray_(?!jouleserve)|DCGM_|node_|ALERTS)")


def test_rules_read_what_is_exported_or_recorded():
    assert len(RULE_FILES) == 3
    for rule in rules():
        labels_of(promql.parse(rule.expr), known())


@pytest.mark.parametrize(
    ("expr", "fault"),
    [
        ("rate(jouleserve_energy_joules[5m])", "no such metric"),  # counters end in _total
        ("jouleserve_replicas_total", "no such metric"),
        ("jouleserve:joules_per_request:rate5m", "no such metric"),
        ('jouleserve_slo_requests_total{outcome="stop"}', "no label"),
        ("sum by (devise) (jouleserve_power_watts)", "no label"),
        ("sum by (application, deployment) (up)", "no label"),
        ("max by (replica) (jouleserve_replicas)", "no label"),
        ("histogram_quantile(0.9, rate(jouleserve_request_energy_joules_sum[5m]))", "no label"),
        ("jouleserve_power_watts / jouleserve_power_limit_watts", "never matches"),
        ("jouleserve_replicas and jouleserve_slo_objective_ratio", "never matches"),
        ("jouleserve_replicas > on (replica) jouleserve_max_replicas", "no label"),
    ],
)
def test_the_check_finds(expr, fault):
    with pytest.raises(AssertionError, match=fault):
        labels_of(promql.parse(expr), known())


def expressions(node: object) -> list[str]:
    """Every PromQL query of a dashboard."""
    if isinstance(node, list):
        return [one for child in node for one in expressions(child)]
    if not isinstance(node, dict):
        return []
    found = [one for child in node.values() for one in expressions(child)]
    if isinstance(node.get("expr"), str) and node["expr"].strip():
        found.append(node["expr"])
    if isinstance(node.get("definition"), str):  # of a variable: label_values(series, label)
        asked = re.fullmatch(
            r"label_values\((?:(.*),)?\s*(\w+)\s*\)", node["definition"], re.DOTALL
        )
        if asked and asked[1]:
            found.append(f"count by ({asked[2]}) ({asked[1]})")
    return found


def without_variables(expr: str) -> str:
    """With something in the place of Grafana's variables."""
    expr = re.sub(r"(?<=[\[:])\$\{?\w+\}?(?=[\]:])", "5m", expr)
    expr = re.sub(r"\$\{?__(?:rate_)?(?:interval|range)(?:_s|_ms)?\}?", "60", expr)
    return re.sub(r"\$\{?\w+(?::\w+)?\}?", "1", expr)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.name)
def test_dashboards_read_what_is_exported_or_recorded(file):
    series = dict(known())
    for name, labels in exported().items():
        series[f"{RAYS_PREFIX}{name}"] = labels
    asked = [without_variables(one) for one in expressions(json.loads(file.read_text()))]
    assert asked
    for expr in asked:
        ours = {name for name in names(expr) if not OTHERS.match(name)}
        assert ours <= series.keys(), f"{expr}: no {sorted(ours - series.keys())}"
        if ours == names(expr):
            labels_of(promql.parse(expr), series)


def test_queries_are_found_in_a_dashboard():
    panel = {
        "targets": [{"expr": 'sum by (model) (rate(x_total{model=~"$model"}[$__rate_interval]))'}]
    }
    variable = {"definition": "label_values(jouleserve_replicas, application)"}
    found = expressions({"panels": [{"panels": [panel]}], "templating": {"list": [variable]}})
    assert [without_variables(one) for one in found] == [
        'sum by (model) (rate(x_total{model=~"1"}[5m]))',
        "count by (application) (jouleserve_replicas)",
    ]
    assert (
        without_variables("topk($n, x[${window}:$step]) * $__range_s") == "topk(1, x[5m:5m]) * 60"
    )
