"""From a name to what an engine loads, and the cache's place."""

from __future__ import annotations

from pathlib import Path

import pytest

from policies.core.errors import ConfigError
from serve_app.models import resolve_model
from serve_app.models.cache import ModelFolders, cache_root
from serve_app.models.manifest import Manifest, describe_files, write_manifest
from serve_app.models.prepare import PrepareOptions, prepare
from serve_app.models.steps import Steps

KNOWN = "smollm2-135m-instruct"


@pytest.fixture
def prepared(tmp_path):
    folder = ModelFolders.of(KNOWN, tmp_path).final
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    manifest = Manifest(
        model=KNOWN,
        licence="Apache-2.0",
        source={},
        files=describe_files(folder),
        packages={},
        prepared_at="2026-01-01T00:00:00+00:00",
    )
    write_manifest(folder, manifest)
    return folder


def test_a_prepared_model_is_its_folder(prepared, tmp_path, monkeypatch):
    assert resolve_model(KNOWN, tmp_path) == str(prepared)
    monkeypatch.setenv("JOULESERVE_CACHE", str(tmp_path))
    assert resolve_model(KNOWN) == str(prepared)


def test_a_model_that_is_not_prepared_names_the_command(tmp_path):
    with pytest.raises(
        ConfigError, match=f"is not prepared; run: jouleserve model prepare {KNOWN}"
    ):
        resolve_model(KNOWN, tmp_path)


def test_a_damaged_model_is_not_served(prepared, tmp_path):
    (prepared / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"damaged .*config\.json: No such file"):
        resolve_model(KNOWN, tmp_path)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-8B", "gpt2", "/models/mine", "s3://bucket/model"])
def test_any_other_name_is_left_to_the_engine(name):
    assert resolve_model(name) == name


def test_foreign_names_pass_through(tmp_path, capsys):
    for name in ("Qwen/Qwen3-8B", "gpt2", str(tmp_path)):
        result = prepare(name, PrepareOptions(), Steps())
        assert (result.path, result.already_prepared) == (name, True)
        assert "nothing to prepare" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["/no/such", "./no", "../no", "~/no/such", "a/b/c", "", ".hidden"])
def test_a_path_that_does_not_exist_lists_the_known_names(name):
    with pytest.raises(ConfigError, match=f"no such folder; known names: {KNOWN}"):
        prepare(name, PrepareOptions(), Steps())


@pytest.mark.parametrize("name", ["smolm2-135m-instruct", "SmolLM2-135M-Instruct"])
def test_a_slip_of_the_pen_is_not_taken_for_an_id(name):
    with pytest.raises(ConfigError, match=f"did you mean {KNOWN}"):
        prepare(name, PrepareOptions(), Steps())


def test_the_cache_is_the_option_then_the_variable_then_xdg(monkeypatch):
    monkeypatch.setenv("JOULESERVE_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache_root(Path("/given")) == Path("/given")
    assert cache_root() == Path("/own")
    monkeypatch.delenv("JOULESERVE_CACHE")
    assert cache_root() == Path("/xdg/jouleserve")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == Path("/home/someone/.cache/jouleserve")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path("/home/someone/.cache/jouleserve")
