"""The rows as a page: one table per model and response to limits, levers, wrong beliefs, claims."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from serve_app.results.cells import PUBLISHED, Cell
from serve_app.results.claims import OURS, PEERS, claims
from serve_app.results.figures import REFERENCE, Figure, Results, geometric_mean
from serve_app.results.tasks import LEVERS, VARIATIONS, Row

LABELS = {
    "ray_default": "Ray Serve, default settings",
    "static": "static fleet, tuned in hindsight",
    REFERENCE: "Ray Serve, tuned in hindsight",
    "ray_limit": "the same and one fixed limit, tuned in hindsight",
    **{peer: peer for peer in PEERS},
    **{f"{peer}, hindsight": f"{peer}, tuned in hindsight" for peer in PEERS},
    OURS: "**energy_slo**",
    "clairvoyant": "clairvoyant run",
    "bound": "lower bound",
}
RESPONSES = {
    "profile": "decode under a limit as measured on an RTX PRO 6000 (MMBT)",
    "h100": "decode under a limit by the prior for data-centre parts, (clock ratio / 0.6)^0.8",
}
PICTURES = "pictures"
_INTRODUCTION = """\
All figures are simulated: the policies' own code on the simulator of `policies/sim`, whose step
times and energies are those of the profiles. J is everything that was allocated: active, idle,
cold starts. J/request ± half of the 95 % interval over the seeds (none for a single seed). In
brackets the ratio to Ray Serve tuned in hindsight on the same seed. *†*: below the target share of
requests, so not comparable. *‡*: on excerpts of the trace (configs/results/cells.yaml); ratios are
to the others on the same excerpts. Peers are played under the first response to limits, and with
the clairvoyant run on as many seeds as configs/results/cells.yaml says.

