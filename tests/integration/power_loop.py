"""The power loop, closed: a real engine on a fake GPU whose limit slows it down, the power agent as
a process of its own, the policy as it is shipped. The same load with the device's default limit and
with limits chosen by each replica's tick.

    python tests/integration/power_loop.py --out docs/results/power-loop --minutes 5
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "fakes"))

from agents import AgentProcess
from gpu_fleet import FakeGpus, Load, gpu_rows, replica_pids
from limited_gpu import WorkingGpu, draw_watts, engine_of
from running_service import REPOSITORY, eventually, started

from policies.core.types import SLO
from policies.sim.arrivals import BurstShape
from serve_app.bench.options import BenchOptions
from serve_app.drawing import matplotlib, save
from serve_app.sections import write_section

NATURAL_WATTS = 700.0
TARGETS = SLO(ttft_s=2.0, tpot_s=0.2)  # that this machine holds without any limit
SHIPPED = REPOSITORY / "configs" / "profiles" / "smollm2-135m-instruct@cpu.yaml"
SETTLED_S = 4.0


def profile_of_the_fake(folder):
    """The shipped profile of the CPU engine with the power of the fake GPU: what draws 700 W while
    it steps and 70 W between, and runs at the cube root of what the limit leaves."""
    profile = yaml.safe_load(SHIPPED.read_text())
    latency, power = profile["latency"], profile["power"]
    pairs = {
        "e0_joules_per_step": "t0_s",
        "e1_joules_per_seq": "a_s_per_seq",
        "e2_joules_per_kv_token": "b_s_per_kv_token",
        "e3_joules_per_prefill_token": "c_s_per_prefill_token",
        "e4_joules_per_attended_pair": "q_s_per_attended_pair",
        "e5_joules_per_token_beyond_knee": "d_s_per_token_beyond_knee",
    }
    power |= {joules: NATURAL_WATTS * latency[seconds] for joules, seconds in pairs.items()}
    power |= {"idle_watts": 70.0, "natural_draw_watts": NATURAL_WATTS}
    # Fitted to ((P - 70) / 630)^(1/3) from 200 to 700 W; within 0.4 %.
    power["cap_response"] = {
        "c0_watts": 0.0, "ck_watts": 192.6, "n": 0.5, "s_max": 2.3166,
        "decode_knee": 1.0, "decode_exponent": 1.0,
    }  # fmt: skip
    profile |= {"name": "smollm2-135m-instruct@fake-h100", "device": "fake H100 on CPU cores"}
    path = folder / "fake-h100.yaml"
    path.write_text(yaml.safe_dump(profile))
    return path


def under_the_agent(folder, agent):
    """An edit of serve_config.yaml: limits through this agent, and the fake's profile."""

    def edit(config):
        energy = config["applications"][0]["args"]["energy"]
        energy["power"] = {"actuator": "agent", "socket": str(agent.path), "ttl_s": 5.0}
        energy["slo"] = {"ttft_ms": 1e3 * TARGETS.ttft_s, "tpot_ms": 1e3 * TARGETS.tpot_s}
        energy["profile"] = str(profile_of_the_fake(folder))

    return edit


def one_replica_with_a_gpu(config):
    args = config["applications"][0]["args"]
    (llm,) = args["llm_configs"]
    llm["deployment_config"] |= {"ray_actor_options": {"num_cpus": 0.25, "num_gpus": 1}}
    args["energy"]["meter"] = {"backends": ["nvml", "estimated"], "interval_s": 0.5}


@dataclass(frozen=True)
class Phase:
    """One mode under the load. `samples`: per replica, as WorkingGpu has them; `records`: the
    bench's, `start_s` on the clock of the samples."""

    mode: str
    joules: float
    records: tuple
    start_s: float
    samples: dict

    @property
    def completed(self):
        return [one for one in self.records if one.completed]

    @property
    def joules_per_request(self):
        return self.joules / len(self.completed)

    def attainment(self):
        met = sum(
            one.ttft_s <= TARGETS.ttft_s and (one.tpot_s is None or one.tpot_s <= TARGETS.tpot_s)
            for one in self.completed
        )
        return met / len(self.records)


