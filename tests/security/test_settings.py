"""The `energy.security` block, and where it is refused."""

import pytest

from policies.core.errors import ConfigError
from serve_app.settings import EnergySettings, parse_energy


def test_nobody_is_asked_for_a_key_by_default():
    security = EnergySettings().security
    assert security.api_keys_file is None
    assert security.protect == ("openai", "energy")
    assert not security.names_tenants


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({"api_key_file": "/x"}, "energy.security.api_key_file: unknown key (allowed: api_keys_file, protect"),
        ({"api_keys_file": "keys.yaml"}, "energy.security.api_keys_file: Value error, must be an absolute path"),
        ({"protect": ["all"]}, "energy.security.protect.0: Input should be 'openai' or 'energy'"),
        ({"protect": []}, "energy.security.protect: "),
        ({"max_body_bytes": 0}, "energy.security.max_body_bytes: "),
        ({"max_header_bytes": -1}, "energy.security.max_header_bytes: "),
    ],
)  # fmt: skip
def test_a_wrong_block_is_named(block, line):
    with pytest.raises(ConfigError) as refused:
        parse_energy({"security": block}, "f.yaml")
    assert str(refused.value).startswith(f"f.yaml: {line}")
