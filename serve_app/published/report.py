"""What the published tables gave: profiles, their errors by batch, refusals, latency tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve_app.published.run import Outcome

_HEADER = """# Profiles from published measurements

Made by `{command}`. Measured by others (published), fitted here; nothing on this page was measured
on our machines. Sources: {sources}.

The benchmark does not publish its prompt length. The gap between its mean step and its median time
between tokens, which only prompts make, gives {prompt_tokens:.0f} tokens (median over the models
below; single models {lowest:.0f} to {highest:.0f}).

## Joules per output token with that batch left out of the fit

The largest range of batches is taken at which leaving one out is predicted within 6 % (median) and
12 % (worst).
"""


def markdown(outcome: Outcome, command: str) -> str:
    """The whole page."""
    lengths = [steady.prompt_s / prior.c_s_per_prefill_token for steady, prior in outcome.fitted]
    parts = [
        _HEADER.format(
            command=command,
            sources="; ".join(outcome.facts.sources.model_dump().values()),
            prompt_tokens=outcome.prompt_tokens,
            lowest=min(lengths),
            highest=max(lengths),
        ),
        _summary(outcome),
        _refused(outcome),
        _batches(outcome),
        _latency(outcome),
    ]
    return "\n".join(parts)


def _summary(outcome: Outcome) -> str:
    lines = [
        "| profile | batches | largest | J/token median | worst | step time median | worst |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for (steady, _), model in zip(outcome.fitted, outcome.models, strict=True):
        fit = steady.fit
        lines.append(
            f"| {model.name} | {len(fit.rows)} | {fit.rows[-1].batch:.0f} "
            f"| {fit.joules.median_ratio:.1%} | {fit.joules.worst_ratio:.1%} "
            f"| {fit.seconds.median_ratio:.1%} | {fit.seconds.worst_ratio:.1%} |"
        )
    return "\n".join(lines) + "\n"


def _refused(outcome: Outcome) -> str:
    lines = ["Refused:\n"]
    lines += [f"- {name}: {reason}." for name, reason in outcome.refused.items()]
    return "\n".join(lines) + "\n" if outcome.refused else ""


def _batches(outcome: Outcome) -> str:
    lines = [
        "## Batch by batch\n",
        "| profile | batch | J/token measured | left-out error | step, ms |",
    ]
    lines.append("|---|--:|--:|--:|--:|")
    for (steady, _), model in zip(outcome.fitted, outcome.models, strict=True):
        for row, error in zip(steady.fit.rows, steady.fit.joules.errors, strict=True):
            lines.append(
                f"| {model.name} | {row.batch:.0f} | {row.joules_per_token:.4g} | {error:.1%} "
                f"| {1e3 * row.step_s:.1f} |"
            )
    return "\n".join(lines) + "\n"


def _latency(outcome: Outcome) -> str:
    lines = [
        "## Latency tables\n",
        "Time between tokens = t0 + a n + b n context; TTFT = r + c prompt + q prompt²/2.\n",
        "| table | model, GPU, TP | points | fitted median | p95 | left out median | p95 | worst |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    lines += [
        f"| {'time between tokens' if t.name == 'decode' else 'TTFT'} | {t.model}, {t.gpu}, "
        f"{t.tensor_parallel} | {t.points} "
        f"| {t.fitted_median_ratio:.1%} | {t.fitted_p95_ratio:.1%} "
        f"| {t.unseen_median_ratio:.1%} | {t.unseen_p95_ratio:.1%} | {t.worst} |"
        for _, t in outcome.tables
    ]
    return "\n".join(lines) + "\n"
