"""The simulator beside Vidur, an outsider, on one small trace: how long each takes, what each says.

    python tests/oracles/vidur_speed.py [--write docs/results/sim-vidur] [--vidur PYTHON]

Both play the same requests on one replica with the same step times, token budget, batch and cache.
Vidur runs in an environment of its own (installed on first use, 1 GB), or in the one whose
interpreter `--vidur` names. Writes report.md and result.json.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import numpy as np  # noqa: E402
from aiperf_tool import uv_environment  # noqa: E402

from policies.core.types import Bounds, ControlSettings  # noqa: E402
from policies.sim.blocks import Block, joined, pieces  # noqa: E402
from policies.static import Static  # noqa: E402
from serve_app.deciders import load_profile  # noqa: E402
from serve_app.models.cache import cache_root  # noqa: E402
from serve_app.profiler.host import commit, host_facts  # noqa: E402
from serve_app.simulator.compiled import keep_compiled  # noqa: E402
from serve_app.traces.load import TraceOptions, load_trace  # noqa: E402

VIDUR = "vidur==0.0.26"
PROFILE = "llama-3.1-8b-instruct@h100"
TRACES = ("chat-2023", "2*chat-2023", "0.2*code-2024")
KV_CAPACITY_TOKENS, MAX_NUM_SEQS, BUDGET_TOKENS = 420_000, 256, 2048
OURS_TIMES, THEIRS_TIMES = 5, 3
QUANTILES = (0.5, 0.99)


@dataclass(frozen=True)
class Played:
    """One simulator on one trace. Seconds: of CPU (median of the runs) and of the simulated
    requests, at the median and the 99th percentile (nearest rank)."""

    cpu_s: float
    wall_s: float
    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    end_s: float


def install() -> Path:
    """The interpreter of an environment that has Vidur."""
    root = cache_root() / "oracles" / VIDUR
    program = root / "bin" / "python"
    if not (root / "done").exists():
        uv = str(Path(sys.executable).parent / "uv")
        subprocess.run([uv, "venv", "--clear", "--python", sys.executable, str(root)], check=True)
        wanted = [uv, "pip", "install", "--quiet", "--python", str(program), VIDUR]
        subprocess.run(wanted, env=uv_environment(), check=True)
        (root / "done").touch()
    return program


def quantiles(values) -> tuple[float, ...]:
    """Nearest rank."""
    held = np.sort(values)
    return tuple(float(held[int(np.ceil(q * len(held))) - 1]) for q in QUANTILES)


def ours(block: Block) -> Played:
    """Ticks, reports and meters included, as in every simulated run; compiled beforehand."""
    keep_compiled()
    from policies.sim.fleet import simulate
    from policies.sim.outcome import SimSettings

    model = load_profile(PROFILE)
    bounds = Bounds(max_replicas=1, max_num_seqs=MAX_NUM_SEQS)
    settings = SimSettings(
        control=ControlSettings(bounds=bounds),
        max_num_batched_tokens=BUDGET_TOKENS,
        kv_capacity_tokens=KV_CAPACITY_TOKENS,
        tick_s=1.0,
    )
    simulate(pieces(block.between(0, 10)), model, Static(num_replicas=1), settings)
    cpu_s, wall_s = [], []
    for _ in range(OURS_TIMES):
        begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
        result = simulate(pieces(block), model, Static(num_replicas=1), settings)
        wall_s.append(time.perf_counter() - begin_s)
        cpu_s.append(time.process_time() - begin_cpu_s)
    return Played(
        cpu_s=statistics.median(cpu_s),
        wall_s=statistics.median(wall_s),
        ttft_s=tuple(result.ttft.percentile(q) for q in QUANTILES),
        tpot_s=tuple(result.tpot.percentile(q) for q in QUANTILES),
        end_s=result.duration_s,
    )


def theirs(block: Block, python: Path, folder: Path) -> Played:
    """`Simulator.run` alone: not its start, and with its metrics, plots and traces off."""
    latency = load_profile(PROFILE).latency
    trace = folder / "trace.csv"
    with trace.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("Date", "Time", "PromptTokenCount", "CompletionTokenCount"))
        writer.writerows(
            ("day", *row) for row in zip(*(one.tolist() for one in block), strict=True)
        )
    asked = {
        "step": {
            "t0": latency.t0_s,
            "a": latency.a_s_per_seq,
            "b": latency.b_s_per_kv_token,
            "c": latency.c_s_per_prefill_token,
            "q": latency.q_s_per_attended_pair,
        },
        "kv_capacity_tokens": KV_CAPACITY_TOKENS,
        "max_num_seqs": MAX_NUM_SEQS,
        "max_num_batched_tokens": BUDGET_TOKENS,
        "trace": str(trace),
        "folder": str(folder),
    }
    found = []
    for _ in range(THEIRS_TIMES):
        done = subprocess.run(
            [str(python), str(Path(__file__).with_name("vidur_play.py"))],
            input=json.dumps(asked), capture_output=True, text=True, timeout=1800, cwd=folder,
        )  # fmt: skip
        if done.returncode:
            sys.exit(f"Vidur ended with {done.returncode}:\n{done.stderr[-3000:]}")
        found.append(json.loads((folder / "result.json").read_text()))
    arrival_s, first_s, end_s = np.array(sorted(found[-1]["requests"])).T
    later = block.output_tokens > 1
    return Played(
        cpu_s=statistics.median(one["cpu_s"] for one in found),
        wall_s=statistics.median(one["wall_s"] for one in found),
        ttft_s=quantiles(first_s - arrival_s),
        tpot_s=quantiles((end_s - first_s)[later] / (block.output_tokens[later] - 1)),
        end_s=float(end_s.max()),
    )


def row(name: str, block: Block, us: Played, them: Played) -> str:
    """A row of the report."""
    shown = []
    for mine, other in ((us.ttft_s, them.ttft_s), (us.tpot_s, them.tpot_s)):
        for a, b in zip(mine, other, strict=True):
            shown.append(f"{1e3 * b:.1f} / {1e3 * a:.1f} ({a / b - 1.0:+.1%})")
    tokens = int(block.output_tokens.sum())
    return (
        f"| {name} | {block.rows:,} | {tokens:,} | {them.cpu_s:.2f} | {us.cpu_s:.3f} "
        f"| **{them.cpu_s / us.cpu_s:,.0f}** | {' | '.join(shown)} |"
    )


HEAD = (
    "| trace, simulated | requests | output tokens | Vidur, CPU s | JouleServe, CPU s | ratio "
    "| TTFT p50, ms | TTFT p99, ms | TPOT p50, ms | TPOT p99, ms |\n"
    "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def report(rows: list[str], command: str, duration_s: float) -> str:
    """The page."""
    return f"""# The simulator beside Vidur

