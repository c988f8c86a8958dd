"""The comparison as a page for people and as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from serve_app.fidelity.figures import AIM_RATIO, NAMES, TARGET_RATIO, errors, worst
from serve_app.fidelity.loads import Load
from serve_app.fidelity.outcome import Compared, LoadOutcome, Outcome, Session

PICTURE = "cdfs.png"
_WORDS = {
    "ttft_p50_s": ("TTFT p50, ms", 1e3, 0),
    "ttft_p99_s": ("TTFT p99, ms", 1e3, 0),
    "tpot_p50_s": ("TPOT p50, ms", 1e3, 1),
    "tpot_p99_s": ("TPOT p99, ms", 1e3, 1),
    "tokens_per_s": ("output tokens/s", 1.0, 1),
    "joules_per_request": ("J/request", 1.0, 2),
}


def markdown(outcome: Outcome, session: Session, loads: dict[str, Load], profile: str) -> str:
    """The page."""
    return "\n".join(
        (
            "# The simulator beside the real engine",
            "",
            *_about(outcome, session, profile),
            "",
            "## Three held-out loads",
            "",
            *_loads(outcome, loads),
            "",
            f"![Measured and simulated TTFT and TPOT]({PICTURE})",
            "",
            "## Constants of the host",
            "",
            *_constants(outcome),
            "",
            "## All runs",
            "",
            *_runs(outcome),
            "",
        )
    )


def summary(outcome: Outcome, link: str) -> str:
    """For the README: the errors, per load."""
    lines = [
        "Simulated over **measured**, less 1: the simulator beside the real engine under Ray, on",
        "loads that no constant was fitted to; medians of the runs that count.",
        "",
        "| load | TTFT p50 | TTFT p99 | TPOT p50 | TPOT p99 | tokens/s | J/request | runs |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for load in outcome.loads:
        cells = [_percent(load.errors[name]) for name in NAMES]
        lines.append(f"| {load.name} | {' | '.join(cells)} | {load.counted} of {load.runs} |")
    return "\n".join([*lines, "", link])


def document(outcome: Outcome, session: Session) -> dict[str, Any]:
    """The comparison as plain data; the requests themselves are in runs.json."""
    return {
        "schema_version": 1,
        "target_ratio": TARGET_RATIO,
        "aim_ratio": AIM_RATIO,
        "engine": asdict(session.sizes),
        "calibrated_on": outcome.calibrated_on,
        "host_effects": outcome.effects.to_dict(),
        "loads": [_load_data(load, outcome) for load in outcome.loads],
        "runs": [_run_data(one) for one in outcome.compared],
    }


def _about(outcome: Outcome, session: Session, profile: str) -> Iterator[str]:
    sizes = session.sizes
    yield (
        "Measured: `serve_config.yaml` under Ray Serve with vLLM's CPU engine, one core a replica, "
        "mode off, on a virtual machine of two cores that the load generator shares. TTFT and TPOT "
        "as the replica's request log has them; the client's own stand beside them and are not "
        "simulated. Joules by the `estimated` meter, which is CPU seconds of the replicas' "
        "processes x 4 W + 1 W each: the simulator is asked for the same quantity, not for what a "
        "sensor would show."
    )
    yield ""
    yield (
        f"Simulated: the kernel of `policies.sim` with the profile `{profile}`, fed with the "
        "arrival times and token counts that the replicas recorded, the replicas that there were "
        f"at the same moments, {sizes.max_num_batched_tokens} tokens a step, "
        f"{sizes.max_num_seqs} sequences, {sizes.kv_capacity_tokens:,} tokens of KV cache, and "
        "the constants of the host below, "
        f"which come from another load ({outcome.calibrated_on}), and how slow the machine was, "
        "medians of 30 s: its neighbours make all memory slower by up to a third for seconds to "
        "minutes, and a small fixed work beside the load, which reads memory as a step does, tells "
        "by what factor. Steps take so much longer; nothing is fitted there. *Profile alone*: "
        "without those constants and that factor."
    )
    yield ""
    yield (
        "Each figure is the median over the runs that count. A percentile is a nearest rank; p99 "
        "of a run is its second or third largest value. *Runs apart*: the largest over the "
        "smallest of the measured runs that count, less 1: how far the engine, given the same "
        "requests at the same times, is from itself."
    )


def _loads(outcome: Outcome, loads: dict[str, Load]) -> Iterator[str]:
    for load in outcome.loads:
        what = f" {loads[load.name].what};" if load.name in loads else ""
        yield f"**{load.name}**:{what} {load.counted} of {load.runs} runs count: {load.verdict}."
        yield ""
        yield (
            "| figure | measured | runs apart | simulated | error "
            "| profile alone | error | client |"
        )
        yield "|---|---|---|---|---|---|---|---|"
        for name in NAMES:
            words, factor, digits = _WORDS[name]
            cells = (
                _number(getattr(load.measured, name), factor, digits),
                _percent(outcome.apart(load.name, name)),
                _number(getattr(load.simulated, name), factor, digits),
                _percent(load.errors[name]),
                _number(getattr(load.plain, name), factor, digits),
                _percent(load.plain_errors[name]),
                _number(getattr(load.client, name), factor, digits),
            )
            yield f"| {words} | {' | '.join(cells)} |"
        yield ""


def _constants(outcome: Outcome) -> Iterator[str]:
    effects = outcome.effects
    yield "| beside | step time, x profile | step energy, x profile |"
    yield "|---|---|---|"
    for beside, ratios in effects.ratios.items():
        name = beside.name.lower().replace("_", " ")
        yield f"| {name} | {ratios.step_time:.3f} | {ratios.step_energy:.3f} |"
    yield ""
    idle, start = _number(effects.idle_watts, 1.0, 2), _number(effects.start_watts, 1.0, 2)
    yield (
        f"TTFT outside of steps {1e3 * effects.request_overhead_s:.1f} ms; an idle replica draws "
        f"{idle} W; a starting one {start} W by its meter, which opens after Python's imports."
    )


def _runs(outcome: Outcome) -> Iterator[str]:
    yield (
        "| run | TTFT p50 | p99 | TPOT p50 | p99 | J/request | worst error | slowness | alone "
        "before, after | others' cores | not counted because |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for one in outcome.compared:
        conditions = one.run.conditions
        cells = [
            f"{_number(getattr(one.measured, name), _WORDS[name][1], _WORDS[name][2])} / "
            f"{_number(getattr(one.simulated, name), _WORDS[name][1], _WORDS[name][2])}"
            for name in NAMES
            if name != "tokens_per_s"
        ]
        found = _run_data(one)["errors"]
        yards = (conditions.yardstick_before_s, conditions.yardstick_after_s)
        alone = ", ".join(_number(value, 1e3, 1) for value in yards)
        row = (
            f"{one.run.load} {one.run.round}",
            *cells,
            _percent(worst(found)),
            f"{one.slowness:.2f}",
            f"{alone} ms",
            f"{conditions.foreign_cores:.2f}",
            "; ".join(one.reasons) or "-",
        )
        yield f"| {' | '.join(row)} |"
    yield ""
    yield "Measured / simulated with the constants of the host; ms and J."


def _load_data(load: LoadOutcome, outcome: Outcome) -> dict[str, Any]:
    found = asdict(load)
    return found | {
        "measured_apart_ratio": {name: outcome.apart(load.name, name) for name in NAMES},
        "errors": load.errors,
        "profile_alone_errors": load.plain_errors,
        "verdict": load.verdict,
    }


def _run_data(one: Compared) -> dict[str, Any]:
    conditions = asdict(one.run.conditions)
    return {
        "load": one.run.load,
        "round": one.run.round,
        "started_at": one.run.started_at,
        "requests": len(one.run.requests),
        "measured": asdict(one.measured),
        "client": asdict(one.client),
        "simulated": asdict(one.simulated),
        "profile_alone": asdict(one.plain),
        "errors": errors(one.simulated, one.measured),
        "profile_alone_errors": errors(one.plain, one.measured),
        "replicas": [asdict(life) for life in one.run.lives],
        "share_by_replica": _shares(one),
        "slowness": one.slowness,
        "conditions": conditions,
        "not_counted_because": list(one.reasons),
    }


def _shares(one: Compared) -> dict[str, dict[str, float]]:
    """Share of the requests that each replica got: measured, simulated."""
    count = len(one.run.requests)
    return {
        life.replica: {
            "measured": sum(r.replica == life.replica for r in one.run.requests) / count,
            "simulated": float((one.played.replica == index).sum()) / count,
        }
        for index, life in enumerate(one.run.lives)
    }


def _number(value: float | None, factor: float, digits: int) -> str:
    return "-" if value is None else f"{value * factor:,.{digits}f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.1%}"
