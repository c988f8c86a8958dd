"""`jouleserve report [FOLDER]`: what requests cost, from the request log."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from policies.core.errors import ConfigError

if TYPE_CHECKING:
    from policies.core.types import SLO
    from serve_app.report.summary import Report
    from serve_app.report.tariff import Tariff

_AGO = re.compile(r"^(\d+(?:\.\d+)?)(s|m|h|d)$")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def report(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder of request logs.", show_default="this user's")
    ] = None,
    *,
    since: Annotated[
        str | None, typer.Option(help="First time: ISO 8601 (UTC without a zone), or 24h, 7d ago.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Up to this time, likewise.")] = None,
    by: Annotated[
        str,
        typer.Option(
            help="Group by, comma-separated: model, tenant, hour, application, deployment, replica,"
            " outcome."
        ),
    ] = "model",
    slo_ttft_ms: Annotated[
        float | None, typer.Option(help="TTFT target: shows the attainment of the SLO.")
    ] = None,
    slo_tpot_ms: Annotated[float | None, typer.Option(help="TPOT target, likewise.")] = None,
    price_per_kwh: Annotated[
        float | None, typer.Option(help="Price of a kWh: shows cost per million output tokens.")
    ] = None,
    currency: Annotated[str, typer.Option(help="What the price is in.")] = "$",
    gco2_per_kwh: Annotated[
        str | None,
        typer.Option(help="Carbon intensity: a number, or a CSV file time,gCO2_per_kWh."),
    ] = None,
    pue: Annotated[
        float, typer.Option(help="Power usage effectiveness of the site, for cost and CO2.")
    ] = 1.0,
    top: Annotated[int, typer.Option(min=1, help="Groups in the table; the rest is summed.")] = 30,
    picture: Annotated[
        Path | None, typer.Option(help="Draw it: a file .png, .svg or .pdf.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option(help="Write the rows: a file .parquet, .csv or .jsonl.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="The groups as CSV on stdout.")] = False,
) -> None:
    """Report joules per request and per token, cost and CO2, by model, tenant or hour.

    Exit status: 0 done, 1 some of the log could not be read (what could is reported), 2 bad input.
    """
    from serve_app.report.summary import Question, parse_by, summarise
    from serve_app.settings import request_log_folder

    if as_json and as_csv:
        raise ConfigError("--json and --csv: one of them")
    now = datetime.now(UTC)
    question = Question(
        folder=(folder or request_log_folder()).expanduser(),
        since=parse_time("--since", since, now),
        until=parse_time("--until", until, now),
        by=parse_by(by),
        slo=_slo(slo_ttft_ms, slo_tpot_ms),
        tariff=tariff_of(price_per_kwh, currency, gco2_per_kwh, pue),
    )
    if question.since and question.until and question.since >= question.until:
        raise ConfigError(f"--since {since} is not before --until {until}")
    found = summarise(question)
    _show(found, top, as_json=as_json, as_csv=as_csv)
    if picture is not None:
        from serve_app.report.picture import draw

        draw(found, picture)
        typer.echo(f"picture in {picture}", err=True)
    if export is not None:
        from serve_app.report.export import export_rows

        typer.echo(f"{export_rows(question, export):,} rows in {export}", err=True)
    raise typer.Exit(1 if found.counts.bad_files or found.counts.bad_rows else 0)


def _show(found: Report, top: int, *, as_json: bool, as_csv: bool) -> None:
    from serve_app.cli.tables import table_console
    from serve_app.report import export, text

    if not (as_json or as_csv):
        table_console().print(text.render(found, top))
        return
    if as_json:
        typer.echo(json.dumps(export.document(found), allow_nan=False))
        return
    typer.echo(export.table(found), nl=False)
    for line in text.notes(found):
        typer.echo(line, err=True)


def parse_time(option: str, given: str | None, now: datetime) -> datetime | None:
    """A time from ISO 8601, or from how long ago ("90m"). Raises ConfigError."""
    if given is None:
        return None
    if ago := _AGO.match(given):
        try:
            return now - timedelta(**{_UNITS[ago[2]]: float(ago[1])})
        except OverflowError:
            raise ConfigError(f"{option} {given}: too long ago") from None
    try:
        time = datetime.fromisoformat(given)
    except ValueError:
        raise ConfigError(
            f"{option} {given}: allowed: ISO 8601 (2026-11-21T14:00), or 30m, 24h, 7d ago"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _slo(ttft_ms: float | None, tpot_ms: float | None) -> SLO | None:
    from policies.core.types import SLO

    if ttft_ms is None and tpot_ms is None:
        return None
    if ttft_ms is None or tpot_ms is None or not (ttft_ms > 0.0 and tpot_ms > 0.0):
        raise ConfigError("--slo-ttft-ms and --slo-tpot-ms: give both, above 0")
    return SLO(ttft_s=ttft_ms / 1e3, tpot_s=tpot_ms / 1e3, percentile=0.99)


def tariff_of(price: float | None, currency: str, intensity: str | None, pue: float) -> Tariff:
    """The tariff that options ask for. Raises ConfigError."""
    from serve_app.report.tariff import Tariff, read_intensity

    if price is not None and not 0.0 <= price < math.inf:
        raise ConfigError(f"--price-per-kwh {price:g}: allowed: a number >= 0")
    if not 1.0 <= pue < math.inf:
        raise ConfigError(f"--pue {pue:g}: allowed: a number >= 1")
    return Tariff(
        price_per_kwh=price,
        currency=currency,
        intensity=None if intensity is None else read_intensity(intensity),
        pue=pue,
    )
