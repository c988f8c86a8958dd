"""Runs *_cases.py where the fake NVML library is found as the real one would be."""

from pathlib import Path

import pytest
from under_fake_nvml import run_cases

CASES = sorted(Path(__file__).parent.glob("*_cases.py"))


@pytest.mark.slow
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_cases_pass_under_the_fake_library(tmp_path, cases):
    run_cases([cases], tmp_path, timeout_s=280)


def test_no_file_of_cases_is_left_out():
    assert [path.stem for path in CASES] == [
        "agent_cases",
        "doctor_cases",
        "hostile_cases",
        "kill_cases",
    ]
