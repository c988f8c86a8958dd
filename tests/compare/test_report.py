"""Ratios, verdicts, tables, and the folder they go to."""

from __future__ import annotations

import json
import subprocess

import pytest

from policies.core.errors import ConfigError
from serve_app.compare.options import CompareOptions, Part
from serve_app.compare.ratios import MEASURES, Verdict, all_ratios, ratio_of, verdict_of
from serve_app.compare.report import markdown, summary
from serve_app.compare.results import ResultFolder, require_markers, update_readme

RATE, TTFT, _ = MEASURES
HERE = ("overhead", 8)


def test_a_ratio_is_taken_within_each_round(row):
    """The machine halves its speed in round 2: both suffer, the ratio does not."""
    rows = [
        row("stock", number=1, rate=100.0),
        row("ours", number=1, rate=98.0),
        row("stock", number=2, rate=50.0),
        row("ours", number=2, rate=48.0),
        row("stock", number=3, rate=100.0),
        row("ours", number=3, rate=101.0),
        row("ours", number=4, rate=5.0),
    ]
    found = ratio_of(rows, RATE, ("ours", "stock"), HERE)
    assert (found.median, found.least, found.greatest) == (0.98, 0.96, 1.01)
    assert found.rounds == 3
    assert found.verdict is Verdict.WITHIN


def test_a_cell_with_a_failed_request_is_no_measurement(row):
    rows = [row("stock"), row("ours", rate=1000.0, completed=15)]
    assert ratio_of(rows, RATE, ("ours", "stock"), HERE).verdict is Verdict.MISSING


@pytest.mark.parametrize(
    ("ratios", "more_is_better", "verdict"),
    [
        ([0.96, 0.95, 0.97], True, Verdict.WITHIN),
        ([0.94, 0.94, 0.94], True, Verdict.WORSE),
        ([0.94, 0.90, 0.99], True, Verdict.UNDECIDED),
        ([1.06, 1.07, 1.2], True, Verdict.BETTER),
        ([1.06, 1.07, 1.2], False, Verdict.WORSE),
        ([1.06, 1.04, 1.2], False, Verdict.UNDECIDED),
        ([1.04, 1.03, 1.2], False, Verdict.WITHIN),
        ([0.9, 0.9, 1.2], False, Verdict.BETTER),
        ([], True, Verdict.MISSING),
    ],
)
def test_the_verdict_knows_which_way_is_good(ratios, more_is_better, verdict):
    assert verdict_of(ratios, more_is_better=more_is_better) is verdict


def test_parts_and_concurrencies_do_not_mix(row):
    rows = [
        *(row(s, concurrency=1, ttft=t) for s, t in (("stock", 0.1), ("ours", 0.1))),
        *(row(s, concurrency=8, ttft=t) for s, t in (("stock", 0.1), ("ours", 0.3))),
        *(row(s, part="direct", ttft=t) for s, t in (("stock", 0.1), ("ours", 0.2))),
    ]
    found = {(r.part, r.concurrency): r.median for r in all_ratios(rows) if r.measure == TTFT.key}
    assert found == {
        ("overhead", 1): 1.0,
        ("overhead", 8): pytest.approx(3.0),
        ("direct", 8): pytest.approx(2.0),
    }


def dynamic(system, **more):
    distribution = {"mean": 0.1, "p50": 0.1, "p99": 0.2}
    base = {
        "part": "dynamic",
        "system": system,
        "load": "burst 1 to 8",
        "requests": {"arrived": 10, "completed": 9, "failed": 1},
        "latency": {"ttft_s": distribution, "tpot_s": distribution},
        "slo": {"attainment_ratio": 0.9},
        "replicas": {"min": 1, "max": 2},
        "replica_seconds": 321.0,
        "joules": 1234.0,
        "joules_per_request": 137.1,
        "own_joules_per_request": None,
    }
    return {**base, **more}


