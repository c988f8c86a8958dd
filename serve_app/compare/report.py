"""The tables of a comparison, from its rows. All figures are measured; nothing is simulated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from serve_app.compare.ratios import Ratio, Verdict, all_ratios, medians
from serve_app.compare.text import NONE, ms, number, pair, percent, table

_MODES = {
    "overhead": "ingress mode",
    "direct": "direct-streaming mode",
}
_NAMES = {
    "bare": "bare vLLM",
    "stock": "stock ray.serve.llm",
    "ours-off": "JouleServe, metering only",
    "ours": "JouleServe, active policy",
}
_CPU_TOKENS = 1000
_RATIO_HEADER = ("mode", "system", "concurrency", "throughput", "TTFT p50", "TPOT p50", "verdict")


def markdown(rows: Sequence[dict[str, Any]], facts: dict[str, Any]) -> str:
    """Return report.md."""
    return "\n".join([*_head(facts), *summary(rows), *_details(rows), *_notes(facts)]) + "\n"


def summary(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines that the README shows: the ratios to stock, and the dynamic run."""
    ratios = all_ratios(rows)
    return [*_to_stock(ratios), *_dynamic(rows)]


def _head(facts: dict[str, Any]) -> list[str]:
    machine = facts.get("machine", {})
    state = " (interrupted)" if facts.get("interrupted") else ""
    return [
        f"# Comparison {facts['run_id']}{state}",
        "",
        (
            f"Measured on {machine.get('cpu', '?')}, {machine.get('cores', '?')} cores, "
            f"{machine.get('memory_gib', '?')} GiB; versions and configuration in manifest.json, "
            "every round in rows.json."
        ),
        "",
    ]


def _to_stock(ratios: Iterable[Ratio]) -> list[str]:
    chosen = [r for r in ratios if r.base == "stock" and r.median is not None]
    if not chosen:
        return []
    lines = [
        "## JouleServe / stock ray.serve.llm at one replica each (measured)",
        "",
        (
            "Median over interleaved rounds [least, greatest]. Throughput above 1 is better, times "
            "below 1 are better."
        ),
        "",
    ]
    return [*lines, *table(_RATIO_HEADER, _ratio_rows(chosen)), ""]


def _ratio_rows(ratios: Iterable[Ratio]) -> list[list[str]]:
    places: dict[tuple[str, str, str, int], list[Ratio]] = {}
    for ratio in ratios:
        place = (ratio.part, ratio.system, ratio.base, ratio.concurrency)
        places.setdefault(place, []).append(ratio)
    return [
        [
            _MODES.get(part, part),
            _NAMES.get(system, system),
            str(concurrency),
            *(_spread(ratio) for ratio in group),
            _verdict(group),
        ]
        for (part, system, _, concurrency), group in places.items()
    ]


def _spread(ratio: Ratio) -> str:
    if ratio.median is None:
        return NONE
    return f"{ratio.median:.3f} [{ratio.least:.3f}, {ratio.greatest:.3f}]"


def _verdict(group: Sequence[Ratio]) -> str:
    """Return one phrase for a row: which of its figures miss the 5 % bar."""
    labels = {"tokens_per_s": "throughput", "ttft_p50_s": "TTFT", "tpot_p50_s": "TPOT"}
    bad = [r for r in group if r.verdict in (Verdict.WORSE, Verdict.UNDECIDED)]
    missing = [r for r in group if r.verdict is Verdict.MISSING]
    if missing:
        return Verdict.MISSING.value
    if not bad:
        return "within 5 % or better"
    return "; ".join(f"{labels[r.measure]} {r.verdict.value}" for r in bad)


def _dynamic(rows: Sequence[dict[str, Any]]) -> list[str]:
    found = [row for row in rows if row["part"] == "dynamic"]
    if not found:
        return []
    figures = [
        ("requests / completed / failed", _counts),
        ("TTFT p50 / p99, ms", lambda r: pair(r["latency"]["ttft_s"])),
        ("TPOT p50 / p99, ms", lambda r: pair(r["latency"]["tpot_s"])),
        ("SLO attainment", lambda r: percent(r["slo"]["attainment_ratio"])),
        ("replicas, least to most", lambda r: f"{r['replicas']['min']} to {r['replicas']['max']}"),
        ("replica-seconds", lambda r: number(r["replica_seconds"], 0)),
        ("J, same estimate from outside", lambda r: number(r["joules"], 0)),
        ("J/request, same estimate from outside", lambda r: number(r["joules_per_request"], 2)),
        ("J/request, by its own meter", lambda r: number(r["own_joules_per_request"], 2)),
    ]
    return [
        "## The same bursts, one to two replicas (measured; joules estimated)",
        "",
        f"{found[0]['load']}; each system alone on the machine, one after the other.",
        "",
        *table(
            ["", *(_NAMES.get(row["system"], row["system"]) for row in found)],
            [[label, *(figure(row) for row in found)] for label, figure in figures],
        ),
        "",
    ]


