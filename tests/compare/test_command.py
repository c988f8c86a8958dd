"""`jouleserve compare` as a user meets it, with the measuring itself replaced."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from typer.testing import CliRunner

from policies.core.errors import ConfigError, EngineError
from serve_app.cli.compare import app
from serve_app.cli.main import COMMANDS
from serve_app.compare.options import CompareOptions, Part, parse_concurrency, parse_parts


@pytest.fixture
def compare(monkeypatch, tmp_path, row):
    """Run the command in an empty folder; `measured(options, folder, say)` is the measuring."""
    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    calls = []

    def run(*arguments, measured=None):
        def fake(options, folder, say):
            calls.append(options)
            folder.begin(options)
            say("working")
            if measured is not None:
                measured(folder)
            else:
                folder.add(row("stock"))
                folder.add(row("ours", rate=97.0))
            folder.end()

        monkeypatch.setattr("serve_app.compare.run.compare", fake)
        return CliRunner().invoke(app, arguments), calls

    yield run
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def test_the_command_is_listed():
    assert COMMANDS["compare"].module == "serve_app.cli.compare"


def test_json_is_one_document_and_the_folder_is_written(compare):
    result, (options,) = compare("--parts", "direct,overhead", "--run-id", "r", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["run_id"] == "r"
    assert document["ratios"][0]["median"] == 0.97
    assert "working" in result.stderr
    assert options.parts == (Part.OVERHEAD, Part.DIRECT)
    assert {p.name for p in Path("docs/results/r").iterdir()} == {
        *("manifest.json", "rows.json", "report.md")
    }


def test_people_get_the_tables(compare):
    result, _ = compare("--run-id", "r")
    assert "0.970 [0.970, 0.970]" in result.stdout
    assert "written to docs/results/r" in result.stdout


def test_a_failed_request_or_system_is_exit_status_1(compare, row):
    result, _ = compare(measured=lambda f: f.add(row("ours", errors={"http_503": 1})))
    assert result.exit_code == 1

    def dies(_folder):
        raise EngineError("ray ended with status 1")

    result, _ = compare("--run-id", "d", measured=dies)
    assert result.exit_code == 1
    assert "ray ended with status 1" in result.stderr
    assert "(interrupted)" in Path("docs/results/d/report.md").read_text()


def test_the_readme_is_checked_before_anything_is_measured(compare):
    result, calls = compare("--update-readme")
    assert isinstance(result.exception, ConfigError)
    assert calls == []
    Path("README.md").write_text("<!-- compare:begin -->\n<!-- compare:end -->")
    result, _ = compare("--update-readme", "--run-id", "r")
    assert result.exit_code == 0
    assert "(docs/results/r/report.md)" in Path("README.md").read_text()


def test_quick_is_smaller_in_everything_and_the_same_otherwise(compare):
    _, (quick,) = compare("--quick", "--parts", "overhead", "--seed", "3", "--stock-target", "2")
    full = CompareOptions(parts=(Part.OVERHEAD,), seed=3, stock_targets=(2.0,))
    assert (quick.rounds, quick.concurrency, quick.seed) == (1, (1, 8), 3)
    assert quick.output_tokens < full.output_tokens
    assert quick.cell_s < full.cell_s
    assert quick.duration_s < full.duration_s
    assert (quick.parts, quick.stock_targets) == (full.parts, full.stock_targets)


@pytest.mark.parametrize("text", ["", "fast", "overhead,fast"])
def test_unknown_parts_are_refused_with_the_choices(text):
    with pytest.raises(ConfigError, match="overhead, direct, dynamic"):
        parse_parts(text)


@pytest.mark.parametrize("text", ["", "0", "1,x", "4,4"])
def test_concurrency_is_a_list_of_counts(text):
    with pytest.raises(ConfigError, match="--concurrency"):
        parse_concurrency(text)


@pytest.mark.parametrize(
    ("option", "value"),
    [("rounds", 0), ("output_tokens", 1), ("cell_s", 0.0), ("duration_s", float("nan"))],
)
def test_numbers_out_of_range_are_refused(option, value):
    with pytest.raises(ConfigError, match="--"):
        CompareOptions(**{option: value})
