"""`jouleserve key new|list|revoke`: the file that `energy.security.api_keys_file` names."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from policies.core.errors import ConfigError
from serve_app.security.key_file import change_keys, read_keys
from serve_app.security.keys import NAME_PATTERN, ApiKey, digest_of, new_key
from serve_app.security.scopes import Scope

app = typer.Typer(no_args_is_help=True, add_completion=False)
File = Annotated[
    Path,
    typer.Option("--file", "-f", envvar="JOULESERVE_API_KEYS_FILE", help="The keys file."),
]
_UNITS = {"h": "hours", "d": "days", "w": "weeks"}


@app.callback()
def key() -> None:
    """Manage API keys. A running service takes a change within two seconds, without a restart."""


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The tenant, as request log and reports show it.")],
    file: File,
    *,
    scope: Annotated[
        list[Scope] | None, typer.Option(help="Repeat for several. Default: inference.")
    ] = None,
    expires: Annotated[
        str | None, typer.Option(help="90d, 12h, 4w, or an ISO 8601 time. Default: never.")
    ] = None,
) -> None:
    """Make a key, print it once, and keep its hash. A name may have several keys: make the new one,
    hand it over, then revoke the old one by its id."""
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(f"NAME {name!r}: expected 1 to 64 of A-Z a-z 0-9 . _ @ -")
    secret = new_key()
    made = ApiKey(
        name=name,
        digest=digest_of(secret.encode()),
        scopes=frozenset(scope or [Scope.INFERENCE]),
        expires_s=None if expires is None else _expiry_s(expires),
    )
    change_keys(file, lambda keys: [*keys, made])
    typer.echo(secret)
    typer.echo(f"{name} {made.id} added to {file}; the key is shown only this once", err=True)


@app.command("list")
def list_keys(
    file: File,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """List names, ids, scopes and expiry. There is no key in the file to be shown."""
    rows = [_Row.of(one) for one in read_keys(file)]
    if as_json:
        typer.echo(json.dumps({"keys": [row.to_dict() for row in rows]}))
        return
    from rich.table import Table

    from serve_app.cli.tables import table_console

    table = Table("name", "id", "scopes", "expires")
    for row in rows:
        until = row.expires or "never"
        table.add_row(
            row.name, row.id, ", ".join(row.scopes), f"{until} (expired)" if row.expired else until
        )
    table_console().print(table)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The tenant whose keys to take away.")],
    file: File,
    *,
    key_id: Annotated[
        str | None, typer.Option("--id", help="Only the key with this id (see list).")
    ] = None,
) -> None:
    """Take away all keys of a name, or one of them."""
    gone: list[ApiKey] = []

    def without(keys: list[ApiKey]) -> list[ApiKey]:
        gone[:] = [one for one in keys if one.name == name and key_id in {None, one.id}]
        if not gone:
            known = ", ".join(sorted({f"{one.name} {one.id}" for one in keys})) or "none"
            raise ConfigError(f"{file}: no key {' '.join(filter(None, [name, key_id]))} ({known})")
        return [one for one in keys if one not in gone]

    if not file.exists():
        raise ConfigError(f"{file}: no such file")
    change_keys(file, without)
    typer.echo(f"revoked: {', '.join(f'{one.name} {one.id}' for one in gone)}", err=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Row:
    """A key as it is shown."""

    name: str
    id: str
    scopes: tuple[str, ...]
    expires: str | None
    expired: bool

    @classmethod
    def of(cls, one: ApiKey) -> _Row:
        expires_s = one.expires_s
        return cls(
            name=one.name,
            id=one.id,
            scopes=tuple(sorted(one.scopes)),
            expires=None
            if expires_s is None
            else datetime.fromtimestamp(expires_s, UTC).isoformat(),
            expired=one.expired(time.time()),
        )

    def to_dict(self) -> dict[str, object]:
        return {
            "name": self.name,
            "id": self.id,
            "scopes": list(self.scopes),
            "expires": self.expires,
            "expired": self.expired,
        }


def _expiry_s(text: str) -> float:
    """Unix time of an expiry. Raises ConfigError."""
    now = datetime.now(UTC)
    span = re.fullmatch(r"(\d{1,5})([hdw])", text)
    try:
        until = now + timedelta(**{_UNITS[span[2]]: int(span[1])}) if span else _time(text)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--expires {text!r}: expected 90d, 12h, 4w or an ISO 8601 time"
        ) from None
    if until <= now:
        raise ConfigError(f"--expires {text!r}: that is in the past")
    return until.replace(microsecond=0).timestamp()


def _time(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
