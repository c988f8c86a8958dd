"""The quick reader reads what the exact one reads, or leaves it to that one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from policies.core.errors import ConfigError
from policies.sim.arrivals import RateCurve
from policies.sim.blocks import block_of
from policies.sim.trace import parse_csv
from policies.sim.trace_columns import NotPlain, read_columns
from serve_app.traces.catalog import SAMPLE_FILE
from serve_app.traces.files import read_trace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
PUBLIC_TRACES = Path(os.environ.get("JOULESERVE_TEST_DATA", "")) / "traces"
PLAIN = {
    "azure 2023": [HEADER, "2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,0"],
    "azure 2024": [
        HEADER, "2024-05-10 00:00:00.009930+00:00,2162,5", "2024-05-10 00:00:00.017335+00:00,2399,6",
    ],
    "zulu": [HEADER, "2024-05-10T00:00:00Z,1,1", "2024-05-10T00:00:01Z,2,2"],
    "seconds, not in order": [HEADER, "7.25,1,2", "3,3,4", "5.5,5,6", "5.5,7,8"],
    "other columns": ["a,GeneratedTokens,TIMESTAMP,ContextTokens", "x,9,0.5,8", "y,7,1e1,6"],
    "line ends": [HEADER + "\r", "0,1,2\r", "1,3,4\r"],
    "byte order mark": ["\ufeff" + HEADER, "0,1,2"],
}  # fmt: skip
ODD = {
    "quotes": [HEADER, '"0",1,2'],
    "whole with a point": [HEADER, "0,12.0,2"],
    "blank line": [HEADER, "", "0,1,2"],
    "epoch": [HEADER, "1700000000.1234567,1,2", "1700000001.2,1,2"],
    "zone": [HEADER, "2024-05-10 02:00:00+02:00,1,2", "2024-05-10 00:30:00+00:00,1,2"],
    "mixed zones": [HEADER, "2024-05-10 00:00:00Z,1,2", "2024-05-10 00:30:00,1,2"],
}
BAD = {
    "no rows": [HEADER],
    "kinds": [HEADER, "2024-05-10 00:00:00,1,2", "5,1,2"],
    "word": [HEADER, "now,1,2"],
    "date alone": [HEADER, "2024-05-10,1,2"],
    "no such date": [HEADER, "2024-02-31 00:00:00,1,2"],
    "nan": [HEADER, "nan,1,2"],
    "negative": [HEADER, "0,-1,2"],
    "fraction": [HEADER, "0,1.5,2"],
    "cells": [HEADER, "0,1"],
    "huge": [HEADER, "0,9999999999999999999999,1"],
}


def text(lines):
    return [line + "\n" for line in lines]


@pytest.mark.parametrize("name", PLAIN)
def test_plain_tables_are_read_to_the_same_rows(name):
    found = read_columns(iter(text(PLAIN[name])))
    expected = block_of(parse_csv(text(PLAIN[name])))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", [*ODD, *BAD])
def test_everything_else_is_left_to_the_exact_reader(name, tmp_path):
    lines = text({**ODD, **BAD}[name])
    with pytest.raises(NotPlain):
        read_columns(iter(lines))
    path = tmp_path / "trace.csv"
    path.write_text("".join(lines))
    if name in BAD:
        with pytest.raises(ConfigError, match="trace.csv: "):
            read_trace(path)
    else:
        found, expected = read_trace(path), block_of(parse_csv(lines))
        assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_other_formats_and_faults_of_files(tmp_path):
    (tmp_path / "m.jsonl").write_text(
        '{"timestamp": 500, "input_length": 7, "output_length": 3}\n'
        '{"timestamp": 1500, "input_length": 8, "output_length": 4}\n'
    )
    (tmp_path / "curve.csv").write_text("minute,rps\n0,1\n10,2\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "latin.csv").write_bytes(b"\xe9\xe8")
    assert read_trace(tmp_path / "m.jsonl").arrival_s.tolist() == [0.0, 1.0]
    assert isinstance(read_trace(tmp_path / "curve.csv"), RateCurve)
    for name, what in (
        ("empty.csv", "empty; expected"),
        ("latin.csv", "not UTF-8"),
        ("no.csv", "No such file"),
    ):
        with pytest.raises(ConfigError, match=what):
            read_trace(tmp_path / name)


def test_the_shipped_sample_is_a_small_trace():
    lines = SAMPLE_FILE.read_text(encoding="utf-8").splitlines()
    assert len(lines) - 1 <= 200
    sample = read_trace(SAMPLE_FILE)
    assert 150 <= sample.rows == len(lines) - 1
    assert sample.arrival_s[-1] < 27
    assert 100 < np.median(sample.prompt_tokens) < 2000


@pytest.mark.skipif(
    not (PUBLIC_TRACES / "azure_2023_conv.csv").exists(),
    reason="JOULESERVE_TEST_DATA does not name the folder with the public traces",
)
def test_a_public_trace_is_read_alike():
    path = PUBLIC_TRACES / "azure_2023_conv.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    found, expected = read_columns(iter(lines)), block_of(parse_csv(lines))
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
