"""The shipped rules: promtool finds no fault, and each alert has been seen to fire and to be quiet."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import promql_parser as promql
import pytest
import yaml
from monitoring_tools import need, promtool
from rule_files import FOLDER, ROOT, RULE_FILES, Rule, in_text, known, labels_of, raw_names, rules

HERE = Path(__file__).parent
TEST_FILES = sorted(HERE.glob("*.test.yaml"))
ALERTS = [rule for rule in rules() if rule.is_alert]
SEVERITIES = {"critical", "warning", "info"}


def each(alert: Rule) -> str:
    return "-".join([alert.name, *filter(None, [alert.static.get("long_window")])])


def test_promtool_finds_no_fault_in_the_rules():
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", *RULE_FILES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("SUCCESS") == len(RULE_FILES) == 3


def test_promtool_and_amtool_find_no_fault_in_the_examples():
    done = promtool("check", "config", "--lint=all", FOLDER / "prometheus.example.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 rule files found" in done.stdout
    command = [need("amtool"), "check-config", FOLDER / "alertmanager.example.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", TEST_FILES, ids=lambda file: file.name.partition(".")[0])
def test_alerts_fire_and_are_quiet(file):
    done = promtool("test", "rules", file.name, cwd=HERE)
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def expectations() -> list[tuple[str, set[str], list[dict[str, dict[str, str]]]]]:
    """Of every question of the promtool tests: the alert, the metrics that there were, the answer."""
    cases = [case for file in TEST_FILES for case in yaml.safe_load(file.read_text())["tests"]]
    return [
        (one["alertname"], there, one["exp_alerts"])
        for case in cases
        for there in [{one["series"].partition("{")[0] for one in case["input_series"]}]
        for one in case["alert_rule_test"]
    ]


@pytest.mark.parametrize("alert", ALERTS, ids=each)
def test_each_alert_is_tested_firing_and_quiet(alert):
    """Quiet counts only where all that the alert reads was there."""
    static = alert.static.items()
    asked = [(there, told) for name, there, told in expectations() if name == alert.name]
    fires = [any(static <= one["exp_labels"].items() for one in told) for _, told in asked]
    assert any(fires), "never seen to fire"
    needs = raw_names(alert.expr) - {"up"} or {"up"}
    whole = [needs <= there for there, _ in asked]
    quiet = [not fired and full for fired, full in zip(fires, whole, strict=True)]
    assert any(quiet), f"never seen quiet with {sorted(needs)} there"


def test_no_template_fails():
    said = [
        text
        for _, _, told in expectations()
        for one in told
        for text in one["exp_annotations"].values()
    ]
    assert said
    assert not [text for text in said if re.search(r"<error|<no value>|%!|NaN", text)]


@pytest.mark.parametrize("alert", ALERTS, ids=each)
def test_each_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do(alert):
    assert alert.static["severity"] in SEVERITIES
    assert set(alert.annotations) == {"summary", "description", "runbook_url"}
    page, _, anchor = alert.annotations["runbook_url"].partition("#")
    assert anchor == alert.name.lower()
    headings = re.findall(r"^## (.+)$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in [heading.lower() for heading in headings]


def test_each_runbook_belongs_to_an_alert():
    text = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == list(dict.fromkeys(alert.name for alert in ALERTS))


@pytest.mark.parametrize("alert", ALERTS, ids=each)
def test_each_alert_tells_labels_and_values_that_there_are(alert):
    there = labels_of(promql.parse(alert.expr), known())  # static labels are not in $labels
    for text in alert.annotations.values():
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= there
        assert in_text(text) - {"jouleserve.settings"} <= known().keys()
