"""Published steady-state rows beside the simulator: `python -m serve_app.published.simulated DATA`.

Each row of the ML.ENERGY benchmark is one batch size held for long. The simulator plays the same:
one replica whose cap is the row's batch under a line that never runs empty, with the row's mean
output length and the benchmark's mean prompt length, by the shipped profile. The profile was fitted
to these rows, so the same is done with a profile of which that row was left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from policies.core.errors import ConfigError, EnergyServeError
from policies.model.fitted import FittedModel
from serve_app.deciders import load_profile
from serve_app.published import build
from serve_app.published.held_batch import BUDGET_TOKENS, Held, Steady, held_batch
from serve_app.published.mlenergy import Row, fit_line
from serve_app.published.run import Outcome, fit_published
from serve_app.repository import REPOSITORY

BATCHES = (8, 256)  # the range that is compared
LIMIT_RATIO = 0.10
PROFILES = REPOSITORY / "configs" / "profiles"


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """One published row, the shipped profile in the simulator, one fitted without the row, and the
    shipped one with output lengths spread exponentially about the same mean."""

    profile: str
    row: Row
    shipped: Steady
    left_out: Steady
    spread: Steady

    @property
    def error_ratio(self) -> float:
        """Of the joules per token, (simulated - measured) / measured."""
        return self.shipped.joules_per_token / self.row.joules_per_token - 1.0

    @property
    def left_out_error_ratio(self) -> float:
        """The same of the profile that has not seen the row."""
        return self.left_out.joules_per_token / self.row.joules_per_token - 1.0

    @property
    def spread_error_ratio(self) -> float:
        """The same with spread lengths."""
        return self.spread.joules_per_token / self.row.joules_per_token - 1.0

    @property
    def speed_error_ratio(self) -> float:
        """Of the tokens per second."""
        return self.shipped.tokens_per_s / self.row.tokens_per_s - 1.0

    @property
    def held(self) -> bool:
        """Whether the joules per token are within 10 %."""
        return abs(self.error_ratio) <= LIMIT_RATIO


def compare(outcome: Outcome, profiles: Path) -> list[Compared]:
    """Every fitted row of 8 to 256 sequences. Raises ConfigError where a profile is missing."""
    found = []
    for (steady, prior), fitted in zip(outcome.fitted, outcome.models, strict=True):
        path = profiles / f"{fitted.name}.yaml"
        shipped = load_profile(str(path))
        if shipped is None:
            raise ConfigError(f"{path}: no profile")
        for row in steady.fit.rows:
            batch = round(row.batch)
            if not BATCHES[0] <= batch <= BATCHES[1]:
                continue
            without = _without(steady, prior, row, outcome.prompt_tokens)
            held = Held(
                batch=batch,
                prompt_tokens=round(outcome.prompt_tokens),
                output_tokens=row.output_tokens,
            )
            found.append(
                Compared(
                    profile=fitted.name,
                    row=row,
                    shipped=held_batch(shipped, held),
                    left_out=held_batch(without, held),
                    spread=held_batch(shipped, replace(held, spread=True)),
                )
            )
    return found


def _without(
    steady: build.Steady, prior: build.Priors, row: Row, prompt_tokens: float
) -> FittedModel:
    """The profile that the other rows give."""
    rows = tuple(one for one in steady.fit.rows if one is not row)
    batches = [one.batch for one in rows]
    fit = replace(
        steady.fit,
        rows=rows,
        seconds=fit_line(batches, [one.step_s for one in rows]),
        joules=fit_line(batches, [one.step_joules for one in rows]),
    )
    return build.build(replace(steady, fit=fit), prior, prompt_tokens, {})


_HEADER = """# Published steady-state rows beside the simulator

Made by `{command}`. **Measured** by others ({source}): one batch size of vLLM held for long.
**Simulated** here: one replica whose cap is that batch under a line that never runs empty,
{prompt:.0f} prompt tokens (inferred, docs/results/published-profiles), the row's mean output
length, {budget} tokens per step, no power limit, by the shipped profiles.

