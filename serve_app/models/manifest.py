"""MANIFEST.json of a prepared model: what each file must be, where it comes from, who made it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MANIFEST_NAME = "MANIFEST.json"
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of the model."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What MANIFEST.json holds.

    `source`, `packages` (name → version) and `prepared_at` (ISO, UTC) are provenance; `files`
    (name → entry) is what a check compares with.
    """

    model: str
    licence: str
    source: dict[str, str]
    files: dict[str, FileEntry]
    packages: dict[str, str]
    prepared_at: str


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, as lower-case hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe_files(folder: Path) -> dict[str, FileEntry]:
    """Return an entry for every file in the folder, by name, except the manifest."""
    return {
        path.name: FileEntry(size_bytes=path.stat().st_size, sha256=sha256_of(path))
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST_NAME
    }


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write MANIFEST.json. It carries a checksum of itself, so that an edited one is found out."""
    content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, **asdict(manifest)}
    content["manifest_sha256"] = _own_sha256(content)
    text = json.dumps(content, indent=2) + "\n"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def faults(folder: Path, *, hashes: bool) -> list[str]:
    """Return what is wrong with a prepared model, one line per fault that names the file.

    Compares the sizes, which takes milliseconds; with `hashes` the contents as well.
    """
    try:
        content = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
        entries = {name: FileEntry(**entry) for name, entry in content["files"].items()}
        intact = content.pop("manifest_sha256") == _own_sha256(content)
        version = content["schema_version"]
    except FileNotFoundError:
        return [f"{MANIFEST_NAME}: missing"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{MANIFEST_NAME}: unreadable ({error})"]
    if not intact or version != SCHEMA_VERSION:
        return [f"{MANIFEST_NAME}: changed since it was written, or of another version"]
    found = (_fault(folder / name, entry, hashes=hashes) for name, entry in entries.items())
    return [fault for fault in found if fault is not None]


def _fault(path: Path, entry: FileEntry, *, hashes: bool) -> str | None:
    try:
        size_bytes = path.stat().st_size
        if size_bytes != entry.size_bytes:
            return f"{path.name}: {size_bytes:,} bytes instead of {entry.size_bytes:,}"
        if hashes and (sha256 := sha256_of(path)) != entry.sha256:
            return f"{path.name}: sha256 {sha256} instead of {entry.sha256}"
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    return None


def _own_sha256(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