def _counts(row: dict[str, Any]) -> str:
    requests = row["requests"]
    return f"{requests['arrived']} / {requests['completed']} / {requests['failed']}"


def _details(rows: Sequence[dict[str, Any]]) -> list[str]:
    closed = [row for row in rows if "concurrency" in row]
    if not closed:
        return []
    to_bare = [r for r in all_ratios(closed) if r.base == "bare" and r.median is not None]
    bare = (
        ["## All / bare vLLM (measured)", "", *table(_RATIO_HEADER, _ratio_rows(to_bare)), ""]
        if to_bare
        else []
    )
    return [*bare, *_absolute(closed), *_cpu(closed)]


def _absolute(rows: Sequence[dict[str, Any]]) -> list[str]:
    rate, ttft, tpot = (medians(rows, key) for key in ("tokens_per_s", "ttft_p50_s", "tpot_p50_s"))
    header = ["mode", "concurrency", "system", "tokens/s", "TTFT p50 ms", "TPOT p50 ms", "failed"]
    lines = [
        [
            _MODES.get(part, part),
            str(concurrency),
            _NAMES.get(system, system),
            number(rate[part, concurrency, system], 1),
            ms(ttft[part, concurrency, system]),
            ms(tpot[part, concurrency, system]),
            str(_failed(rows, (part, concurrency, system))),
        ]
        for part, concurrency, system in rate
    ]
    title = "## Medians over the rounds (measured)"
    return [title, "", *table(header, lines), ""]


def _failed(rows: Sequence[dict[str, Any]], place: tuple[str, int, str]) -> int:
    return sum(
        row["requests"] - row["completed"]
        for row in rows
        if (row["part"], row["concurrency"], row["system"]) == place
    )


def _cpu(rows: Sequence[dict[str, Any]]) -> list[str]:
    """CPU seconds per 1,000 output tokens by process part: steadier than time on a busy host."""
    places: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for row in rows:
        places.setdefault((row["part"], row["concurrency"], row["system"]), []).append(row)
    roles = ("engine", "server", "ingress", "proxy", "controller", "ledger", "other")
    lines = []
    for (part, concurrency, system), group in places.items():
        tokens = sum(row["output_tokens"] for row in group)
        app = system.partition("-")[0]
        spent = [_role_s(group, app, role) for role in roles]
        idle_s = sum(row["idle_app_cpu_s"] for row in group)
        wall_s = sum(row["wall_s"] for row in group)
        lines.append(
            [
                _MODES.get(part, part),
                str(concurrency),
                _NAMES.get(system, system),
                *(number(s * _CPU_TOKENS / tokens if tokens else None, 2) for s in spent),
                number(sum(spent) * _CPU_TOKENS / tokens if tokens else None, 2),
                percent(idle_s / wall_s if wall_s else None),
            ]
        )
    header = ["mode", "concurrency", "system", *roles, "sum", "others, of a core"]
    return [
        "## CPU seconds per 1,000 output tokens (measured)",
        "",
        (
            "`server` is the replica or API server process, `other` the rest of Ray. `others`: what"
            " the systems that were up but not loaded used."
        ),
        "",
        *table(header, lines),
        "",
    ]


def _role_s(group: Sequence[dict[str, Any]], app: str, role: str) -> float:
    """CPU seconds of a role over the cells; Ray's shared parts count for Ray's applications."""
    shared = 0.0 if app == "bare" else sum(row["cpu_s"].get(f"ray/{role}", 0.0) for row in group)
    return shared + sum(float(row["cpu_s"].get(f"{app}/{role}", 0.0)) for row in group)


def _notes(facts: dict[str, Any]) -> list[str]:
    notes = facts.get("notes") or []
    return ["## Notes", "", *(f"- {note}" for note in notes)] if notes else []
