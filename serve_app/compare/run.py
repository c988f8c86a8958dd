"""Runs a comparison: each part brings its systems up, loads them in turn and takes them down."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from serve_app.bench.prompts import prompt_source
from serve_app.compare.configs import Base, read_base
from serve_app.compare.dynamic import run_dynamic
from serve_app.compare.measure import Plan, idle_check, measure_rounds, warm_up
from serve_app.compare.options import CompareOptions, Part
from serve_app.compare.results import ResultFolder
from serve_app.compare.systems import RAY_NICENESS, Say, closed_loop_rig, one_replica_each

_IDLE_S = 5.0
_IDLE_LIMIT_RATIO = 0.05  # of one core
LOGS = Path(".jouleserve") / "compare"


def compare(options: CompareOptions, folder: ResultFolder, say: Say) -> None:
    """Measure all parts into `folder`.

    Whatever ends it (a failure, Ctrl-C), the systems are stopped and the rows so far are written.
    Raises ConfigError for a file that does not fit, EngineError when a system does not come up.
    """
    base = read_base(options.config)
    folder.begin(options)
    for part in options.parts:
        logs = (LOGS / folder.path.name / part.value).absolute()
        if part is Part.DYNAMIC:
            for row in run_dynamic(base, options, logs, say):
                folder.add(row)
        else:
            _closed_loop(part, base, options, (folder, logs), say)
    folder.end()


def _closed_loop(
    part: Part, base: Base, options: CompareOptions, where: tuple[ResultFolder, Path], say: Say
) -> None:
    folder, logs = where
    say(f"{part}: starting bare vLLM and one Ray cluster with stock and ours")
    apps = one_replica_each(direct=part is Part.DIRECT, profile=options.profile)
    with closed_loop_rig(base, apps, logs, say) as rig:
        prompts = prompt_source(base.model, None, options.seed)
        plan = Plan(
            part=part.value,
            model=base.model,
            options=options,
            waves={},
            prompts=prompts,
            done=folder.rounds_done(part.value),
        )
        plan = replace(plan, waves=warm_up(rig, plan, say))
        idle = idle_check(rig, _IDLE_S)
        folder.note(f"{part}_configs", rig.configs)
        folder.note(f"{part}_waves", {str(c): waves for c, waves in plan.waves.items()})
        folder.note(f"{part}_idle", idle)
        folder.remark(idle_remark(part, idle))
        folder.remark(f"{part}: bare vLLM ran at Ray's own worker niceness, {RAY_NICENESS}")
        folder.remark(f"{part}: prompts from {prompts.note}")
        for row in measure_rounds(rig, plan, say):
            folder.add(row.to_dict())


def idle_remark(part: Part, idle: dict[str, Any]) -> str:
    """Return what every application used while nothing was asked, and which are not idle."""
    shares: dict[str, float] = {}
    for name, used_s in idle["cpu_s"].items():
        app = name.partition("/")[0]
        shares[app] = shares.get(app, 0.0) + used_s / idle["wall_s"]
    text = ", ".join(f"{app} {share:.1%}" for app, share in sorted(shares.items()))
    busy = sorted(app for app, share in shares.items() if share > _IDLE_LIMIT_RATIO)
    told = f"; more than {_IDLE_LIMIT_RATIO:.0%}: {', '.join(busy)}" if busy else ""
    return f"{part}: at rest, of one core: {text}{told}"
