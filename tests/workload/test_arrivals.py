"""How requests arrive: rates, burstiness and the shape of the day, from every kind of trace."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from log_rows import START, row

from policies.core.errors import ConfigError
from policies.sim.trace import BurstShape, Lengths, burst, poisson
from serve_app.request_log.row import ENCODER
from serve_app.workload.arrivals import arrivals_of, day_shape, rates_over_time
from serve_app.workload.describe import describe
from serve_app.workload.energy import EnergyQuestion
from serve_app.workload.source import read_workload

PUBLIC_TRACES = Path(os.environ.get("JOULESERVE_TEST_DATA", "")) / "traces"
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
LENGTHS = Lengths.constant(100, 20)


def workload(folder, lines, name="trace.csv"):
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return read_workload(path)


def csv_of(rows):
    return [HEADER, *(f"{r.arrival_s:.9f},{r.prompt_tokens},{r.output_tokens}" for r in rows)]


def test_poisson_arrivals_have_a_cv_and_a_dispersion_near_one(tmp_path):
    found = arrivals_of(workload(tmp_path, csv_of(poisson(10.0, 3600.0, LENGTHS, seed=1))))
    assert found.mean_per_s == pytest.approx(10.0, rel=0.02)
    assert found.interarrival_cv == pytest.approx(1.0, abs=0.03)
    assert list(found.dispersion) == ["1", "10", "60"]
    assert found.dispersion["1"] == pytest.approx(1.0, abs=0.1)
    assert found.dispersion["60"] == pytest.approx(1.0, abs=0.6)
    assert found.p50_per_s <= found.p90_per_s <= found.p99_per_s <= found.peak_per_s


def test_bursts_are_well_above_one_and_more_so_in_longer_windows(tmp_path):
    shape = BurstShape(base_rate_per_s=0.2, peak_rate_per_s=20.0, period_s=300.0)
    found = arrivals_of(workload(tmp_path, csv_of(burst(shape, 3600.0, LENGTHS, seed=1))))
    assert found.interarrival_cv > 2.5
    assert found.dispersion["60"] > found.dispersion["10"] > found.dispersion["1"] > 5
    assert found.peak_to_mean_ratio > 2.5


def test_a_clockwork_has_neither(tmp_path):
    found = arrivals_of(workload(tmp_path, [HEADER, *(f"{k},1,1" for k in range(601))]))
    assert found.interarrival_cv == pytest.approx(0.0)
    assert found.dispersion["10"] == pytest.approx(0.0, abs=0.01)
    assert found.mean_per_s == pytest.approx(1.0, rel=0.01)
    assert found.peak_per_s == pytest.approx(1.0, rel=0.02)


def test_what_a_short_trace_cannot_say_is_not_known(tmp_path):
    found = arrivals_of(workload(tmp_path, [HEADER, "5,1,1"]))
    assert (found.requests, found.span_s) == (1, 0.0)
    assert found.mean_per_s is found.peak_per_s is found.interarrival_cv is None
    assert found.dispersion == {}
    short = arrivals_of(workload(tmp_path, [HEADER, "5,1,1", "6,1,1", "9,1,1"]))
    assert short.mean_per_s == pytest.approx(0.75)
    assert short.peak_per_s is short.p50_per_s is None


def test_every_arrival_is_in_the_rate_over_time(tmp_path):
    found = workload(tmp_path, csv_of(poisson(3.0, 600.0, LENGTHS, seed=4)))
    over_time = rates_over_time(found, found.end_s / 7)
    assert len(over_time.edges_s) == 8
    counts = over_time.rates_per_s * np.diff(over_time.edges_s)
    assert counts.sum() == pytest.approx(len(found.arrivals_s))


def test_the_day_counts_only_the_time_that_the_trace_spends_in_an_hour(tmp_path):
    """18:45 to 19:30 with one request a minute, then two: 1/60 and 2/60 per second."""
    start = datetime(2026, 11, 20, 18, 45, tzinfo=UTC)
    minutes = [*range(15), *(15 + k / 2 for k in range(60)), 45]
    lines = [f"{start + timedelta(minutes=m):%Y-%m-%d %H:%M:%S},1,1" for m in minutes]
    day = day_shape(workload(tmp_path, [HEADER, *lines[40:], *lines[:40]]))
    assert day.clock == "UTC"
    assert day.every_day[18] == pytest.approx(1 / 60)
    assert day.every_day[19] == pytest.approx(2 / 60, rel=0.02)
    assert [hour for hour, rate in enumerate(day.every_day) if rate is not None] == [18, 19]
    assert day.weekday is day.weekend is None


def test_weekdays_and_weekends_are_told_apart_where_there_are_both(tmp_path):
    """Friday from 12:00 to Sunday 12:00, in 30-minute rows: 4/s on Friday, 1/s at the weekend."""
    friday = datetime(2026, 11, 20, 12, tzinfo=UTC)
    times = [friday + timedelta(minutes=30 * k) for k in range(96)]
    lines = [
        f"{time:%Y-%m-%dT%H:%M:%SZ},{30 * k},{4 if time.weekday() < 5 else 1}"
        for k, time in enumerate(times)
    ]
    found = workload(tmp_path, ["timestamp_utc,minute,rps", *lines])
    day = day_shape(found)
    assert day.weekday == (*[None] * 12, *[pytest.approx(4.0)] * 12)
    assert day.weekend == tuple([pytest.approx(1.0)] * 24)
    assert day.every_day[13] == pytest.approx((4 + 1) / 2)
    arrivals = arrivals_of(found)
    assert arrivals.mean_per_s == pytest.approx((12 * 4 + 36 * 1) / 48)
    assert (arrivals.peak_per_s, arrivals.p50_per_s) == pytest.approx((4.0, 1.0))
    assert arrivals.requests is arrivals.interarrival_cv is None


def test_without_calendar_time_hours_count_from_the_start(tmp_path):
    lines = [
        json.dumps({"timestamp": 1000 * s, "input_length": 5, "output_length": 2})
        for s in range(0, 26 * 3600, 60)
    ]
    day = day_shape(workload(tmp_path, lines, "mooncake.jsonl"))
    assert day.clock == "from the start"
    assert all(rate == pytest.approx(1 / 60, rel=0.01) for rate in day.every_day)
    assert day.weekday is None


def test_a_rate_curve_without_times_has_no_calendar(tmp_path):
    found = workload(tmp_path, ["minute,rps", "0,2", "60,4"])
    assert found.start is None
    assert day_shape(found).every_day[:2] == pytest.approx((2.0, 4.0))
    with pytest.raises(ConfigError, match="line 2: timestamp_utc 'noon'; expected an ISO"):
        workload(tmp_path, ["timestamp_utc,minute,rps", "noon,0,2"])


def test_a_log_counts_every_request_that_was_served(tmp_path):
    rows = [
        row(3, start=START + timedelta(seconds=90)),
        row(1),
        row(2, start=START + timedelta(seconds=30), outcome="aborted", output_tokens=None),
        row(4, start=START + timedelta(seconds=60), outcome="rejected"),
    ]
    (tmp_path / "a.requests.jsonl").write_bytes(b"".join(ENCODER.encode(r) + b"\n" for r in rows))
    found = read_workload(tmp_path)
    assert found.start == START
    assert found.arrivals_s.tolist() == [0.0, 30.0, 90.0]
    assert found.requests.arrival_s.tolist() == [0.0, 90.0]
    assert found.left_out == {"without an answer, so of unknown lengths": 1}


@pytest.mark.skipif(
    not (PUBLIC_TRACES / "azure_2023_conv.csv").exists(),
    reason="JOULESERVE_TEST_DATA does not name the folder with the public traces",
)
def test_the_public_traces_have_their_published_figures():
    chat = describe(PUBLIC_TRACES / "azure_2023_conv.csv", EnergyQuestion())
    assert chat.arrivals.requests == 19_366
    assert round(chat.arrivals.mean_per_s, 2) == 5.53
    assert round(chat.arrivals.interarrival_cv, 2) == 1.09
    assert (chat.prompt.p50, chat.prompt.p90, chat.prompt.p99) == (1020, 2735, 4142)
    assert (chat.output.p50, chat.output.p90, chat.output.p99) == (129, 424, 601)
    code = describe(PUBLIC_TRACES / "azure2024_code_10min_arrivals.csv", EnergyQuestion())
    assert round(code.arrivals.mean_per_s, 1) == 27.8
    assert max(code.day.weekday) > 2 * max(code.day.weekend)
