"""Makes the fakes importable (`import fake_nvml`) and keeps GPU selection out of the environment."""

import sys
from pathlib import Path

import pytest

FAKES = str(Path(__file__).parents[1] / "fakes")
if FAKES not in sys.path:
    sys.path.insert(0, FAKES)


@pytest.fixture(autouse=True)
def _no_cuda_environment(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
