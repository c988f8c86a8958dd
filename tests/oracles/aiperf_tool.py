"""aiperf in an environment of its own, with the default model's tokenizer where it finds it offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from serve_app.models.cache import ModelFolders, cache_root

AIPERF = "aiperf==0.13.0"
_TOKENIZER = "jouleserve/smollm2-135m-instruct"
_REVISION = "1" * 40  # any name: nobody but this script fills that cache
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "config.json", "chat_template.jinja")
# Output is random text: ignoring the end mark keeps every answer as long as was asked for.
_COMMAND = (
    *("profile", "--endpoint-type", "chat", "--streaming", "--use-server-token-count"),
    *("--arrival-pattern", "poisson", "--isl", "64", "--isl-stddev", "16"),
    *("--osl", "32", "--osl-stddev", "8", "--extra-inputs", "ignore_eos:true"),
    *("--random-seed", "7", "--workers-max", "1", "--ui", "none", "--gpu-telemetry", "pynvml"),
)


@dataclass(frozen=True)
class Aiperf:
    """An installed aiperf; `home` is its hub cache."""

    program: Path
    home: Path
    version: str

    def command(self, url: str, model: str, folder: Path, *, rate_per_s: float, requests: int):
        """The command line of one run."""
        options = {
            "--model": model,
            "--url": url,
            "--tokenizer": _TOKENIZER,
            "--request-rate": f"{rate_per_s:g}",
            "--request-count": str(requests),
            "--output-artifact-dir": str(folder),
        }
        return [str(self.program), *_COMMAND, *(part for item in options.items() for part in item)]

    def run(self, command, environment, log: Path) -> None:
        """Run it to its end; a failure shows the end of its output."""
        environ = {
            **os.environ,
            **environment,
            "HF_HOME": str(self.home),
            "HF_HUB_OFFLINE": "1",
            "DO_NOT_TRACK": "1",
        }
        with log.open("wb") as output:
            done = subprocess.run(
                command, env=environ, stdout=output, stderr=subprocess.STDOUT, timeout=900
            )
        if done.returncode:
            sys.exit(f"aiperf ended with {done.returncode}:\n{log.read_text()[-3000:]}")


def install(model: str) -> Aiperf:
    """aiperf, installed into the cache folder on first use (1.2 GB)."""
    root = cache_root() / "oracles" / AIPERF
    program = root / "bin" / "aiperf"
    if not program.exists():
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "--clear", "--python", sys.executable, str(root)], check=True)
        target = ["--python", str(root / "bin" / "python")]
        subprocess.run([uv, "pip", "install", *target, AIPERF], env=uv_environment(), check=True)
    home = cache_root() / "oracles" / "hub"
    _lay_out_tokenizer(ModelFolders.of(model).final, home)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    return Aiperf(program=program, home=home, version=version.stdout.strip())


def uv_environment() -> dict[str, str]:
    """uv does not read pip's configuration."""
    ask = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
    links = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split()
    return {**os.environ, **({"UV_FIND_LINKS": ",".join(links)} if links else {})}


def _lay_out_tokenizer(model: Path, home: Path) -> None:
    """Put the tokenizer where a hub client without a network looks for it."""
    repository = home / "hub" / f"models--{_TOKENIZER.replace('/', '--')}"
    snapshot = repository / "snapshots" / _REVISION
    snapshot.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        shutil.copy(model / name, snapshot / name)
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / "main").write_text(_REVISION)


@dataclass(frozen=True)
class AiperfResult:
    """What aiperf says of its run. Times are seconds since the epoch."""

    start_s: float
    end_s: float
    requests: int
    output_tokens: float
    joules: float
    joules_per_output_token: float
    samples: int

    @classmethod
    def read(cls, folder: Path) -> AiperfResult:
        """From the files of a run; its own energy figure is in mJ per token."""
        report = json.loads((folder / "profile_export_aiperf.json").read_text())
        server = json.loads((folder / "server_metrics_export.json").read_text())
        phase = server["summary"]["phase_time_ranges"]["profiling"]
        telemetry = (folder / "gpu_telemetry_export.jsonl").read_text().splitlines()
        return cls(
            start_s=phase["start_ns"] / 1e9,
            end_s=phase["end_ns"] / 1e9,
            requests=int(report["request_count"]["avg"]),
            output_tokens=report["total_osl"]["avg"],
            joules=report["nvidia_total_gpu_energy"]["avg"],
            joules_per_output_token=report["nvidia_energy_per_output_token"]["avg"] / 1e3,
            samples=len(telemetry),
        )
