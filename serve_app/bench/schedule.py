"""From options to the requests to send: opens the files, the rest is `policies.sim.trace`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import TypeVar

from policies.core.errors import ConfigError
from policies.sim.trace import (
    LengthCdf,
    Lengths,
    RateCurve,
    TraceRow,
    burst,
    from_rate_curve,
    parse_length_cdf,
    parse_trace,
    poisson,
    scale_time,
)
from serve_app.bench.options import DEFAULT_DURATION_S, BenchOptions
from serve_app.text_files import read_lines

_T = TypeVar("_T")


def build_schedule(options: BenchOptions) -> tuple[TraceRow, ...]:
    """Return the requests in order of arrival. Raises ConfigError when there are none."""
    rows = _trace(options, options.trace) if options.trace is not None else _generated(options)
    chosen = tuple(islice(rows, options.max_requests))
    if not chosen:
        raise ConfigError("the load has no request: raise --rate, --duration or --seed")
    return chosen


def describe_load(options: BenchOptions) -> str:
    """Return the load in a few words, for reports."""
    if options.trace is not None:
        return f"trace {options.trace.name}, time x{options.time_scale:g}"
    duration_s = options.duration_s or DEFAULT_DURATION_S
    if (shape := options.burst) is not None:
        return (
            f"burst {shape.base_rate_per_s:g} to {shape.peak_rate_per_s:g} req/s every "
            f"{shape.period_s:g} s, for {duration_s:g} s"
        )
    return f"Poisson {options.rate_per_s:g} req/s, for {duration_s:g} s"


def parse_lengths(text: str, option: str) -> LengthCdf:
    """Return the distribution that a number, LOW:HIGH or the name of a CDF file stands for."""
    low, colon, high = text.partition(":")
    try:
        if not colon and int(text) >= 1:
            return LengthCdf.constant(int(text))
        if colon:
            return LengthCdf.uniform(int(low), int(high))
    except ValueError:
        path = Path(text)
        if path.is_file():
            return _read(path, parse_length_cdf)
    raise ConfigError(
        f"{option} {text!r}: expected a number ≥ 1, a range LOW:HIGH or a CSV file cdf_pct,tokens"
    )


def _trace(options: BenchOptions, path: Path) -> Iterable[TraceRow]:
    found = _read(path, parse_trace)
    if isinstance(found, RateCurve):
        if options.time_scale != 1:
            raise ConfigError("--time-scale: a rate curve has none; expected a trace of requests")
        cut = found.cut(options.duration_s) if options.duration_s is not None else found
        return from_rate_curve(cut, _lengths(options), options.seed)
    scaled = scale_time(found, options.time_scale)
    if options.duration_s is None:
        return scaled
    return (row for row in scaled if row.arrival_s < (options.duration_s or 0))


def _generated(options: BenchOptions) -> Iterable[TraceRow]:
    duration_s = options.duration_s or DEFAULT_DURATION_S
    if options.burst is not None:
        return burst(options.burst, duration_s, _lengths(options), options.seed)
    return poisson(options.rate_per_s, duration_s, _lengths(options), options.seed)


def _lengths(options: BenchOptions) -> Lengths:
    return Lengths(
        prompt=parse_lengths(options.prompt_tokens, "--prompt-tokens"),
        output=parse_lengths(options.output_tokens, "--output-tokens"),
    )


def _read(path: Path, parse: Callable[[Iterable[str], str], _T]) -> _T:
    return parse(read_lines(path), str(path))