def used_joules(gpus, index):
    device = gpus.fake.state.dev[index]
    open_s = max(0, time.monotonic_ns() - device.last_ns) / 1e9
    return device.used_mj / 1e3 + draw_watts(device) * open_s


@contextlib.contextmanager
def working(service, gpus):
    """Every replica's engine coupled to its GPU."""
    threads = {}
    for name, row in gpu_rows(service).items():
        pid = eventually(lambda n=name: engine_of(replica_pids(service)[n]), 30, "an engine")
        threads[name] = WorkingGpu(gpus, gpus.uuids.index(row["id"]), pid)
    for thread in threads.values():
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads.values():
            thread.stop()


def phase(service, gpus, threads, mode, load):
    """The load in this mode; what was found holds before it begins."""
    service.put(service.edited(user_config={"mode": "advisory"}))
    indices = [thread.index for thread in threads.values()]
    devices = [gpus.fake.state.dev[index] for index in indices]
    eventually(lambda: all(d.limit_mw == d.default_mw for d in devices), 30, "the default holds")
    service.put(service.edited(user_config={"mode": mode}))
    time.sleep(SETTLED_S)
    for thread in threads.values():
        thread.samples.clear()
        thread._began_s = time.monotonic()
    before = sum(used_joules(gpus, index) for index in indices)
    run = Load(load)
    run.start()
    run.wait_until_sending()
    began_s = time.monotonic()
    records = run.finish()
    joules = sum(used_joules(gpus, index) for index in indices) - before
    first = next(iter(threads.values()))
    samples = {name: tuple(thread.samples) for name, thread in threads.items()}
    return Phase(mode, joules, tuple(records), began_s - first._began_s, samples)


def load_of(url, seconds):
    """Twenty seconds of little and twenty of much, again and again."""
    return BenchOptions(
        url=url,
        burst=BurstShape(base_rate_per_s=0.3, peak_rate_per_s=1.2, period_s=40.0, duty_ratio=0.5),
        duration_s=seconds,
        prompt_tokens="24:96",
        output_tokens="16:48",
        timeout_s=60.0,
        seed=3,
    )


