"""Makes the fakes and the planted samples importable from here."""

import os
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
for folder in (TESTS / "fakes", TESTS / "profiler"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Two fake H100s: 700 W is set, 200 to 700 W allowed."""
    from fake_nvml import FakeNvml

    library = Path(os.environ.get("LD_LIBRARY_PATH", "")) / "libnvidia-ml.so.1"
    if not library.is_file():  # a power limit is set on fake GPUs alone
        pytest.fail("run test_power_limit.py: it runs these cases under the fake NVML library")
    state = FakeNvml.create(tmp_path / "state", gpus=2, virtual_ns=10**15)
    monkeypatch.setenv("FAKE_NVML_STATE", str(state.path))
    return state
