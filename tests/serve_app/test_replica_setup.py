"""What a replica's meter says about GPUs that Ray gave it and no back-end reads."""

from types import SimpleNamespace

import pytest

from serve_app import replica_setup
from serve_app.replica_gpus import AssignedGpus
from serve_app.settings import parse_energy

CONFIG = SimpleNamespace(
    deployment_config={}, get_engine_config=lambda: SimpleNamespace(placement_bundles=[])
)


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        (AssignedGpus(visible=""), None),
        (AssignedGpus(visible="0"), "no back-end reads the GPUs that Ray gave this replica"),
        (AssignedGpus(visible="0", missing="1 on another node"), "1 on another node"),
    ],
)
async def test_gpus_without_a_meter_are_unavailable_not_absent(monkeypatch, gpus, reason):
    async def assigned(_):
        return gpus

    monkeypatch.setattr(replica_setup, "assigned_gpus", assigned)
    energy = parse_energy({"meter": {"backends": ["estimated"]}}, "f")
    accountant, told = await replica_setup.open_accountant(energy, None, CONFIG)
    assert told is gpus
    assert accountant.windows.unavailable.get("gpu") == reason
    accountant.close()
