"""What a flood of wrong API keys costs those who have one.

    JOULESERVE_API_KEY=... python -m serve_app.security.flood --url http://127.0.0.1:8000

Good traffic runs alone and beside the flood in turn, in one run, so that a drift of the machine
counts for both; every pair of phases has the same requests at the same times. Reported is the p99
of all good requests of a kind of phase, and the ratio. On one host the flood, the clients and the
service share the cores: what the sender takes of them is in the result, and with --elsewhere a
third kind of phase, with the same flood at another server of this host, shows what the service and
what is before it have no part in. The key needs the scopes inference and energy. Exit status: 0, or
1 where a p99 has moved by more than --limit.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.bench.options import BenchOptions
from serve_app.bench.records import RequestRecord
from serve_app.bench.runner import run_bench_async
from serve_app.security.bad_keys import Flood, FloodCounts
from serve_app.settings import api_key

_MEASURES: dict[str, Callable[[RequestRecord], float | None]] = {
    "ttft": lambda record: record.ttft_s,
    "tpot": lambda record: record.tpot_s,
    "e2e": lambda record: record.e2e_s,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """The good requests of all phases of one kind. `p50_s`, `p99_s`: by ttft, tpot, e2e; of the
    completed ones, None without any."""

    requests: int
    completed: int
    p50_s: dict[str, float | None]
    p99_s: dict[str, float | None]

    @classmethod
    def of(cls, records: list[RequestRecord]) -> Traffic:
        done = [record for record in records if record.completed]
        return cls(
            requests=len(records),
            completed=len(done),
            p50_s={name: _quantile(done, of, 0.5) for name, of in _MEASURES.items()},
            p99_s={name: _quantile(done, of, 0.99) for name, of in _MEASURES.items()},
        )


@dataclass(slots=True)
class Phases:
    """What was seen, by kind of phase: alone, flooded, elsewhere."""

    records: dict[str, list[RequestRecord]] = field(default_factory=dict)
    floods: dict[str, list[FloodCounts]] = field(default_factory=dict)


def measure(
    options: BenchOptions, floods: Mapping[str, Callable[[], Flood] | None], rounds: int
) -> Phases:
    """Run the phases of all kinds in turn, every other time backwards. `floods`: what makes the
    flood of a kind, None = there is none."""
    seen = Phases({kind: [] for kind in floods}, {kind: [] for kind in floods})
    for number in range(rounds):
        for kind in list(floods)[:: 1 if number % 2 == 0 else -1]:
            make = floods[kind]
            flood = make() if make is not None else None
            with flood if flood is not None else nullcontext():
                chosen = replace(options, seed=options.seed + number)
                seen.records[kind].extend(asyncio.run(run_bench_async(chosen)).records)
            if flood is not None and flood.counts is not None:
                seen.floods[kind].append(flood.counts)
    return seen


def result_of(seen: Phases, limit: float) -> dict[str, Any]:
    """The document: all kinds of phases, the ratios of their p99, the floods."""
    traffic = {kind: Traffic.of(records) for kind, records in seen.records.items()}
    alone, flooded, elsewhere = traffic["alone"], traffic["flooded"], traffic.get("elsewhere")
    ratios = _ratios(flooded, alone)
    served = flooded.completed == flooded.requests
    known = [ratio for ratio in ratios.values() if ratio is not None]
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        **{kind: asdict(one) for kind, one in traffic.items()},
        "p99_ratio": ratios,
        "p99_ratio_to_elsewhere": None if elsewhere is None else _ratios(flooded, elsewhere),
        "limit": limit,
        "within_limit": served and len(known) == len(ratios) and max(known) <= 1.0 + limit,
        "floods": _told_of(seen.floods["flooded"]),
        "floods_elsewhere": _told_of(seen.floods.get("elsewhere", [])),
    }


def _told_of(counts: list[FloodCounts]) -> list[dict[str, Any]]:
    return [{**asdict(flood), "rate_per_s": flood.rate_per_s} for flood in counts]


def _ratios(after: Traffic, before: Traffic) -> dict[str, float | None]:
    return {name: _ratio(after.p99_s[name], before.p99_s[name]) for name in _MEASURES}


def table_of(result: dict[str, Any]) -> str:
    """The document as Markdown."""
    kinds = {"alone": "alone", "elsewhere": "flood elsewhere", "flooded": "flood here"}
    shown = {kind: result[kind] for kind in kinds if kind in result}
    heads = [kinds[kind] for kind in shown]
    against = [kind for kind in shown if kind != "flooded"]
    heads += [f"here / {kind}" for kind in against]
    lines = [f"| good requests | {' | '.join(heads)} |", f"|---|{'---:|' * len(heads)}"]
    done = [f"{one['completed']} of {one['requests']}" for one in shown.values()]
    lines.append(f"| completed | {' | '.join(done + [''] * len(against))} |")
    for name in _MEASURES:
        for quantile in ("p50_s", "p99_s"):
            values = {kind: one[quantile][name] for kind, one in shown.items()}
            cells = [_ms(value) for value in values.values()]
            cells += [_number(_ratio(values["flooded"], values[kind])) for kind in against]
            lines.append(f"| {name.upper()} {quantile[:3]} | {' | '.join(cells)} |")
    lines += [_told(flood, result["cpus"]) for flood in result["floods"]]
    return "\n".join(lines)


def _told(flood: dict[str, Any], cpus: int) -> str:
    return (
        f"\nflood: {flood['rate_per_s']:.0f}/s for {flood['seconds']:.0f} s, "
        f"{flood['outcomes']}, {flood['left_out']} left out; answered after "
        f"{_ms(flood['answer_p50_s'])} (p50), {_ms(flood['answer_p99_s'])} (p99); the sender "
        f"took {flood['sender_cpu_s'] / flood['seconds']:.2f} cores of {cpus}"
    )


def _quantile(
    records: list[RequestRecord], of: Callable[[RequestRecord], float | None], share: float
) -> float | None:
    values = [value for record in records if (value := of(record)) is not None]
    return float(np.quantile(values, share)) if values else None


def _ratio(after: float | None, before: float | None) -> float | None:
    return after / before if after is not None and before else None


def _ms(seconds: float | None) -> str:
    return "unknown" if seconds is None else f"{seconds * 1e3:.1f} ms"


def _number(ratio: float | None) -> str:
    return "unknown" if ratio is None else f"{ratio:.2f}"


def main() -> int:
    """Measure, print the table, write result.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--bad-rate", type=float, default=500.0, help="wrong keys per second")
    parser.add_argument("--elsewhere", help="another server, for phases with the flood there")
    parser.add_argument("--source", help="address that they come from, such as 127.0.0.2")
    parser.add_argument("--rate", type=float, default=1.0, help="good requests per second")
    parser.add_argument("--phase", type=float, default=30.0, help="seconds of one phase")
    parser.add_argument("--rounds", type=int, default=2, help="pairs of phases")
    parser.add_argument("--tokens", default="32", help="output tokens of a good request")
    parser.add_argument("--limit", type=float, default=0.10, help="by which a p99 may move")
    parser.add_argument("--out", type=Path, help="folder for result.json")
    given = parser.parse_args()
    options = BenchOptions(
        url=given.url,
        rate_per_s=given.rate,
        duration_s=given.phase,
        prompt_tokens="16",
        output_tokens=given.tokens,
        api_key=api_key(),
    )

    def flood(url: str) -> Callable[[], Flood]:
        return lambda: Flood(url, given.bad_rate, given.source)

    floods: dict[str, Callable[[], Flood] | None] = {"alone": None, "flooded": flood(given.url)}
    if given.elsewhere is not None:
        floods["elsewhere"] = flood(given.elsewhere)
    result = result_of(measure(options, floods, given.rounds), given.limit)
    print(table_of(result))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if result["within_limit"] else 1


if __name__ == "__main__":
    sys.exit(main())