Made by `{command}`. CPU seconds are **measured** on {host_facts().get("cpu", "?")}, median of {THEIRS_TIMES} and {OURS_TIMES}
runs; latencies are **simulated** (Vidur / JouleServe). {VIDUR}, the first {duration_s:g} s of each trace
(docs/traces.md), one replica of `{PROFILE}`, {BUDGET_TOKENS} tokens per step, {MAX_NUM_SEQS} sequences,
{KV_CAPACITY_TOKENS:,} tokens of cache.

{HEAD}
{chr(10).join(rows)}

- Both play the same step times. Vidur's own come from tables of kernel times on a model hub, which is not
  reached here: its tables are filled from our profile, through its predictor, which counts contexts in
  steps of 16 tokens and chunks of prompts in steps of 32, both rounded up. The latencies compare the two
  schedulers, not the two models of a GPU: nothing here says whose step times are nearer to an engine's.
- Vidur: its Sarathi scheduler (chunked prefill with a token budget), Python predictor, metrics, plots and
  traces off, `Simulator.run` alone. JouleServe: a whole run with its ticks, reports, meters and joules,
  which Vidur does not simulate; compiled beforehand.
- Vidur {VIDUR.partition("==")[2]} as published does not start: its predictor class is abstract by one leftover
  decorator, which is lifted (tests/oracles/vidur_play.py).
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vidur", type=Path, help="interpreter that has Vidur; installs without")
    parser.add_argument("--duration-s", type=float, default=300.0)
    parser.add_argument("--write", type=Path, help="folder of report.md and result.json")
    options = parser.parse_args()
    python = options.vidur or install()
    rows, results = [], {}
    for name in TRACES:
        block = joined(load_trace(name, TraceOptions(duration_s=options.duration_s)).blocks())
        us = ours(block)
        with tempfile.TemporaryDirectory(prefix="vidur-oracle-") as scratch:
            them = theirs(block, python, Path(scratch))
        rows.append(row(name, block, us, them))
        results[name] = {"vidur": asdict(them), "jouleserve": asdict(us)}
    command = " ".join(["python tests/oracles/vidur_speed.py", *sys.argv[1:]])
    text = report(rows, command, options.duration_s)
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "report.md").write_text(text)
        facts = {
            "time": datetime.now(UTC).isoformat(timespec="seconds"), "command": command,
            "source": commit(ROOT), "machine": host_facts(), "vidur": VIDUR, "traces": results,
        }  # fmt: skip
        (options.write / "result.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
