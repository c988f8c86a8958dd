"""The trace formats: what is read, what is refused, and where the error points."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.core.errors import ConfigError
from policies.sim.trace import (
    RateCurve,
    TraceFormat,
    TraceRow,
    parse_csv,
    parse_length_cdf,
    parse_mooncake,
    parse_rate_curve,
    parse_trace,
    sniff,
)

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
PUBLIC_TRACES = Path(os.environ.get("JOULESERVE_TEST_DATA", "")) / "traces"


def row(arrival_s, prompt_tokens, output_tokens):
    return TraceRow(arrival_s=arrival_s, prompt_tokens=prompt_tokens, output_tokens=output_tokens)


def test_iso_times_keep_all_seven_fractional_digits():
    rows = parse_csv(
        [HEADER, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:16:00.6805901,396,109"]
    )
    assert rows == (row(0.0, 374, 44), row(14.0000001, 396, 109))


def test_iso_zone_offsets_are_applied_and_a_missing_zone_is_utc():
    rows = parse_csv(
        [
            HEADER,
            "2024-01-01T01:00:00+01:00,1,1",
            "2024-01-01T00:00:01Z,2,2",
            "2024-01-01 00:00:02,3,3",
        ]
    )
    assert [r.arrival_s for r in rows] == [0.0, 1.0, 2.0]


def test_seconds_are_sorted_and_start_at_zero():
    rows = parse_csv([HEADER, "101.5,10,1", "100.25,20,2", "1.0e2,30,3"])
    assert rows == (row(0.0, 30, 3), row(0.25, 20, 2), row(1.5, 10, 1))


def test_columns_are_found_by_name_and_extra_ones_ignored():
    lines = ["\ufeffGeneratedTokens,user, ContextTokens ,TIMESTAMP", "", "7,bob,3,5", "8,al,4.0,6"]
    assert parse_csv(lines) == (row(0.0, 3, 7), row(1.0, 4, 8))


def test_zero_lengths_become_one():
    assert parse_csv([HEADER, "0,0,0"]) == (row(0.0, 1, 1),)


def test_mooncake_timestamps_are_milliseconds():
    lines = [
        '{"timestamp": 27500, "input_length": 6758, "output_length": 500, "hash_ids": [0, 1]}',
        "",
        '{"timestamp": 27000.5, "input_length": 7322, "output_length": 490}',
    ]
    assert parse_mooncake(lines) == (row(0.0, 7322, 490), row(0.4995, 6758, 500))


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([HEADER, "0,1,1", "soon,1,1"], r"t\.csv: line 3: TIMESTAMP 'soon'; expected seconds"),
        ([HEADER, "soon,1,1"], r"line 2: TIMESTAMP 'soon'; expected an ISO date and time or sec"),
        ([HEADER, "2024-01-01 00:00:00,1,1", "5,1,1"], r"line 3: .*'5'; expected an ISO date"),
        ([HEADER, "2024-13-01 00:00:00,1,1"], r"line 2: .*expected an ISO date"),
        ([HEADER, "0,1.5,1"], r"line 2: ContextTokens 1\.5; expected a whole number"),
        ([HEADER, "0,1,-1"], r"line 2: GeneratedTokens -1; expected a whole number"),
        ([HEADER, "0,1,1e999999"], r"line 2: GeneratedTokens 1e999999; expected a whole"),
        ([HEADER, "nan,1,1"], r"line 2: TIMESTAMP 'nan'"),
        ([HEADER, "0,1"], r"line 2: 2 cells; expected TIMESTAMP,"),
        ([HEADER], r"no requests"),
        ([], r"empty"),
        (["", "  "], r"empty"),
        (["a,b,c", "1,2,3"], r"first line 'a,b,c' is of no known trace format; expected a header"),
        (["cdf_pct,tokens", "100,5"], r"length CDF; expected a trace"),
        (['{"timestamp": 1}'], r"line 1: .*expected a JSON object with timestamp, input_length"),
        (['{"timestamp": 1,'], r"line 1: .*expected one JSON object"),
        (
            ['{"timestamp": "x", "input_length": 1, "output_length": 1}'],
            r"line 1: timestamp 'x'; expected milliseconds",
        ),
        (
            ['{"timestamp": 1, "input_length": true, "output_length": 1}'],
            r"line 1: input_length True; expected a whole",
        ),
        (["minute,rps", "0,1", "0,2"], r"line 3: minute 0; expected more than 0"),
        (["minute,rps", "0,-1"], r"line 2: rps -1"),
        (["minute,rps"], r"no rows"),
    ],
)
def test_bad_lines_are_refused_with_their_place(lines, expected):
    with pytest.raises(ConfigError, match=expected) as caught:
        parse_trace(lines, "t.csv")
    assert str(caught.value).startswith("t.csv: ")


def test_the_format_is_found_by_the_first_line():
    assert sniff(HEADER) is TraceFormat.CSV
    assert sniff(' {"timestamp": 0}') is TraceFormat.MOONCAKE
    assert sniff("timestamp_utc,minute,rps") is TraceFormat.RATE_CURVE
    assert sniff("cdf_pct,tokens\n") is TraceFormat.LENGTH_CDF
    assert parse_trace(iter([HEADER + "\n", "3,1,2\n"])) == (row(0.0, 1, 2),)


def test_a_rate_curve_starts_at_zero_and_its_last_rate_holds_one_more_step():
    curve = parse_trace(["minute,rps", "5,1.5", "15,3", "20,0"])
    assert curve == RateCurve(
        starts_s=(0.0, 600.0, 900.0), rates_per_s=(1.5, 3.0, 0.0), end_s=1200.0
    )
    assert parse_rate_curve(["minute,rps", "7,2"]).end_s == 60.0


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["cdf_pct,tokens", "50,10", "40,20"], r"line 3: .*expected cdf_pct within 50\.\.100"),
        (["cdf_pct,tokens", "50,10", "60,9"], r"line 3: .*tokens ≥ 10"),
        (["cdf_pct,tokens", "50,10", "101,19"], r"line 3"),
        (["cdf_pct,tokens", "50,10"], r"ends at 50 %"),
    ],
)
def test_bad_length_cdfs_are_refused(lines, expected):
    with pytest.raises(ConfigError, match=expected):
        parse_length_cdf(lines)


times = st.integers(min_value=0, max_value=10**13)
counts = st.integers(min_value=1, max_value=10**6)


@given(st.lists(st.tuples(times, counts, counts), min_size=1, max_size=30))
def test_both_formats_read_back_what_was_written(requests):
    rows = sorted(requests, key=lambda request: request[0])
    start = rows[0][0]
    csv_lines = [HEADER, *(f"{t / 10:.1f},{p},{o}" for t, p, o in requests)]
    json_lines = [
        json.dumps({"timestamp": t * 100, "input_length": p, "output_length": o})
        for t, p, o in requests
    ]
    if all(t * 100 <= 10**12 for t, _, _ in requests):
        assert parse_mooncake(json_lines) == parse_csv(csv_lines)
    if max(t for t, _, _ in requests) <= 10**13:
        expected = tuple(row((t - start) / 10, p, o) for t, p, o in rows)
        assert parse_csv(csv_lines) == expected


@given(st.lists(st.text(max_size=60), max_size=4), st.sampled_from(["", HEADER, "minute,rps"]))
def test_no_text_does_anything_but_parse_or_raise_config_error(lines, header):
    try:
        parse_trace([header, *lines])
    except ConfigError as error:
        assert str(error).startswith("trace: ")  # noqa: PT017 - either outcome is right


@pytest.mark.skipif(
    not (PUBLIC_TRACES / "azure_2023_conv.csv").exists(),
    reason="JOULESERVE_TEST_DATA does not name the folder with the public traces",
)
def test_public_traces_are_read():
    with (PUBLIC_TRACES / "azure_2023_conv.csv").open() as lines:
        rows = parse_trace(lines)
    assert len(rows) == 19366
    assert 3400 < rows[-1].arrival_s < 3520
    with (PUBLIC_TRACES / "azure2024_code_10min_arrivals.csv").open() as lines:
        assert parse_trace(lines).end_s == 1008 * 600
    with (PUBLIC_TRACES / "azure2024_code_output_cdf.csv").open() as lines:
        assert parse_length_cdf(lines).tokens[-1] == 471.18