def test_the_report_says_measured_what_is_bad_and_what_is_unknown(row):
    rows = [
        row("bare", rate=200.0),
        row("stock", cpu_s={"stock/engine": 4.0, "ray/proxy": 1.0, "ours/server": 9.0}),
        row("ours", rate=80.0, idle_app_cpu_s=1.0),
        dynamic("stock"),
        dynamic("ours", own_joules_per_request=130.0),
    ]
    text = markdown(rows, {"run_id": "r1", "machine": {"cpu": "x"}, "notes": ["a note"]})
    assert "# Comparison r1\n" in text
    assert text.count("(measured") >= 4
    ours = next(line for line in text.splitlines() if "JouleServe, active policy | 8 | 0.8" in line)
    assert "0.800 [0.800, 0.800]" in ours
    assert "throughput worse" in ours
    assert "| J/request, by its own meter | unavailable | 130.00 |" in text
    assert "| requests / completed / failed | 10 / 9 / 1 | 10 / 9 / 1 |" in text
    cpu = next(line for line in text.splitlines() if "stock ray.serve.llm | 4.00" in line)
    assert [cell.strip() for cell in cpu.split("|")][4:11] == [
        *("4.00", "0.00", "0.00", "1.00", "0.00", "0.00", "0.00")
    ]
    assert "| 10.0% |" in text
    assert "- a note" in text


def test_the_summary_is_only_ratios_to_stock_and_the_dynamic_run(row):
    text = "\n".join(summary([row("bare"), row("stock"), row("ours"), dynamic("ours")]))
    assert "bare vLLM" not in text
    assert "1.000 [1.000, 1.000]" in text
    assert "137.10" in text
    assert summary([]) == []


def test_a_folder_is_whole_after_every_row_and_is_added_to(tmp_path, row):
    folder = ResultFolder("r1", tmp_path)
    folder.begin(CompareOptions(parts=(Part.OVERHEAD,)))
    folder.add(row("stock"))
    folder.remark("slept well")
    path = tmp_path / "r1"
    assert len(json.loads((path / "rows.json").read_text())) == 1
    assert "(interrupted)" in (path / "report.md").read_text()
    folder.end()
    assert "(interrupted)" not in (path / "report.md").read_text()
    again = ResultFolder("r1", tmp_path)
    again.begin(CompareOptions(parts=(Part.DIRECT,)))
    again.add(row("ours", part="direct"))
    again.end()
    assert [r["part"] for r in json.loads((path / "rows.json").read_text())] == [
        "overhead",
        "direct",
    ]
    manifest = json.loads((path / "manifest.json").read_text())
    assert len(manifest["sessions"]) == 2
    session = manifest["sessions"][0]
    assert session["options"]["rounds"] == 3
    assert set(session["source"]) == {"commit", "dirty"}
    assert session["versions"]["ray"]
    assert session["machine"]["cores"] >= 1
    assert "slept well" in (path / "report.md").read_text()
    assert ResultFolder("r1", tmp_path).rounds_done("overhead") == {8: 1}


def test_the_commit_is_the_one_of_this_tree(tmp_path):
    folder = ResultFolder("r1", tmp_path)
    folder.begin(CompareOptions())
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    assert folder.manifest["sessions"][0]["source"]["commit"] == (head or None)


@pytest.mark.parametrize("name", ["../x", "", ".hidden", "a b"])
def test_a_run_id_is_a_folder_name(name, tmp_path):
    with pytest.raises(ConfigError, match="--run-id"):
        ResultFolder(name, tmp_path)


def test_the_readme_keeps_everything_around_the_block(tmp_path, row):
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- compare:begin -->\nold\n<!-- compare:end -->\nafter\n")
    rows = [row("stock"), row("ours", rate=97.0)]
    update_readme(readme, rows, tmp_path / "docs")
    first = readme.read_text()
    assert first.startswith("before\n<!-- compare:begin -->\n")
    assert first.endswith("<!-- compare:end -->\nafter\n")
    assert "0.970" in first
    assert "old" not in first
    update_readme(readme, rows, tmp_path / "docs")
    assert readme.read_text() == first


@pytest.mark.parametrize(
    "text",
    ["", "<!-- compare:begin -->", "<!-- compare:end --><!-- compare:begin -->"],
)
def test_a_readme_without_the_block_is_refused(text, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ConfigError, match="compare:begin"):
        require_markers(readme)
    with pytest.raises(ConfigError):
        require_markers(tmp_path / "missing.md")
