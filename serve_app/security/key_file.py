"""The file of API keys: read whole or refused, written whole or not at all.

A list of `{name, hash: "sha256:<64 hex>", scopes: [inference|energy|admin], expires: <time>}`, YAML
or JSON. Errors name the entry and the field, never a value: somebody may have put a key there.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from policies.core.errors import ConfigError
from serve_app.security.keys import NAME_PATTERN, ApiKey
from serve_app.security.scopes import Scope

MAX_BYTES = 4 * 2**20
_HASH = "sha256:"


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: str = Field(pattern=NAME_PATTERN)
    hash: str = Field(pattern=r"^sha256:[0-9a-f]{64}$")
    scopes: Annotated[list[Scope], Field(min_length=1)]
    expires: datetime | None = None


_ENTRIES = TypeAdapter(list[_Entry])


class Signature(NamedTuple):
    """What changes when a file does."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int


def signature_of(status: os.stat_result) -> Signature:
    """The signature of what `stat` says."""
    return Signature(
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    )


def read_keys(path: Path) -> list[ApiKey]:
    """The keys of a file. Raises ConfigError that names the file, the entry and the field."""
    try:
        with path.open("rb") as file:
            return parse_keys(file, path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def parse_keys(file: IO[bytes], path: Path) -> list[ApiKey]:
    """The keys of an open file. Raises ConfigError, or OSError."""
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{path}: not a file")
    if status.st_mode & stat.S_IWOTH:
        raise ConfigError(f"{path}: anybody on this host may write it: chmod o-w")
    data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: more than {MAX_BYTES} bytes")
    try:
        entries = _ENTRIES.validate_python(_data_of(data, path))
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from None
    keys = [_key(entry) for entry in entries]
    if len({key.digest for key in keys}) < len(keys):
        raise ConfigError(f"{path}: the same hash stands there twice")
    return keys


def _data_of(data: bytes, path: Path) -> Any:
    """What the file holds; of a fault, the line alone. JSON is read as such, which is far
    quicker than as YAML."""
    try:
        text = data.decode("utf-8")
        return json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no such date too
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark is not None else getattr(error, "lineno", None)
        where = f" (line {line})" if line is not None else ""
        raise ConfigError(f"{path}: not readable as YAML or JSON{where}") from None


def _key(entry: _Entry) -> ApiKey:
    expires = entry.expires
    if expires is not None and expires.tzinfo is None:
        expires = expires.replace(tzinfo=UTC)
    return ApiKey(
        name=entry.name,
        digest=bytes.fromhex(entry.hash.removeprefix(_HASH)),
        scopes=frozenset(entry.scopes),
        expires_s=expires.timestamp() if expires is not None else None,
    )


def _explain(error: ValidationError) -> str:
    """The first fault in one line, without what stands there."""
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = fault["loc"]
    if not where:
        return "expected a list of keys"
    entry = f"entry {int(where[0]) + 1}"
    if fault["type"] == "extra_forbidden":
        return f"{entry}: unknown field (allowed: {', '.join(_Entry.model_fields)})"
    field = ".".join(str(part) for part in where[1:])
    return f"{entry}: {field + ': ' if field else ''}{fault['msg']}"


# ---- writing


def change_keys(path: Path, change: Callable[[list[ApiKey]], list[ApiKey]]) -> None:
    """Replace the keys of a file by what `change` makes of them; a file that is not there holds
    none. Readers see the old file or the new one. Two changes at once: one after the other. A new
    file has mode 0600; an old one keeps its mode and owner. Raises ConfigError."""
    try:
        with _folder_locked(path.parent):
            keys = read_keys(path) if path.exists() else []
            _replace(path, change(keys))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


@contextlib.contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _replace(path: Path, keys: Iterable[ApiKey]) -> None:
    target = path.resolve()  # a link stays a link
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(_text(keys, as_json=target.suffix == ".json"))
            file.flush()
            if target.exists():
                status = target.stat()
                os.fchmod(file.fileno(), stat.S_IMODE(status.st_mode))
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _text(keys: Iterable[ApiKey], *, as_json: bool) -> str:
    entries = [_plain(key) for key in keys]
    if as_json:
        return json.dumps(entries, indent=2) + "\n"
    return yaml.safe_dump(entries, sort_keys=False)


def _plain(key: ApiKey) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": key.name,
        "hash": _HASH + key.digest.hex(),
        "scopes": sorted(scope.value for scope in key.scopes),
    }
    if key.expires_s is not None:
        entry["expires"] = datetime.fromtimestamp(key.expires_s, UTC).isoformat()
    return entry
