"""Runs *_cases.py where the fake NVML library is found as the real one would be."""

from pathlib import Path

import pytest
from under_fake_nvml import run_cases

CASES = sorted(Path(__file__).parent.glob("*_cases.py"))


@pytest.mark.slow
def test_cases_pass_under_the_fake_library(tmp_path):
    run_cases(CASES, tmp_path, more_than=20, timeout_s=280)
