"""From a name to a trace: a file, a rate curve, a preset, a download, or several at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from policies.core.errors import ConfigError
from policies.sim.arrivals import Lengths, RateCurve, TraceRow
from policies.sim.blocks import Block, pieces, rows_of_blocks, scaled_time, window
from policies.sim.mixing import scaled_rate, superposed_blocks
from policies.sim.modulation import Bursts
from policies.sim.rate_shapes import between, mean_rate_per_s, times_rate
from policies.sim.synthesis import day_blocks
from serve_app.bench.schedule import parse_lengths
from serve_app.models.cache import cache_root
from serve_app.traces.catalog import load_catalog, load_presets
from serve_app.traces.files import read_trace

COARSE_STEP_S = 300.0
COARSE_BURSTS = Bursts(rate_cv=0.15, correlation_s=60.0)
"""Within the steps of a coarse curve minutes lie within ±18 % of their ten minutes, as in the
Azure code trace of 2024 (see `code-2024` in configs/traces/published.yaml)."""

_WEIGHTED = re.compile(r"\s*(?:(?P<factor>[0-9.]+)\s*\*)?\s*(?P<name>.+?)\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class BurstOptions:
    """Fields of `Bursts` given by a user; None leaves what the trace brings."""

    interarrival_cv: float | None = None
    rate_cv: float | None = None
    correlation_s: float | None = None
    burst_factor: float | None = None
    burst_s: float | None = None
    gap_s: float | None = None

    def given(self) -> dict[str, float]:
        """Those that are not None."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceOptions:
    """What is done with a trace, in this order: `begin_s` and `duration_s` cut it in its own time,
    `rate_scale` makes more or less of it, `time_scale` multiplies its arrival times.

    `shift_s`: see `scaled_rate`. `prompt_cdf`, `output_cdf`: lengths for a rate curve, a number,
    LOW:HIGH or a file. `interpolate`: lines instead of steps; None is lines for curves whose steps
    are five minutes or longer. `bursts`: of generated arrivals.
    """

    rate_scale: float = 1.0
    time_scale: float = 1.0
    begin_s: float = 0.0
    duration_s: float | None = None
    shift_s: float | None = None
    prompt_cdf: str | None = None
    output_cdf: str | None = None
    interpolate: bool | None = None
    bursts: BurstOptions = BurstOptions()

    def __post_init__(self) -> None:
        for name, value in (
            ("--rate-scale", self.rate_scale),
            ("--time-scale", self.time_scale),
            ("--duration-s", self.duration_s),
        ):
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"{name} {value:g}: allowed: a number above 0")
        if not 0 <= self.begin_s < math.inf:
            raise ConfigError(f"--begin-s {self.begin_s:g}: allowed: a number of seconds ≥ 0")

    @property
    def end_s(self) -> float:
        """The end of the cut in the trace's own time."""
        return math.inf if self.duration_s is None else self.begin_s + self.duration_s

    def for_generated(self) -> list[str]:
        """The options given that only generated arrivals have a use for."""
        held: dict[str, object] = {"prompt_cdf": self.prompt_cdf, "output_cdf": self.output_cdf}
        held |= {"interpolate": self.interpolate, **self.bursts.given()}
        return [f"--{k.replace('_', '-')}" for k, value in held.items() if value is not None]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trace:
    """Requests in order of arrival, as often as asked for, the same each time.

    `duration_s` is the end of what the trace covers; `requests` None where they are not counted
    until they are generated, and `expected_requests` their expected number then.
    """

    name: str
    description: str
    duration_s: float
    requests: int | None
    expected_requests: float
    make: Callable[[], Iterator[Block]]

    def blocks(self) -> Iterator[Block]:
        """The requests as columns, a block at a time."""
        return self.make()

    def rows(self) -> Iterator[TraceRow]:
        """The requests as objects."""
        return rows_of_blocks(self.make())


def load_trace(spec: str, options: TraceOptions | None = None, *, seed: int = 0) -> Trace:
    """The trace that `spec` names, with `options`. Raises ConfigError.

    `spec`: a file of any known format, a preset, or a downloaded public trace; several with `+`
    between them arrive together, each from its start; `FACTOR*NAME` scales the rate of one.
    """
    options = TraceOptions() if options is None else options
    # A file may have + or * in its name.
    parts = [(1.0, spec)] if Path(spec).is_file() else [_weighted(one) for one in spec.split("+")]
    traces = []
    for index, (factor, name) in enumerate(parts):
        scaled = replace(options, rate_scale=options.rate_scale * factor)
        traces.append(_load_one(name, scaled, _seed_of(seed, index)))
    if len(traces) == 1:
        return traces[0]
    counts = [trace.requests for trace in traces]
    return Trace(
        name=spec,
        description="; ".join(trace.description for trace in traces),
        duration_s=max(trace.duration_s for trace in traces),
        requests=None if None in counts else sum(count or 0 for count in counts),
        expected_requests=sum(trace.expected_requests for trace in traces),
        make=lambda: superposed_blocks([trace.blocks() for trace in traces]),
    )