def described():
    """The commit that is measured."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def report(phases, seconds, commit):
    rows = []
    for one in phases:
        limits = [sample[1] for samples in one.samples.values() for sample in samples]
        draws = [sample[2] for samples in one.samples.values() for sample in samples]
        done = one.completed
        rows.append(
            {
                "mode": "limits chosen" if one.mode == "active" else "default limit",
                "requests": len(one.records),
                "completed": len(done),
                "joules_per_request": one.joules_per_request,
                "slo_attainment_ratio": one.attainment(),
                "ttft_p99_s": quantile([r.ttft_s for r in done], 0.99),
                "tpot_p99_s": quantile([r.tpot_s for r in done if r.tpot_s is not None], 0.99),
                "mean_limit_watts": statistics.fmean(limits),
                "mean_draw_watts": statistics.fmean(draws),
                "limit_changes": sum(a != b for a, b in itertools.pairwise(limits)),
            }
        )
    return {
        "measured": "real vLLM on CPU cores under Ray Serve; the GPU is a fake whose power model "
        "slows the engine down under a limit",
        "seconds": seconds,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit,
        "phases": rows,
        "joules_per_request_ratio": rows[1]["joules_per_request"] / rows[0]["joules_per_request"],
    }


def table(found):
    """The result for people, as Markdown."""
    head = f"{found['measured']}. {found['seconds']:.0f} s of load each, at {found['commit']}."
    targets = f"p99 TTFT {TARGETS.ttft_s:g} s, TPOT {1e3 * TARGETS.tpot_s:g} ms"
    ratio = found["joules_per_request_ratio"]
    lines = [
        f"Measured: {head}",
        "No real GPU was limited: the joules are the fake's.",
        "",
        "| | J/request | attainment | TTFT p99 | TPOT p99 | limit, mean | draw, mean |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *map(line_of, found["phases"]),
        "",
        f"Targets: {targets}. {ratio:.2f} of the joules for the same load. `make power-loop` measures",
        "it; the [trajectory](docs/results/power-loop/trajectory.png).",
    ]
    return "\n".join(lines)


def line_of(one):
    cells = [
        f"{one['mode']} ({one['requests']} requests)",
        f"{one['joules_per_request']:.0f}",
        f"{one['slo_attainment_ratio']:.1%}",
        f"{one['ttft_p99_s']:.2f} s",
        f"{1e3 * one['tpot_p99_s']:.0f} ms",
        f"{one['mean_limit_watts']:.0f} W",
        f"{one['mean_draw_watts']:.0f} W",
    ]
    return f"| {' | '.join(cells)} |"


def quantile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def draw(phases, path):
    """Load, limit and draw, TTFT and TPOT over time, one column per phase."""
    figure = matplotlib("figure").Figure(figsize=(11, 9), layout="constrained")
    axes = figure.subplots(4, 2, sharex=True, sharey="row")
    for column, one in enumerate(phases):
        samples = next(iter(one.samples.values()))
        sent = [record.sent_s + one.start_s for record in one.records]
        names = ("requests/s", "watts", "TTFT, s", "TPOT, s")
        for axis, name in zip(axes[:, column], names, strict=True):
            axis.set_ylabel(name if column == 0 else "")
            axis.grid(alpha=0.3)
        axes[0, column].set_title("limits chosen" if one.mode == "active" else "default limit")
        edges = [5.0 * k for k in range(int(max(sent) / 5.0) + 2)]
        counts = [sum(a <= s < b for s in sent) / 5.0 for a, b in itertools.pairwise(edges)]
        axes[0, column].step(edges[:-1], counts, where="post")
        axes[1, column].plot([s[0] for s in samples], smooth([s[2] for s in samples]), label="draw")
        axes[1, column].plot([s[0] for s in samples], [s[1] for s in samples], label="limit")
        axes[1, column].legend(loc="upper right")
        for axis, name, target in (
            (axes[2], "ttft_s", TARGETS.ttft_s),
            (axes[3], "tpot_s", TARGETS.tpot_s),
        ):
            known = [(s, getattr(r, name)) for s, r in zip(sent, one.records, strict=True)]
            points = [(s, value) for s, value in known if value is not None]
            axis[column].plot(*zip(*points, strict=True), ".", markersize=4)
            axis[column].axhline(target, linestyle="--", color="tab:red", linewidth=1)
        axes[3, column].set_xlabel("seconds")
    save(figure, path, "The power loop on a fake GPU")


def smooth(values, width=10):
    return [statistics.fmean(values[max(0, k - width + 1) : k + 1]) for k in range(len(values))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--readme", type=Path, help="write its section power-loop")
    parser.add_argument("--stored", action="store_true", help="measure nothing, write the section")
    options = parser.parse_args()
    if not options.stored:
        measure(options)
    found = json.loads((options.out / "result.json").read_text())
    if options.readme is not None:
        write_section(options.readme, "power-loop", table(found))


def measure(options):
    """Both phases; writes result.json and the picture."""
    commit = described()
    seconds = 60.0 * options.minutes
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="js-") as name:
        folder = Path(name)
        gpus = FakeGpus(folder, 1)
        agent = AgentProcess(folder / "agent", environ={**os.environ, **gpus.environment})
        agent.start()

        def edit(config):
            one_replica_with_a_gpu(config)
            under_the_agent(folder, agent)(config)

        try:
            with started(folder, edit, gpus.environment) as service:
                eventually(lambda: len(gpu_rows(service)) == 1, 240, "a replica reports")
                with working(service, gpus) as threads:
                    load = load_of(service.url, seconds)
                    phases = [
                        phase(service, gpus, threads, mode, load) for mode in ("advisory", "active")
                    ]
        finally:
            agent.stop()
    found = report(phases, seconds, commit)
    (options.out / "result.json").write_text(json.dumps(found, indent=1) + "\n")
    draw(phases, options.out / "trajectory.png")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
