"""docs/workload.md names the columns, the options and the estimates that there are."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from typer.main import get_command

from policies.model.binned import NaiveEstimate, Requests
from policies.model.fitted import RANGE_MARGIN
from serve_app.cli.workload import app
from serve_app.deciders import load_profile
from serve_app.workload.energy import EnergyQuestion, compare
from serve_app.workload.log import MIN_COVERAGE_RATIO
from serve_app.workload.observations import CSV_COLUMNS, OPTIONAL_COLUMNS
from serve_app.workload.regression import ILL_CONDITIONED, SIGNIFICANCE
from serve_app.workload.source import Workload

PAGE = (Path(__file__).parents[2] / "docs" / "workload.md").read_text(encoding="utf-8")
PROSE = " ".join(PAGE.split())


def test_every_command_line_shown_is_one_that_there_is():
    commands = get_command(app).commands
    lines = re.findall(r"^jouleserve workload (\w+) (.*)$", PAGE, re.MULTILINE)
    assert {name for name, _ in lines} == set(commands)
    for name, rest in lines:
        known = {option for param in commands[name].params for option in param.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= known, rest


def test_the_columns_and_limits_are_those_of_the_code():
    assert f"`{', '.join(CSV_COLUMNS)}`" in PROSE
    assert f"`{', '.join(OPTIONAL_COLUMNS)}`" in PROSE
    assert f"at least {MIN_COVERAGE_RATIO:.0%}".replace("%", " %") in PROSE
    assert f"p below {SIGNIFICANCE:g}" in PROSE
    assert f"above {ILL_CONDITIONED:g} the terms" in PROSE
    assert f"beyond {RANGE_MARGIN:g} times the profile's range" in PROSE


def test_every_estimate_is_in_the_table():
    profile = load_profile(str(Path(__file__).parents[1] / "data" / "h100_llama8b.json"))
    naive = NaiveEstimate(params=8e9, peak_flops_per_s=1e15, tdp_watts=700.0)
    requests = Requests(
        arrival_s=np.array([0.0, 1.0]),
        prompt_tokens=np.array([9, 9]),
        output_tokens=np.array([9, 9]),
        replica=np.array([0, 0]),
        joules=np.full(2, np.nan),
    )
    workload = Workload(
        source="t", format="csv", start=None, arrivals_s=requests.arrival_s, requests=requests
    )
    question = EnergyQuestion(
        profile=profile, naive=(naive, replace(naive, utilization_ratio=0.4)), measured_joules=1.0
    )
    rows = set(re.findall(r"^\| ([a-z][^|]*?) \|", PAGE, re.MULTILINE))
    for estimate in compare(workload, question).estimates:
        name = re.sub(r" \(.*|:.*", "", estimate.name)
        assert name in rows, estimate.name
