"""Writes the rule files of configs/prometheus as PrometheusRule objects of the Prometheus operator:
kustomize cannot put a file into an object's spec. `--check` fails when they are out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from serve_app.repository import REPOSITORY

SOURCE = REPOSITORY / "configs" / "prometheus"
TARGET = REPOSITORY / "configs" / "kubernetes" / "base" / "prometheus-rules.yaml"
HEAD = "# Generated from configs/prometheus by `make docs`; do not edit, `make check` compares.\n"


class _Dumper(yaml.SafeDumper):
    """Several lines stay several lines."""


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def rules(folder: Path = SOURCE) -> list[dict[str, Any]]:
    """One object for each file of the folder that holds rules, in the order of their names."""
    files = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in folder.glob("*.yaml")}
    names = sorted(
        name for name, file in files.items() if isinstance(file, dict) and "groups" in file
    )
    return [
        {
            "apiVersion": "monitoring.coreos.com/v1",
            "kind": "PrometheusRule",
            "metadata": {
                "name": name.replace(".", "-"),
                "labels": {"app.kubernetes.io/part-of": "jouleserve"},
            },
            "spec": {"groups": files[name]["groups"]},
        }
        for name in names
    ]


def render(folder: Path = SOURCE) -> str:
    """The whole file."""
    documents = (
        yaml.dump(rule, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
        for rule in rules(folder)
    )
    return HEAD + "---\n".join(documents)


def main() -> int:
    """0: written, up to date, or no rules to write; 1: out of date."""
    if not SOURCE.is_dir():
        return 0
    if "--check" in sys.argv[1:]:
        if TARGET.is_file() and TARGET.read_text("utf-8") == render():
            return 0
        print(f"{TARGET.name} is out of date: run `make docs`", file=sys.stderr)
        return 1
    TARGET.write_text(render(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
