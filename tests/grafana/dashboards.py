"""The shipped dashboards, and what they ask Prometheus."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "configs" / "grafana"
FILES = sorted(FOLDER.glob("*.json"))
# What Grafana puts in for its own variables; ranges that a test waits for.
BUILT_IN = {"$__rate_interval": "2s", "$__range": "4s", "$__interval": "1s"}
_VARIABLE = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True)
class Query:
    """One `expr` of a panel, with every variable replaced as for "All"."""

    dashboard: str
    panel: str
    expr: str
    legend: str

    def __str__(self):
        return f"{self.dashboard}: {self.panel}: {self.legend}"


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


def panels(dashboard):
    """All panels, rows included."""
    return [one for panel in dashboard["panels"] for one in (panel, *panel.get("panels", ()))]


def graphs(dashboard):
    return [panel for panel in panels(dashboard) if panel["type"] != "row"]


def variables(dashboard):
    return {one["name"]: one for one in dashboard["templating"]["list"]}


def replaced(text, dashboard):
    """`text` as Grafana would send it; KeyError for a variable that there is none of."""
    for name, value in BUILT_IN.items():
        text = text.replace(name, value)
    known = variables(dashboard)
    return _VARIABLE.sub(lambda found: known[found[1]].get("allValue", found[0]), text)


def queries():
    return [
        Query(path.stem, panel["title"], replaced(target["expr"], board), target["legendFormat"])
        for path in FILES
        for board in (load(path),)
        for panel in graphs(board)
        for target in panel["targets"]
    ]
