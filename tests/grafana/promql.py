"""What an expression asks for: its selectors, and the labels that it groups and matches by."""

import re
from dataclasses import dataclass

import promql_parser as promql

_COUNTED = {"rate", "increase"}


@dataclass(frozen=True)
class Selector:
    """`name` with its matchers; `counted`: under rate() or increase()."""

    name: str
    matchers: tuple
    counted: bool

    def selects(self, name, labels):
        return name == self.name and all(_holds(one, labels) for one in self.matchers)


def _holds(matcher, labels):
    value, wanted, op = labels.get(matcher.name, ""), matcher.value, matcher.op
    same = re.fullmatch(wanted, value) is not None if "Re" in str(op) else value == wanted
    return same != ("Not" in str(op))


def read(expr):
    """(selectors, grouping labels) of an expression. ValueError where it is no PromQL."""
    selectors, labels = [], []
    _walk(promql.parse(expr), selectors, labels, function=None)
    return selectors, labels


def _walk(node, selectors, labels, function):
    if isinstance(node, promql.VectorSelector):
        matchers = tuple(node.matchers.matchers)
        selectors.append(Selector(node.name, matchers, function in _COUNTED))
        return
    modifier = getattr(node, "modifier", None)
    labels += getattr(modifier, "labels", None) or ()
    labels += getattr(getattr(modifier, "matching", None), "labels", None) or ()
    labels += getattr(modifier, "group_labels", None) or ()
    if isinstance(node, promql.Call):
        function = node.func.name
    for name in ("lhs", "rhs", "expr", "vector_selector"):
        if (child := getattr(node, name, None)) is not None:
            _walk(child, selectors, labels, function)
    for child in getattr(node, "args", ()):
        _walk(child, selectors, labels, function)
