"""docs/security.md says what the code does."""

import re
from pathlib import Path

import yaml

from serve_app.security.scopes import Scope, scope_of
from serve_app.security.settings import SecuritySettings
from serve_app.settings import parse_energy

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "security.md").read_text()
BLOCKS = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)


def test_the_example_is_a_block_and_its_defaults_are_the_defaults():
    service = yaml.safe_load(BLOCKS[0])
    security = parse_energy(service["applications"][0]["args"]["energy"], "docs").security
    given = {"api_keys_file": security.api_keys_file}
    assert security == SecuritySettings(**given)
    for block in BLOCKS:
        assert all(isinstance(part, dict) for part in yaml.safe_load_all(block))


def test_the_table_of_scopes():
    rows = dict(
        re.findall(r"^\| `?(inference|energy|admin|none)`? \| (.*) \|$", PAGE, re.MULTILINE)
    )
    assert set(rows) == {*Scope, "none"}
    for scope, row in rows.items():
        paths = [path.rstrip(".").rstrip("/") for path in re.findall(r"`(/[^`]*)`", row)]
        for path in paths:
            if not path.startswith("/-/"):  # Ray's own
                assert (scope_of(path) or "none") == scope, path