*Tuned in hindsight*: the cheapest setting that attains the target on this very trace, searched on
excerpts, verified on all of it in the mean over the seeds; for Ray its target, delays, factor,
look-back, floor, ceiling and router, a static fleet among them. *clairvoyant run*: knows the trace
(`policies/clairvoyant.py`); near a bound, not one. *lower bound*: energy accounting that nothing
reaches (`policies/least_energy.py`). `energy_slo` has its defaults everywhere."""


def markdown(results: Results, cells: Sequence[Cell], command: str, left_out: int) -> str:
    """The whole page."""
    parts = ["# Policies in the simulator", "", _INTRODUCTION, "", *_notes(results, left_out)]
    parts += ["", *_claims(results, cells)]
    for model in dict.fromkeys(cell.model for cell in cells):
        mine = [cell for cell in cells if cell.model == model]
        for response in results.responses:
            parts += ["", *_model(results, mine, response)]
        parts += ["", *_behaviour(results, mine)]
    parts += ["", *_levers(results, cells), "", *_variations(results, cells)]
    parts += ["", *_pictures(results, cells), "", f"Written by `{command}` from results.jsonl.", ""]
    return "\n".join(parts)


def summary(results: Results, cells: Sequence[Cell], link: str) -> str:
    """For the README: J/request over tuned Ray, per cell and in the mean."""
    names = [(cell.model, cell.load) for cell in cells]
    lines = [
        "J/request of `energy_slo`, **simulated**, over each of these; the worse of two responses",
        "to power limits; attainment of p99 TTFT 1 s and TPOT 100 ms in brackets.",
        "",
    ]
    others = (REFERENCE, "ray_limit", "clairvoyant")
    head = ["cell", *(LABELS[one].replace("*", "") for one in others)]
    body = []
    for cell in names:
        shares = [results.figure(OURS, cell, one) for one in results.responses]
        least = [one.attained for one in shares if one is not None and one.attained is not None]
        told = f"{'/'.join(cell)} [{min(least):.2%}]" if least else "/".join(cell)
        body.append([told, *(_ratio(_worse(results, one, [cell])) for one in others)])
    body.append(["geometric mean", *(_ratio(_worse(results, one, names)) for one in others)])
    return "\n".join([*lines, *_table(head, body), "", link])


def _worse(results: Results, other: str, cells: Sequence[tuple[str, str]]) -> float | None:
    found = [results.mean_ratio(OURS, other, cells, one) for one in results.responses]
    held = [one for one in found if one is not None]
    return max(held) if held and len(held) == len(found) else None


def _notes(results: Results, left_out: int) -> list[str]:
    notes = []
    played: dict[str, list[str]] = {}
    for row in results.rows:
        loads = played.setdefault(row["played"], [])
        if row["load"] not in loads:
            loads.append(row["load"])
    notes += [f"Played from {how}: {', '.join(loads)}." for how, loads in played.items()]
    if PUBLISHED in played:
        notes.append("What is generated from published figures is described in docs/traces.md.")
    if any(row["quick"] for row in results.rows):
        notes.append("**Quick**: at most an hour of each load, one seed. Not for quotation.")
    if left_out:
        notes.append(f"**{left_out} rows were left out for want of time**: run the command again.")
    return notes


def _claims(results: Results, cells: Sequence[Cell]) -> list[str]:
    body = [
        [claim.text, _share(claim.found), f"{'≥' if claim.at_least else '≤'} {claim.asked:g}",
         claim.verdict]
        for claim in claims(results, [(cell.model, cell.load) for cell in cells])
    ]  # fmt: skip
    return ["## What was asked for", "", *_table(["energy_slo", "found", "asked", ""], body)]


def _model(results: Results, cells: Sequence[Cell], response: str) -> list[str]:
    facts = cells[0].file.models[cells[0].model]
    names = [(cell.model, cell.load) for cell in cells]
    head = [f"{facts.profile}, simulated", *(cell.load for cell in cells), "geometric mean"]
    body = []
    for role, label in LABELS.items():
        found = [results.figure(role, cell, response) for cell in names]
        if any(found):
            ratios = [one.ratio for one in found if one is not None and one.ratio is not None]
            whole = geometric_mean(ratios) if len(ratios) == len(found) else None
            body.append([label, *map(_joules, found), _ratio(whole)])
    return [
        f"## {facts.profile}: {RESPONSES.get(response, response)}",
        "",
        "J/request (ratio to tuned Ray).",
        "",
        *_table(head, body),
    ]


def _behaviour(results: Results, cells: Sequence[Cell]) -> list[str]:
    facts = cells[0].file.models[cells[0].model]
    response = results.responses[0] if results.responses else ""
    head = [f"{facts.profile}, simulated", *(cell.load for cell in cells)]
    body = []
    for role, label in LABELS.items():
        found = [results.figure(role, (cell.model, cell.load), response) for cell in cells]
        if any(found) and role != "bound":
            body.append([label, *map(_acts, found)])
    return [
        f"Attainment · mean replicas · actions on replicas + limits + caps ({response}):",
        "",
        *_table(head, body),
    ]


def _levers(results: Results, cells: Sequence[Cell]) -> list[str]:
    roles = {OURS: "all (energy_slo)", **{f"lever: {name}": name for name in LEVERS}}
    text = (
        "The same policy with the other knobs nailed: replicas at the tuned static fleet's, the "
        "cap full, no limit. J/request (ratio to tuned Ray), attainment."
    )
    return [
        "## Each lever alone and together, simulated",
        "",
        text,
        "",
        *_studied(results, cells, roles),
    ]


def _variations(results: Results, cells: Sequence[Cell]) -> list[str]:
    roles = {OURS: "as in the tables"}
    roles |= {f"variation: {one.name}": one.name for one in VARIATIONS}
    text = "`energy_slo`, J/request (ratio to tuned Ray as in the tables), attainment."
    return ["## What it is sensitive to, simulated", "", text, "", *_studied(results, cells, roles)]


def _studied(results: Results, cells: Sequence[Cell], roles: dict[str, str]) -> list[str]:
    shown = [cell for cell in cells if cell.facts.study]
    response = results.responses[0] if results.responses else ""
    body = []
    for role, label in roles.items():
        found = [results.figure(role, (cell.model, cell.load), response) for cell in shown]
        if any(found):
            body.append([label, *map(_judged, found)])
    return _table(["", *(cell.name for cell in shown)], body)


def _pictures(results: Results, cells: Iterable[Cell]) -> list[str]:
    drawn = [one for one in cells if shown_of(results, one)]
    lines = ["## Over time, simulated", ""]
    return [*lines, *(f"![{cell.name}]({picture_of(cell)})" for cell in drawn)]


def shown_of(results: Results, cell: Cell) -> dict[str, Row]:
    """Role → the row with its course over time, of those that a cell's picture shows. Empty: there
    is no picture."""
    response = results.responses[0] if results.responses else ""
    found = {
        role: results.seeds(role, (cell.model, cell.load), response).get(0)
        for role in (OURS, REFERENCE)
    }
    return {role: row for role, row in found.items() if row is not None and row.get("series")}


def picture_of(cell: Cell) -> str:
    """Where the picture of a cell lies, relative to the page."""
    return f"{PICTURES}/{cell.model}-{cell.load}.png"


def _joules(found: Figure | None) -> str:
    if found is None:
        return "not run"
    spread = "" if found.half_width is None else f" ±{found.half_width:.2g}"
    ratio = "" if found.ratio is None else f" ({found.ratio:.2f})"
    marks = ("" if found.attains else " †") + (" ‡" if found.sampled else "")
    return f"{found.joules_per_request:.4g}{spread}{ratio}{marks}"


def _judged(found: Figure | None) -> str:
    return "not run" if found is None else f"{_joules(found)}, {_percent(found)}"


def _acts(found: Figure | None) -> str:
    if found is None or found.replicas is None or found.actions is None:
        return "not run"
    actions = " + ".join(f"{one:,.0f}" for one in found.actions)
    return f"{_percent(found)} · {found.replicas:.2f} · {actions}"


def _percent(found: Figure | None) -> str:
    return "?" if found is None or found.attained is None else f"{found.attained:.2%}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    if not body:
        return ["Not run."]
    rule = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *body)]
