"""The fixture `fake`: two fake H100s, for tests that run under the fake NVML library alone."""

import os
from pathlib import Path

import pytest
from fake_nvml import FakeNvml


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Two fake H100s: 700 W is set, 200 to 700 W allowed."""
    library = Path(os.environ.get("LD_LIBRARY_PATH", "")) / "libnvidia-ml.so.1"
    if not library.is_file():  # a power limit is set on fake GPUs alone
        pytest.fail("run the test_*.py beside it: it runs these cases under the fake NVML library")
    state = FakeNvml.create(tmp_path / "state", gpus=2, virtual_ns=10**15)
    monkeypatch.setenv("FAKE_NVML_STATE", str(state.path))
    return state
