"""Writes docs/metrics.md from the metric table; `--check` fails when the file is out of date."""

from __future__ import annotations

import sys
from pathlib import Path

from serve_app.observers.fleet_metrics import FLEET_LABELS, FLEET_METRICS
from serve_app.observers.gate_metrics import GATE_LABELS, GATE_METRICS
from serve_app.observers.metrics import BASE_LABELS, METRICS, MetricSpec

PATH = Path(__file__).resolve().parents[2] / "docs" / "metrics.md"


def render() -> str:
    """The whole page."""
    base = ", ".join(f"`{label}`" for label in BASE_LABELS)
    lines = [
        "# Metrics",
        "",
        "Generated from `serve_app/observers/metrics.py` by `make docs`; `make check` compares.",
        "",
        "Every metric is served twice: at `/metrics` (and `/jouleserve/metrics`) of the",
        "application under the name below, and in Ray's metrics pipeline with Ray's prefix `ray_`.",
        f"Labels of every metric: {base}; some have more.",
        "A value that is not known is an absent series, never 0.",
        "",
        "| name | type | more labels | meaning |",
        "|---|---|---|---|",
        *(_row(spec) for spec in METRICS),
        "",
        "## Of the fleet",
        "",
        "From the decisions in Ray's controller, only at `/metrics`. Labels of every metric: "
        + ", ".join(f"`{label}`" for label in FLEET_LABELS)
        + ".",
        "",
        "| name | type | more labels | meaning |",
        "|---|---|---|---|",
        *(_row(spec) for spec in FLEET_METRICS),
        "",
        "## Of the gate",
        "",
        "From the door of the HTTP API ([security](security.md)), only at `/metrics`. Labels of "
        "every metric: " + ", ".join(f"`{label}`" for label in GATE_LABELS) + ".",
        "",
        "| name | type | more labels | meaning |",
        "|---|---|---|---|",
        *(_row(spec) for spec in GATE_METRICS),
        "",
    ]
    return "\n".join(lines)


def _row(spec: MetricSpec) -> str:
    name = f"{spec.name}_total" if spec.kind == "counter" else spec.name
    labels = ", ".join(f"`{label}`" for label in spec.labels)
    return f"| `{name}` | {spec.kind} | {labels} | {spec.help} |"


def main() -> int:
    """0: written, or up to date; 1: out of date."""
    if "--check" in sys.argv[1:]:
        if PATH.is_file() and PATH.read_text(encoding="utf-8") == render():
            return 0
        print(f"{PATH.name} is out of date: run `make docs`", file=sys.stderr)
        return 1
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
