"""A trace described: lengths, bins, arrivals, the shape of its day, and energy estimates."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from policies.model.batch import Floats
from policies.model.binned import Bin, Ints, bin_requests
from policies.model.fitted import FittedModel
from serve_app.workload.arrivals import (
    Arrivals,
    DayShape,
    arrivals_of,
    day_shape,
    percentiles,
)
from serve_app.workload.energy import Comparison, EnergyQuestion, compare
from serve_app.workload.source import Workload, read_workload


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthFigures:
    """Tokens of a prompt or an output over all requests of known lengths."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Description:
    """`prompt` and `output` are None, and `bins` empty, where the trace holds no lengths."""

    workload: Workload
    arrivals: Arrivals
    day: DayShape
    prompt: LengthFigures | None
    output: LengthFigures | None
    bins: tuple[Bin, ...]
    energy: Comparison | None
    notes: tuple[str, ...]


def describe(source: Path, question: EnergyQuestion, model: str | None = None) -> Description:
    """Read a trace and describe it. Raises ConfigError, and OutOfRange from `compare`."""
    workload = read_workload(source, model)
    requests = workload.requests
    energy = compare(workload, question)
    return Description(
        workload=workload,
        arrivals=arrivals_of(workload),
        day=day_shape(workload),
        prompt=None if requests is None else _figures(requests.prompt_tokens),
        output=None if requests is None else _figures(requests.output_tokens),
        bins=() if requests is None else bin_requests(requests),
        energy=energy,
        notes=(*_workload_notes(workload), *_energy_notes(workload, question, energy)),
    )


def document(found: Description) -> dict[str, Any]:
    """The description as one JSON object; null is "not known"."""
    workload, energy = found.workload, found.energy
    total = sum(one.requests for one in found.bins)
    return {
        "source": workload.source,
        "format": str(workload.format),
        "start": None if workload.start is None else workload.start.isoformat(),
        "model": workload.model,
        "replicas": workload.replicas,
        "requests_of_known_lengths": None if workload.requests is None else total,
        "left_out": dict(workload.left_out),
        "arrivals": asdict(found.arrivals),
        "day": asdict(found.day),
        "prompt_tokens": None if found.prompt is None else asdict(found.prompt),
        "output_tokens": None if found.output is None else asdict(found.output),
        "bins": [_bin(one, total) for one in found.bins],
        "energy": None if energy is None else _energy(energy),
        "notes": list(found.notes),
    }


def _energy(energy: Comparison) -> dict[str, Any]:
    return {
        **asdict(energy),
        "bins": [
            {
                **_bin(one.bin, energy.requests),
                "batch_bin": one.bin.batch_bin,
                "batch": one.bin.batch,
                "joules": one.joules,
                "joules_at_edges": one.joules_at_edges,
            }
            for one in energy.bins
        ],
    }


def _bin(found: Bin, total: int) -> dict[str, Any]:
    return {
        "prompt_bin": found.prompt_bin,
        "output_bin": found.output_bin,
        "requests": found.requests,
        "share_ratio": found.requests / total,
        "mean_prompt_tokens": found.mean_prompt_tokens,
        "mean_output_tokens": found.mean_output_tokens,
    }


def _figures(tokens: Ints) -> LengthFigures:
    values: Floats = tokens.astype(float)
    p50, p90, p99 = percentiles(values)
    return LengthFigures(
        mean=float(values.mean()), p50=p50, p90=p90, p99=p99, max=float(values.max())
    )


def _workload_notes(workload: Workload) -> list[str]:
    notes = []
    if workload.curve is not None:
        notes.append("a rate curve: no single arrivals, no lengths; rates are expected ones")
    if workload.start is None:
        notes.append("no calendar time in the trace: hours count from its start, no weekdays")
    notes += [f"{count:,} requests {why}: in no bin" for why, count in workload.left_out.items()]
    if workload.unreadable:
        notes.append(
            f"{workload.unreadable:,} lines or files of the log could not be read; "
            "`jouleserve report` says which"
        )
    if workload.replicas > 1:
        notes.append(f"{workload.replicas} replicas: Little's law is applied to each on its own")
    return notes


def _energy_notes(
    workload: Workload, question: EnergyQuestion, energy: Comparison | None
) -> list[str]:
    if energy is None:
        return []
    notes = [f"{count:,} requests {why}: not compared" for why, count in energy.left_out.items()]
    if energy.left_out and energy.measured_from == "--measured-joules":
        notes.append("--measured-joules is of the whole trace, the estimates leave those out")
    profile = question.profile
    if profile is None:
        return notes
    notes.append(f"batch by {energy.batch_from}")
    notes += _profile_notes(workload, profile)
    if energy.saturated:
        notes.append(
            f"{energy.saturated:,} requests arrived while more came than one replica completes: "
            f"taken at its full batch of {profile.valid.max_num_seqs}"
        )
    if workload.cached_tokens:
        notes.append(
            f"{workload.cached_tokens:,} prompt tokens came from the prefix cache; the estimates "
            "compute them"
        )
    return notes


def _profile_notes(workload: Workload, profile: FittedModel) -> list[str]:
    notes = []
    if not profile.trusted:
        notes.append(f"profile {profile.name}: too inexact for the policy to act on")
    if workload.model is not None and workload.model != profile.model:
        notes.append(f"profile {profile.name} is of {profile.model}, the log of {workload.model}")
    return notes
