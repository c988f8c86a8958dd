"""Where the builder puts the gate, and where it refuses to build without one."""

from types import SimpleNamespace

import pytest

from policies.core.errors import ConfigError
from serve_app import app as builder
from serve_app.security.settings import NO_SECURITY, SecuritySettings
from serve_app.server import EnergyLLMServer
from serve_app.settings import EnergySettings


@pytest.fixture
def energy(tmp_path):
    path = tmp_path / "keys.yaml"
    path.write_text("[]")
    return EnergySettings(security=SecuritySettings(api_keys_file=path))


def serving(*server_classes):
    return SimpleNamespace(llm_configs=[SimpleNamespace(server_cls=c) for c in server_classes])


def test_keys_are_not_asked_for_where_nobody_could(energy, monkeypatch):
    builder.check_keys(serving(EnergyLLMServer), energy, gated=True)
    with pytest.raises(ConfigError, match="energy.security.api_keys_file: not with an ingress_cls"):
        builder.check_keys(serving(EnergyLLMServer), energy, gated=False)
    builder.check_keys(serving("their.server"), energy, gated=True)  # behind our ingress
    monkeypatch.setattr(builder.ray_server, "direct_streaming", lambda: True)
    for theirs in ("their.server", dict):
        with pytest.raises(ConfigError, match="not with a server_cls of your own"):
            builder.check_keys(serving(EnergyLLMServer, theirs), energy, gated=True)
    builder.check_keys(serving("their.server"), EnergySettings(), gated=False)  # no keys: as ever


def test_a_service_is_not_built_on_a_broken_keys_file(energy):
    energy.security.api_keys_file.write_text("- {name: x}")
    with pytest.raises(ConfigError) as refused:
        builder.check_keys(serving(EnergyLLMServer), energy, gated=True)
    assert str(refused.value) == (
        "application args: energy.security.api_keys_file: "
        f"{energy.security.api_keys_file}: entry 1: hash: Field required"
    )


def test_without_an_energy_block_nothing_is_refused():
    assert builder.metering_only().security == NO_SECURITY
    assert EnergySettings().security != NO_SECURITY
