"""The check as markdown: what was found, how, and what it means for a meter."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serve_app.gpu_check.analysis import AveragingWindow, Distribution, PhaseEnergy
from serve_app.gpu_check.result import CheckResult, GpuResult


def markdown(result: CheckResult, manifest: dict[str, Any]) -> str:
    """Return the report."""
    findings = result.findings()
    verdict = "Counter and power agree within the stated error." if not findings else "Findings:"
    lines = [
        "# Check of the GPU meter",
        "",
        *_where(result, manifest),
        "",
        verdict,
        *(f"- {finding}" for finding in findings),
        *(f"- note: {note}" for note in result.notes),
        "",
    ]
    for gpu in result.gpus:
        lines += _of_gpu(gpu)
    lines += _how(result)
    if manifest.get("picture"):
        lines += ["", f"![draw over time]({manifest['picture']})"]
    return "\n".join(lines) + "\n"


def _where(result: CheckResult, manifest: dict[str, Any]) -> list[str]:
    driver, source = manifest["driver"], manifest["source"]
    names = ", ".join(sorted({gpu.gpu["name"] for gpu in result.gpus}))
    changed = " with changes" if source["dirty"] else ""
    engines = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    sampling = result.sampling
    every = f"Samples every {sampling['period_s'] * 1e3:g} ms"
    return [
        f"{len(result.gpus)} x {names}; driver {driver['driver']}, NVML {driver['nvml']},",
        f"CUDA {driver['cuda']}; {manifest['date']}; commit {source['commit']}{changed}.",
        f"Load: {result.load or 'none'}. {engines}.",
        f"{every} took {sampling['cpu_ratio']:.1%} of one core. Nothing was set on any GPU.",
    ]


def _of_gpu(gpu: GpuResult) -> list[str]:
    cost = "; ".join(f"{name} {_micro(found)}" for name, found in gpu.cost_s.items() if found)
    return [
        f"## GPU {gpu.gpu['index']} ({gpu.gpu['uuid_sha256']})",
        "",
        "| what | value |",
        "|---|---|",
        f"| counter moves every | {_milli(gpu.counter_update_s)} |",
        f"| power value moves every | {_milli(gpu.power_update_s)} |",
        f"| power is a mean over | {_window(gpu.window)} |",
        f"| instant power is a mean over | {_window(gpu.instant_window)} |",
        f"| one call costs | {cost or 'not measured'} |",
        "",
        "| phase | s | mean W | swing W | counter J | integrated J | difference | stated error |",
        "|---|---|---|---|---|---|---|---|",
        *_rows(gpu.phases),
        "",
    ]


def _rows(phases: tuple[PhaseEnergy, ...]) -> Iterator[str]:
    for one in phases:
        if one.counter_joules is None or one.difference_ratio is None:
            counted, difference, stated = "no counter", "", ""
        else:
            counted, difference = f"{one.counter_joules:.1f}", f"{one.difference_ratio:+.2%}"
            stated = f"{one.stated_ratio:.2%}{'' if one.within else ', **beyond**'}"
        yield (
            f"| {one.phase} | {one.seconds:.1f} | {one.mean_watts:.1f} | {one.swing_watts:.0f} "
            f"| {counted} | {one.integrated_joules:.1f} | {difference} | {stated} |"
        )


def _how(result: CheckResult) -> list[str]:
    return [
        f"The meter reads all GPUs in {_micro(result.cycle_s)}.",
        "",
        "Intervals and costs: median, 5th to 95th percentile. Averaging: the window and the lag",
        "for which the power values fit the counter's own mean draw best; in brackets the windows",
        "that fit about as well. Difference: integrated power over counter energy, less 1. Stated",
        "error: 5 % (the sensor), half the averaging window times the swing of the draw (what the",
        "mean carries over the ends of a phase), and the sampling period. Both values come from",
        "one board: that they agree does not make them true to a wattmeter.",
    ]


def _milli(found: Distribution | None) -> str:
    if found is None:
        return "it did not move"
    return f"{found.median * 1e3:.1f} ms ({found.p5 * 1e3:.1f} to {found.p95 * 1e3:.1f})"


def _micro(found: Distribution | None) -> str:
    if found is None:
        return "not measured"
    return f"{found.median * 1e6:.0f} us ({found.p5 * 1e6:.0f} to {found.p95 * 1e6:.0f})"


def _window(found: AveragingWindow | None) -> str:
    if found is None:
        return "not known: no such value, or the draw did not move enough"
    return (
        f"{found.window_s:.2f} s ({found.low_s:.2f} to {found.high_s:.2f}), "
        f"{found.lag_s * 1e3:+.0f} ms late; misfit {found.misfit_watts:.1f} W of a swing of "
        f"{found.swing_watts:.0f} W"
    )
