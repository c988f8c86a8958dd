"""The command that plays a week: a small piece of it, and its page."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from serve_app.simulator import scale
from serve_app.simulator.bench import main
from serve_app.traces.load import TraceOptions, load_trace

pytestmark = pytest.mark.slow  # compiling takes half a minute where it is done anew
PIECE_S = 600.0


@pytest.fixture(scope="module")
def pieces():
    return [scale.scale(3, PIECE_S), scale.scale(20, PIECE_S)]


def test_every_request_of_the_trace_is_played(pieces):
    blocks = list(load_trace(scale.TRACE, TraceOptions(duration_s=PIECE_S)).blocks())
    for one in pieces:
        assert one.requests == sum(block.rows for block in blocks)
        assert one.output_tokens == sum(int(block.output_tokens.sum()) for block in blocks)
        assert one.cpu_s > 0.0
        assert one.peak_mib > 50.0
    few, many = pieces
    assert few.idle_joules_ratio < many.idle_joules_ratio < 1.0


def test_the_week_is_16_8_million_requests():
    assert load_trace(scale.TRACE).duration_s == scale.WEEK_S
    assert load_trace(scale.TRACE).expected_requests == pytest.approx(16.8e6, rel=0.01)
    assert {length_s for _, length_s in scale.FLEETS} == {scale.DAY_S, scale.WEEK_S}


def test_the_page_holds_the_rows_and_the_growth(pieces, tmp_path):
    day = replace(pieces[0], simulated_s=scale.DAY_S, peak_mib=200.0)
    week = replace(day, simulated_s=scale.WEEK_S, requests=7 * day.requests, peak_mib=203.0)
    scale.write([day, week], tmp_path, "COMMAND")
    page = (tmp_path / "report.md").read_text()
    assert "Made by `COMMAND`" in page
    assert "- 3 replicas: 7.0 times the requests, +3.0 MiB of peak memory." in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert len(rows) == 4
    held = json.loads((tmp_path / "result.json").read_text())
    assert [run["requests"] for run in held["runs"]] == [day.requests, week.requests]


def test_a_folder_without_the_week_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--out", "folder"])
    assert "--out goes with --week" in capsys.readouterr().err
