"""`jouleserve key`: a key is shown once, its hash is kept, and it can be taken away."""

import json
import stat

import pytest
from typer.testing import CliRunner

from policies.core.errors import ConfigError
from serve_app.cli.key import app
from serve_app.security.key_file import read_keys
from serve_app.security.keys import KeyRing
from serve_app.security.scopes import Scope


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("JOULESERVE_API_KEYS_FILE", str(tmp_path / "keys.yaml"))
    return tmp_path / "keys.yaml"


def run(*arguments):
    done = CliRunner().invoke(app, list(arguments))
    if isinstance(done.exception, ConfigError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_a_key_is_printed_once_and_only_its_hash_is_kept(path):
    done = run("new", "team-a")
    key = done.stdout.strip()
    assert key.startswith("jsk-")
    assert key not in path.read_text()
    assert key not in done.stderr
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = KeyRing(read_keys(path)).find(key.encode())
    assert (found.name, found.scopes, found.expires_s) == ("team-a", {Scope.INFERENCE}, None)


def test_a_tenants_key_is_replaced_while_both_are_good(path):
    old, new = (run("new", "team-a").stdout.strip() for _ in range(2))
    run("new", "prometheus", "--scope", "energy", "--scope", "inference", "--expires", "90d")
    listed = json.loads(run("list", "--json").stdout)["keys"]
    assert [row["name"] for row in listed] == ["team-a", "team-a", "prometheus"]
    assert listed[2]["scopes"] == ["energy", "inference"]
    assert listed[2]["expired"] is False
    ring = KeyRing(read_keys(path))
    run("revoke", "team-a", "--id", ring.find(old.encode()).id)
    ring = KeyRing(read_keys(path))
    assert ring.find(old.encode()) is None
    assert ring.find(new.encode()).name == "team-a"
    run("revoke", "team-a")
    assert [key.name for key in read_keys(path)] == ["prometheus"]
    table = run("list").stdout
    assert "prometheus" in table
    assert "never" not in table


def test_wrong_arguments_change_nothing(path):
    run("new", "team-a")
    before = path.read_bytes()
    for arguments, message in (
        (("new", "a b"), "NAME 'a b': expected 1 to 64 of"),
        (("new", "a\nb"), "NAME"),
        (("new", "b", "--expires", "1x"), "--expires '1x': expected 90d"),
        (("new", "b", "--expires", "2020-01-01"), "that is in the past"),
        (("revoke", "nobody"), "no key nobody"),
        (("revoke", "team-a", "--id", "00000000"), "no key team-a 00000000"),
    ):
        with pytest.raises(ConfigError) as refused:
            run(*arguments)
        assert message in str(refused.value)
    assert path.read_bytes() == before


def test_a_file_that_is_not_there_has_no_keys_to_take_away(path):
    for command in ("list", "revoke"):
        with pytest.raises(ConfigError, match=r"keys.yaml: [Nn]o such file"):
            run(command, *(["x"] if command == "revoke" else []))
    assert not path.exists()