The profiles were fitted to these rows, so "left out" is the same with a profile that was fitted
without the row. The benchmark publishes mean lengths only, and the fit takes every request to have
the mean; "spread" shows what that is worth: the shipped profile with geometric output lengths of
the same mean, which double the answer's part of the mean context. Errors are
(simulated - measured) / measured.
"""


def markdown(outcome: Outcome, found: Sequence[Compared], command: str) -> str:
    """The whole page; rows that are off by more than 10 % are named first."""
    head = _HEADER.format(
        command=command,
        source=outcome.facts.sources.energy,
        prompt=outcome.prompt_tokens,
        budget=BUDGET_TOKENS,
    )
    return "\n".join([head, *_verdict(found), *_refused(outcome), *_table(found), ""])


def _verdict(found: Sequence[Compared]) -> Iterator[str]:
    missed = [one for one in found if not one.held]
    unseen = [one for one in found if abs(one.left_out_error_ratio) > LIMIT_RATIO]
    for told, errors in (
        ("the shipped profiles", [abs(one.error_ratio) for one in found]),
        ("profiles without the row", [abs(one.left_out_error_ratio) for one in found]),
        ("spread lengths", [abs(one.spread_error_ratio) for one in found]),
        ("tokens/s of the shipped profiles", [abs(one.speed_error_ratio) for one in found]),
    ):
        yield f"- {told}: median {np.median(errors):.1%}, worst {max(errors):.1%}"
    yield ""
    yield (
        f"J per output token of {len(found) - len(missed)} of {len(found)} rows of "
        f"{BATCHES[0]} to {BATCHES[1]} sequences are within {LIMIT_RATIO:.0%} with the shipped "
        f"profiles, {len(found) - len(unseen)} with the row left out."
    )
    for one in missed:
        yield f"- **missed**: {one.profile} at {one.row.batch:.0f}: {one.error_ratio:+.1%}"
    for one in unseen:
        if one.held:
            yield (
                f"- missed with the row left out only: {one.profile} at {one.row.batch:.0f}: "
                f"{one.left_out_error_ratio:+.1%}"
            )
    yield ""


def _refused(outcome: Outcome) -> Iterator[str]:
    for name, reason in outcome.refused.items():
        yield f"Not compared, since no profile is shipped: {name} ({reason})."
    yield ""


def _table(found: Sequence[Compared]) -> Iterator[str]:
    yield (
        "| profile | batch | output tokens | J/token measured | J/token simulated | error "
        "| left out | spread | tokens/s measured | tokens/s simulated | error |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
    for one in found:
        row = one.row
        yield (
            f"| {one.profile} | {row.batch:.0f} | {row.output_tokens:.0f} "
            f"| {row.joules_per_token:.4g} | {one.shipped.joules_per_token:.4g} "
            f"| {one.error_ratio:+.1%}{'' if one.held else ' **missed**'} "
            f"| {one.left_out_error_ratio:+.1%} | {one.spread_error_ratio:+.1%} "
            f"| {row.tokens_per_s:,.0f} | {one.shipped.tokens_per_s:,.0f} "
            f"| {one.speed_error_ratio:+.1%} |"
        )


def main(arguments: list[str] | None = None) -> int:
    """0: all rows within 10 %; 1: one is not; 2: bad input."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="folder with energy/ and latency/")
    parser.add_argument("--profiles", type=Path, default=PROFILES, help="folder of the profiles")
    parser.add_argument("--report", type=Path, help="page to write, NAME.md")
    options = parser.parse_args(arguments)
    try:
        outcome = fit_published(options.data, datetime.now(UTC).date().isoformat())
        found = compare(outcome, options.profiles)
    except EnergyServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    command = " ".join(["python -m serve_app.published.simulated", *(arguments or sys.argv[1:])])
    page = markdown(outcome, found, command)
    if options.report is not None:
        options.report.parent.mkdir(parents=True, exist_ok=True)
        options.report.write_text(page, encoding="utf-8")
    print(page)
    return 0 if all(one.held for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
