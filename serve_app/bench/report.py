"""A bench result as a table for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from serve_app.bench.result import BenchResult

UNAVAILABLE = "unavailable"


def table_of(result: BenchResult) -> Table:
    """Return the table. What is not known is called unavailable, never 0."""
    document = result.to_dict()
    run = document["run"]
    table = Table(
        title=f"{run['model']} at {run['url']}: {run['load']}",
        title_justify="left",
        show_header=False,
    )
    table.add_column("")
    table.add_column("", justify="right")
    table.add_column("", style="dim")
    for section in (_requests, _latency, _throughput, _energy, _fleet):
        for name, value, note in section(document):
            table.add_row(name, value, note)
        table.add_section()
    return table


Rows = list[tuple[str, str, str]]


def _requests(document: dict[str, Any]) -> Rows:
    requests, slo = document["requests"], document["slo"]
    rows = [
        ("requests sent", f"{requests['arrived']}", f"of {requests['scheduled']} scheduled"),
        ("completed", f"{requests['completed']}", ""),
    ]
    rows += [(f"failed: {kind}", str(count), "") for kind, count in requests["errors"].items()]
    if requests["interrupted"]:
        rows.append(("interrupted", str(requests["interrupted"]), "left out of all figures"))
    ratio = slo["attainment_ratio"]
    targets = f"TTFT ≤ {slo['ttft_s'] * 1e3:g} ms and TPOT ≤ {slo['tpot_s'] * 1e3:g} ms"
    attained = UNAVAILABLE if ratio is None else f"{ratio:.1%}"
    rows.append(("SLO attainment", attained, f"{targets}, of all requests sent"))
    return rows


def _latency(document: dict[str, Any]) -> Rows:
    latency = document["latency"]
    labels = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "ITL", "e2e_s": "end to end"}
    rows = [
        (f"{label} p50 / p99", _milliseconds(latency[key]), "ms") for key, label in labels.items()
    ]
    lag = _milliseconds(latency["schedule_lag_s"])
    return [*rows, ("schedule lag p50 / p99", lag, "ms, sent later than planned")]


def _throughput(document: dict[str, Any]) -> Rows:
    tokens = document["tokens"]
    prompt = UNAVAILABLE if tokens["prompt"] is None else f"{tokens['prompt']:,}"
    return [
        ("requests per second", _number(document["throughput"]["requests_per_s"], 2), ""),
        ("output tokens per second", _number(tokens["output_per_s"], 1), ""),
        ("prompt tokens", prompt, f"{tokens['prompt_wanted']:,} planned, before any chat template"),
        ("output tokens", f"{tokens['output']:,}", f"{tokens['output_wanted']:,} planned"),
    ]


def _energy(document: dict[str, Any]) -> Rows:
    energy = document["energy"]
    completed = document["requests"]["completed"]
    source = f"{energy['source']}; told by {energy['responses']} of {completed} responses"
    return [
        ("J per request", _number(energy["joules_per_request"], 3), source),
        ("J per output token", _number(energy["joules_per_output_token"], 4), energy["source"]),
    ]


def _fleet(document: dict[str, Any]) -> Rows:
    fleet = document["fleet"]
    if fleet is None:
        return [("fleet energy and replicas", "not offered", "GET /jouleserve/energy")]
    balance = fleet["balance_error_ratio"]
    balance_text = UNAVAILABLE if balance is None else f"{balance:.2%}"
    still = "" if fleet["settled"] else "; the books had not come to rest"
    caps = fleet["max_num_active_seqs"]
    return [
        ("fleet J per request", _number(fleet["joules_per_request"], 3), "meter up to the end"),
        ("meter", _number(fleet["meter_joules"], 1), "J, from before the run until settled"),
        ("  responses", _number(fleet["responses_joules"], 1), "J"),
        ("  idle", _number(fleet["idle_joules"], 1), "J"),
        ("  unattributed", _number(fleet["unattributed_joules"], 1), "J"),
        ("balance error", balance_text, f"responses + idle + unattributed against meter{still}"),
        ("replicas", _span(fleet["replicas"]), "least to most"),
        ("batch cap", _span(caps), "max_num_active_seqs per replica"),
        ("replica-seconds", _number(fleet["replica_seconds"], 0), ""),
    ]


def _span(span: dict[str, Any]) -> str:
    if span["min"] is None:
        return UNAVAILABLE
    return f"{span['min']:g} to {span['max']:g}, {span['changes']} changes"


def _number(value: float | None, digits: int) -> str:
    return UNAVAILABLE if value is None else f"{value:,.{digits}f}"


def _milliseconds(distribution: dict[str, float | None]) -> str:
    p50, p99 = distribution["p50"], distribution["p99"]
    if p50 is None or p99 is None:
        return UNAVAILABLE
    return f"{p50 * 1e3:.1f} / {p99 * 1e3:.1f}"
