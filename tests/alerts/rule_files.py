"""The shipped rules, what they read, and which labels their results have."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import promql_parser as promql
import yaml

from serve_app.observers.fleet_metrics import FLEET_LABELS, FLEET_METRICS
from serve_app.observers.gate_metrics import GATE_LABELS, GATE_METRICS
from serve_app.observers.metrics import BASE_LABELS, METRICS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "prometheus"
RULE_FILES = sorted(FOLDER.glob("jouleserve.*.yaml"))
TARGET = frozenset({"job", "instance"})  # Prometheus gives them to all that it scrapes


@dataclass(frozen=True)
class Rule:
    """One rule; `static`: the labels that it adds."""

    name: str
    expr: str
    is_alert: bool
    static: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


@cache
def rules() -> tuple[Rule, ...]:
    groups = [g for file in RULE_FILES for g in yaml.safe_load(file.read_text())["groups"]]
    return tuple(
        Rule(
            name=one.get("alert") or one["record"],
            expr=str(one["expr"]),
            is_alert="alert" in one,
            static=one.get("labels", {}),
            annotations=one.get("annotations", {}),
        )
        for group in groups
        for one in group["rules"]
    )


@cache
def exported() -> dict[str, frozenset[str]]:
    """Every series that the service exports, with its labels."""
    series = {}
    every = (BASE_LABELS, METRICS), (FLEET_LABELS, FLEET_METRICS), (GATE_LABELS, GATE_METRICS)
    for base, specs in every:
        for spec in specs:
            labels = frozenset((*base, *spec.labels)) | TARGET
            if spec.kind == "counter":
                series[f"{spec.name}_total"] = labels
            elif spec.kind == "gauge":
                series[spec.name] = labels
            else:
                series[f"{spec.name}_bucket"] = labels | {"le"}
                series[f"{spec.name}_sum"] = series[f"{spec.name}_count"] = labels
    return series


@cache
def known() -> dict[str, frozenset[str]]:
    """`exported`, what Prometheus adds, and what the rules record."""
    series = {**exported(), "up": TARGET}
    waiting = {rule.name: rule.expr for rule in rules() if not rule.is_alert}
    while waiting:  # a rule may stand before one that it reads
        ready = [name for name, expr in waiting.items() if not names(expr) & waiting.keys()]
        assert ready, f"rules that read each other: {sorted(waiting)}"
        for name in ready:
            series[name] = labels_of(promql.parse(waiting.pop(name)), series)
    return series


def names(expr: str) -> set[str]:
    """The names of all series that an expression reads."""
    found = set()

    def visit(node: object) -> bool:
        if isinstance(node, promql.VectorSelector):
            found.add(node.name)
        return True

    promql.walk(promql.parse(expr), visit)
    return found


def raw_names(expr: str) -> set[str]:
    """The same, with recorded series replaced by what they read."""
    recorded = {rule.name: rule.expr for rule in rules() if not rule.is_alert}
    found: set[str] = set()
    for name in names(expr):
        found |= raw_names(recorded[name]) if name in recorded else {name}
    return found


def labels_of(node: object, series: dict[str, frozenset[str]]) -> frozenset[str]:
    """The labels that the result of an expression can have. Fails for a series that is not in
    `series`, and for a label that what is aggregated, matched or joined does not have."""
    match node:
        case promql.VectorSelector():
            return _selected(node, series)
        case promql.MatrixSelector():
            return _selected(node.vector_selector, series)
        case promql.SubqueryExpr() | promql.ParenExpr() | promql.UnaryExpr():
            return labels_of(node.expr, series)
        case promql.AggregateExpr():
            return _aggregated(node, series)
        case promql.BinaryExpr():
            return _joined(node, series)
        case promql.Call():
            return _called(node, series)
    return frozenset()  # a number or a string


def _selected(node, series):
    assert node.name in series, f"{node.name}: no such metric and no such rule"
    matchers = [
        *node.matchers.matchers,
        *(one for some in node.matchers.or_matchers for one in some),
    ]
    _must_have(series[node.name], {one.name for one in matchers}, node)
    return series[node.name]


def _aggregated(node, series):
    inner = labels_of(node.expr, series)
    labels = set(node.modifier.labels) if node.modifier else set()
    _must_have(inner, labels, node)
    if node.modifier and node.modifier.type == promql.AggModifierType.Without:
        return inner - labels
    return inner if str(node.op) in {"topk", "bottomk"} else frozenset(labels)


def _joined(node, series):
    left, right = labels_of(node.lhs, series), labels_of(node.rhs, series)
    if _is_scalar(node.lhs) or _is_scalar(node.rhs):
        return left | right
    matching = node.modifier.matching if node.modifier else None
    named = frozenset(matching.labels if matching else ())
    on = matching is not None and matching.type == promql.LabelModifierType.Include
    card = str(node.modifier.card if node.modifier else "").rpartition(".")[2]
    joins = card in {"ManyToOne", "OneToMany"}
    _must_have(left & right, named, node)
    if str(node.op) == "or":
        return left | right
    apart = (left ^ right) - named
    assert on or joins or not apart, f"{node}: never matches, {sorted(apart)} are on one side only"
    if str(node.op) in {"and", "unless"}:
        return left
    if joins:
        many = left if card == "ManyToOne" else right
        return many | frozenset(node.modifier.group_labels or ())
    return named if on else (left & right) - named


def _called(node, series):
    name = node.func.name
    if name == "label_replace":
        return labels_of(node.args[0], series) | {node.args[1].val}
    inner = frozenset().union(*(labels_of(one, series) for one in node.args))
    if name == "histogram_quantile":
        _must_have(inner, {"le"}, node)
        return inner - {"le"}
    return frozenset() if name in {"scalar", "vector", "time"} else inner


def _must_have(there, labels, node):
    missing = labels - there
    assert not missing, f"{node}: no label {sorted(missing)}; there are {sorted(there)}"


def _bare(node):
    while isinstance(node, promql.ParenExpr | promql.UnaryExpr):
        node = node.expr
    return node


def _is_scalar(node):
    node = _bare(node)
    if isinstance(node, promql.Call):
        return node.func.name in {"scalar", "time", "pi"}
    if isinstance(node, promql.BinaryExpr):
        return _is_scalar(node.lhs) and _is_scalar(node.rhs)
    return isinstance(node, promql.NumberLiteral)


def in_text(text: str) -> set[str]:
    """The series that a template asks for."""
    return set(re.findall(r"jouleserve[_:][\w:]+", text))
