"""Writes tests/data/grafana/schema.json anew from Grafana's own types. Needs node and npm.

    python tests/grafana/make_schema.py

The types are those of the npm package @grafana/schema (Apache-2.0), which Grafana generates for
each release; ts-json-schema-generator (MIT) makes them JSON Schema, draft 7.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

GRAFANA, GENERATOR = "@grafana/schema@13.2.3", "ts-json-schema-generator@2.3.0"
TARGET = Path(__file__).parents[1] / "data" / "grafana" / "schema.json"
RAW = "node_modules/@grafana/schema/dist/types/raw"
PLUGINS = {
    "timeseries": "timeseries",
    "stat": "stat",
    "heatmap": "heatmap",
    "state-timeline": "statetimeline",
}
WITHOUT_CUSTOM = {"stat"}


def run(folder, *command):
    subprocess.run(command, cwd=folder, check=True, stdout=sys.stderr)


def schema_of(folder, path, name):
    """One type as JSON Schema, without the prose."""
    run(
        folder, "npx", "ts-json-schema-generator", "--path", f"{RAW}/{path}/x/types.gen.d.ts",
        "--type", name, "--no-type-check", "-o", "out.json",
    )  # fmt: skip
    return without_prose(json.loads((folder / "out.json").read_text()))


def without_prose(node):
    if isinstance(node, list):
        return [without_prose(item) for item in node]
    if not isinstance(node, dict):
        return node
    prose = isinstance(node.get("description"), str)
    return {k: without_prose(v) for k, v in node.items() if not (prose and k == "description")}


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(folder, "npm", "init", "-y")
        run(folder, "npm", "install", GRAFANA, GENERATOR)
        made = {
            "$comment": f"Made by tests/grafana/make_schema.py from {GRAFANA} (Apache-2.0, "
            "Copyright Grafana Labs) with " + GENERATOR,
            "dashboard": schema_of(folder, "dashboard", "Dashboard"),
            "options": {
                panel: schema_of(folder, f"composable/{plugin}/panelcfg", "Options")
                for panel, plugin in PLUGINS.items()
            },
            "custom": {
                panel: schema_of(folder, f"composable/{plugin}/panelcfg", "FieldConfig")
                for panel, plugin in PLUGINS.items()
                if panel not in WITHOUT_CUSTOM
            },
        }
    TARGET.write_text(json.dumps(made, separators=(",", ":"), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
