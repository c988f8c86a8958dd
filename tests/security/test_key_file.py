"""The file of keys: read whole or refused in a line that shows no value, written whole."""

import json
import stat
import threading
from contextlib import suppress
from datetime import UTC, datetime

import pytest
import yaml
from asgi_play import KeyFile
from hypothesis import given
from hypothesis import strategies as st

from policies.core.errors import ConfigError
from serve_app.security.key_file import change_keys, read_keys
from serve_app.security.keys import ApiKey, KeyRing, digest_of, new_key
from serve_app.security.scopes import Scope

HASH = "sha256:" + "ab" * 32


def written(folder, text, name="keys.yaml"):
    path = folder / name
    path.write_text(text)
    return path


def test_yaml_and_json_say_the_same(tmp_path):
    entries = [
        {"name": "a", "hash": HASH, "scopes": ["inference", "energy"], "expires": "2030-01-01"}
    ]
    by_yaml = read_keys(written(tmp_path, yaml.safe_dump(entries)))
    by_json = read_keys(written(tmp_path, json.dumps(entries), "keys.json"))
    bare_date = read_keys(
        written(tmp_path, f"- {{name: a, hash: '{HASH}', scopes: [energy, inference], expires: 2030-01-01}}")
    )  # fmt: skip
    (key,) = by_yaml
    assert by_yaml == by_json == bare_date
    assert key.scopes == {Scope.INFERENCE, Scope.ENERGY}
    assert key.expires_s == datetime(2030, 1, 1, tzinfo=UTC).timestamp()  # UTC where no zone is
    assert key.id == "abababab"
    assert not key.expired(key.expires_s - 1)
    assert key.expired(key.expires_s)


SECRET = "jsk-somebody-pasted-this"
WRONG = {
    "a key for a hash": (f"- {{name: a, hash: {SECRET}, scopes: [energy]}}", "entry 1: hash: "),
    "a key for a name": (f"- {{name: '{SECRET} !', hash: '{HASH}', scopes: [energy]}}", "entry 1: name: "),
    "a key for a field": (f"- {{{SECRET}: 1, name: a, hash: '{HASH}', scopes: [energy]}}", "unknown field (allowed: name, hash, scopes, expires)"),
    "a key for a scope": (f"- {{name: a, hash: '{HASH}', scopes: [{SECRET}]}}", "entry 1: scopes.0: Input should be 'inference', 'energy' or 'admin'"),
    "a key for a time": (f"- {{name: a, hash: '{HASH}', scopes: [energy], expires: {SECRET}}}", "entry 1: expires: "),
    "a key for an entry": (f"- {SECRET}", "entry 1: "),
    "a key for the file": (SECRET, "expected a list of keys"),
    "no YAML": (f"- {{name: {SECRET}", "not readable as YAML or JSON (line "),
    "no scopes": (f"- {{name: a, hash: '{HASH}', scopes: []}}", "entry 1: scopes: "),
    "no hash": ("- {name: a, scopes: [energy]}", "entry 1: hash: Field required"),
    "a hash twice": (2 * f"- {{name: a, hash: '{HASH}', scopes: [energy]}}\n", "the same hash stands there twice"),
    "an empty file": ("", "expected a list of keys"),
    "no such day": (f"- {{name: a, hash: '{HASH}', scopes: [energy], expires: 2030-13-41}}", "not readable"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_named_without_what_stands_in_it(tmp_path, case):
    text, line = WRONG[case]
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        read_keys(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert line in message
    assert "\n" not in message
    assert SECRET not in message
    assert "abab" not in message


@given(st.binary(max_size=200))
def test_any_bytes_are_keys_or_a_config_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "keys.yaml"
    path.write_bytes(data)
    with suppress(ConfigError):
        assert isinstance(read_keys(path), list)


def test_broken_json_and_bottomless_nesting_are_named_too(tmp_path):
    for name, text, line in (
        ("keys.json", f'[\n{{"name": "{SECRET}",', r"not readable as YAML or JSON \(line 2\)$"),
        ("keys.json", "[" * 5_000, "not readable as YAML or JSON"),
        ("keys.yaml", "[" * 5_000, "not readable as YAML or JSON"),
    ):
        with pytest.raises(ConfigError, match=line):
            read_keys(written(tmp_path, text, name))


def test_what_cannot_be_a_keys_file(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match=str(path)):
            read_keys(path)
    open_to_all = written(tmp_path, "[]")
    open_to_all.chmod(0o666)
    with pytest.raises(ConfigError, match="anybody on this host may write it"):
        read_keys(open_to_all)


keys = st.builds(
    ApiKey,
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z"),
    digest=st.binary(min_size=32, max_size=32),
    scopes=st.frozensets(st.sampled_from(Scope), min_size=1),
    expires_s=st.none() | st.integers(0, 2**32).map(float),
)


@given(st.lists(keys, max_size=5, unique_by=lambda key: key.digest), st.sampled_from(["k.yaml", "k.json"]))  # fmt: skip
def test_what_is_written_is_read(tmp_path_factory, some, name):
    path = tmp_path_factory.mktemp("round") / name
    change_keys(path, lambda _: some)
    assert read_keys(path) == some
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [p.name for p in path.parent.iterdir()] == [name]  # nothing half-written is left


def test_a_change_keeps_mode_and_link_and_a_failed_one_keeps_the_file(tmp_path):
    target = written(tmp_path, "[]")
    target.chmod(0o640)
    link = tmp_path / "link.yaml"
    link.symlink_to(target)
    change_keys(link, lambda _: [ApiKey(name="a", digest=b"x" * 32, scopes=frozenset(Scope))])
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    before = target.read_bytes()

    def fail(_):
        raise ConfigError("no")

    with pytest.raises(ConfigError, match="no"):
        change_keys(link, fail)
    assert target.read_bytes() == before
    with pytest.raises(ConfigError, match="No such file"):
        change_keys(tmp_path / "missing" / "keys.yaml", lambda keys: keys)


def test_changes_at_the_same_time_lose_none(tmp_path):
    file = KeyFile(tmp_path)
    threads = [threading.Thread(target=file.add, args=(f"t{n}",)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(file.path)} == {f"t{n}" for n in range(12)}


def test_a_ring_finds_a_key_by_the_key_alone(tmp_path):
    made = [new_key() for _ in range(50)]
    assert len(set(made)) == 50
    assert all(len(key) == len("jsk-") + 43 for key in made)  # 256 bits in base64
    ring = KeyRing(
        ApiKey(name=f"n{i}", digest=digest_of(k.encode()), scopes=frozenset(Scope))
        for i, k in enumerate(made)
    )
    assert [ring.find(key.encode()).name for key in made] == [f"n{i}" for i in range(50)]
    for wrong in (b"", made[0][:-1].encode(), made[0].encode() + b"x", digest_of(made[0].encode())):
        assert ring.find(wrong) is None
