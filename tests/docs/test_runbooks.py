"""docs/runbooks.md: what it tells somebody to type at night exists."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import promql_parser as promql
import pytest
import yaml
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "alerts"))

from rule_files import known, labels_of  # noqa: E402

from serve_app.cli.main import COMMANDS, app  # noqa: E402
from serve_app.settings import parse_live  # noqa: E402

PAGE = ROOT / "docs" / "runbooks.md"
SPANS = re.findall(r"`([^`]+)`", PAGE.read_text(encoding="utf-8"))
OURS = [span.split()[1:] for span in SPANS if span.startswith("jouleserve ")]


@pytest.mark.parametrize("name", sorted({words[0] for words in OURS}))
def test_commands_and_their_options_exist(name):
    assert name in COMMANDS
    wanted = {word for words in OURS if words[0] == name for word in words if word[:2] == "--"}
    shown = CliRunner().invoke(app, [name, "--help"], terminal_width=200, env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    assert wanted <= set(re.findall(r"--[\w-]+", shown.output))


QUERIES = [one for one in SPANS if "jouleserve_" in one and not one.startswith("grep ")]


@pytest.mark.parametrize("query", QUERIES)
def test_queries_read_what_is_exported(query):
    labels_of(promql.parse(query), known())


def test_live_settings_are_such():
    found = [span.partition(": ")[2] for span in SPANS if span.startswith("user_config: ")]
    assert found
    for text in found:
        parse_live(yaml.safe_load(text), "runbook")
