"""Makes the fakes importable (`import fake_nvml`), keeps GPU selection out of the environment, and
holds what all NVML cases need. Those run in a process of their own, started by test_nvml.py.
"""

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


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """Four idle fake H100s on a clock that the test moves."""
    from fake_nvml import FakeNvml

    state = FakeNvml.create(tmp_path / "state", gpus=4, virtual_ns=10**15)
    monkeypatch.setenv("FAKE_NVML_STATE", str(state.path))
    return state


@pytest.fixture
def rig(fake):
    """Opens a subject whose clock and the fake's go together."""
    from fake_nvml import GPU_IS_LOST
    from meter_contract import FakeClock, Subject

    from serve_app.meters import NvmlBackend, NvmlSettings, Source

    opened = []

    def make(*, environ=None, **settings):
        clock = FakeClock()

        def work(seconds):
            fake.advance(seconds)
            clock.advance(seconds)

        settings.setdefault("sample_period_s", 60.0)  # samples are taken by the reading alone
        backend = NvmlBackend(NvmlSettings(**settings), environ=environ or {}, clock=clock)
        opened.append(backend)
        sources = frozenset({Source.COUNTER, Source.INTEGRATED})
        lose = lambda: fake.fail("*", GPU_IS_LOST, device=0)  # noqa: E731
        return Subject(backend, clock, work, lose, sources)

    yield make
    for backend in opened:
        backend.close()
