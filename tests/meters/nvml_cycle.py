"""How long one reading cycle of the NVML back-end takes: `python tests/meters/nvml_cycle.py --write FOLDER`.

Unmodified nvidia-ml-py on the fake library, so without the time of a real driver: this is our own cost
and that of the Python binding. Starts itself again where the library is found.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fakes"))

GPUS, CYCLES, LIMIT_S = 8, 2000, 1e-3


def measure() -> dict[str, object]:
    """Seconds per `read` of all GPUs, over CYCLES readings a millisecond apart."""
    from serve_app.meters import NvmlBackend, NvmlSettings, Source

    backend = NvmlBackend(NvmlSettings(sample_period_s=60.0), environ={})
    spent_s = []
    for _ in range(CYCLES):
        before_s = time.perf_counter()
        readings = backend.read(time.monotonic())
        spent_s.append(time.perf_counter() - before_s)
        assert len(readings) == GPUS
        assert {reading.source for reading in readings} == {Source.COUNTER}
        time.sleep(1e-3)
    backend.close()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "library": "fake",
        "gpus": GPUS,
        "cycles": CYCLES,
        "median_s": statistics.median(spent_s),
        "p99_s": statistics.quantiles(spent_s, n=100)[98],
    }


def in_child() -> dict[str, object]:
    """Run `measure` in a process that loads the fake library."""
    from fake_nvml import FakeNvml, build

    with tempfile.TemporaryDirectory() as folder:
        fake = FakeNvml.create(Path(folder) / "state", gpus=GPUS)
        library = build(Path(folder) / "library")
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(library),
            "FAKE_NVML_STATE": str(fake.path),
        }
        command = [sys.executable, __file__, "--inside"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=120
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="folder for result.json")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(measure()))
        return 0
    found = in_child()
    print(json.dumps(found))
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    return int(found["median_s"] > LIMIT_S)


if __name__ == "__main__":
    sys.exit(main())