def public_file(name: str) -> Path:
    """Where the download of a public trace lies, or would lie."""
    return cache_root() / "traces" / load_catalog()[name].file


def _weighted(part: str) -> tuple[float, str]:
    matched = _WEIGHTED.fullmatch(part)
    if matched is None:
        raise ConfigError("trace: empty name; expected NAME or FACTOR*NAME, joined by +")
    text = matched["factor"]
    try:
        factor = 1.0 if text is None else float(text)
    except ValueError:
        factor = 0.0
    if factor <= 0:
        raise ConfigError(f"trace {part.strip()!r}: expected FACTOR*NAME with a factor above 0")
    return factor, matched["name"]


def _seed_of(seed: int, index: int) -> int:
    """The seed itself for the first part of a trace, and one that follows from it for others."""
    if seed < 0:
        raise ConfigError(f"--seed {seed}: allowed: a whole number ≥ 0")
    return seed if index == 0 else int(np.random.SeedSequence((seed, index)).generate_state(1)[0])


def _load_one(name: str, options: TraceOptions, seed: int) -> Trace:
    presets = load_presets()
    if not Path(name).is_file() and name in presets:
        preset = presets[name]
        lengths = _lengths(name, options, preset.lengths())
        return _generated(
            (name, preset.what), preset.curve(), (lengths, preset.burstiness()), options, seed
        )
    path = _path_of(name, tuple(presets))
    found = read_trace(path)
    if isinstance(found, Block):
        return _recorded(name, found, options, seed)
    coarse = min(np.diff((*found.starts_s, found.end_s))) >= COARSE_STEP_S
    if options.interpolate is None:
        options = replace(options, interpolate=bool(coarse))
    about = (name, "generated from a rate curve")
    pattern = (_lengths(name, options, None), COARSE_BURSTS if coarse else Bursts())
    return _generated(about, found, pattern, options, seed)


def _path_of(name: str, presets: tuple[str, ...]) -> Path:
    path, public = Path(name), load_catalog()
    if path.is_file():
        return path
    if name in public:
        if (downloaded := public_file(name)).is_file():
            return downloaded
        raise ConfigError(
            f"trace {name!r}: not downloaded yet; run: jouleserve traces download {name}"
        )
    raise ConfigError(
        f"trace {name!r}: no such file, and no trace of this name (presets: {', '.join(presets)}; "
        f"public: {', '.join(public)})"
    )


def _lengths(name: str, options: TraceOptions, own: Lengths | None) -> Lengths:
    prompt, output = options.prompt_cdf, options.output_cdf
    if own is None and (prompt is None or output is None):
        raise ConfigError(
            f"{name}: a rate curve holds no lengths; give --prompt-cdf and --output-cdf "
            "(a number, LOW:HIGH or a file cdf_pct,tokens)"
        )
    return Lengths(
        prompt=own.prompt
        if own and prompt is None
        else parse_lengths(prompt or "", "--prompt-cdf"),
        output=own.output
        if own and output is None
        else parse_lengths(output or "", "--output-cdf"),
    )


def _generated(
    about: tuple[str, str],
    curve: RateCurve,
    pattern: tuple[Lengths, Bursts],
    options: TraceOptions,
    seed: int,
) -> Trace:
    name, description = about
    lengths, bursts = pattern[0], replace(pattern[1], **options.bursts.given())
    cut = times_rate(between(curve, options.begin_s, options.end_s), options.rate_scale)
    interpolate = options.interpolate is not False

    def make() -> Iterator[Block]:
        blocks = day_blocks(cut, lengths, bursts, seed, interpolate=interpolate)
        return scaled_time(blocks, options.time_scale)

    make()  # says now what is wrong with the rate
    return Trace(
        name=name,
        description=description,
        duration_s=cut.end_s * options.time_scale,
        requests=None,
        expected_requests=mean_rate_per_s(cut) * cut.end_s,
        make=make,
    )


def _recorded(name: str, block: Block, options: TraceOptions, seed: int) -> Trace:
    if given := options.for_generated():
        raise ConfigError(
            f"{name}: holds requests with their times and lengths; {', '.join(given)} is for rate "
            "curves and presets"
        )
    last_s = float(block.arrival_s[-1])
    if options.begin_s > last_s:
        raise ConfigError(f"--begin-s {options.begin_s:g}: {name} ends at {last_s:g} s")
    cut = window(block, options.begin_s, options.end_s)
    if not cut.rows:
        raise ConfigError(f"{name}: no request within --begin-s and --duration-s")
    covered_s = min(options.end_s, last_s) - options.begin_s
    factor = options.rate_scale

    def make() -> Iterator[Block]:
        same = factor == 1
        scaled = pieces(cut) if same else scaled_rate(cut, factor, seed, shift_s=options.shift_s)
        return scaled_time(scaled, options.time_scale)

    whole = factor == math.floor(factor)
    return Trace(
        name=name,
        description="requests of a file",
        duration_s=covered_s * options.time_scale,
        requests=cut.rows * int(factor) if whole else None,
        expected_requests=cut.rows * factor,
        make=make,
    )
