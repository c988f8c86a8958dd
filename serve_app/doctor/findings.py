"""What an examination of this host says: findings with a level and what to do, in sections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

SCHEMA_VERSION = 1


class Level(StrEnum):
    """How much a finding matters, least first."""

    OK = "ok"  # as it should be
    NOTE = "note"  # good to know, nothing to do
    WARNING = "warning"  # works, but less well than it could
    PROBLEM = "problem"  # something will not work


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One fact about one subject.

    `fix`: what to do, one line each; a line that is a command is written as it is typed. `facts`:
    the numbers behind the text, plain JSON values in base units.
    """

    level: Level
    subject: str
    text: str
    fix: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """The findings about one part of the installation."""

    name: str
    findings: tuple[Finding, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All sections."""

    sections: tuple[Section, ...]

    @property
    def level(self) -> Level:
        """The worst level of all findings; ok where there is none."""
        order = list(Level)
        levels = (finding.level for section in self.sections for finding in section.findings)
        return max(levels, key=order.index, default=Level.OK)

    def counts(self) -> dict[str, int]:
        """How many findings have each level."""
        found = Counter(f.level for section in self.sections for f in section.findings)
        return {level.value: found[level] for level in Level}

    def to_dict(self) -> dict[str, Any]:
        """The whole diagnosis as plain data, for `--json`."""
        return {
            "schema_version": SCHEMA_VERSION,
            "level": self.level.value,
            "counts": self.counts(),
            "sections": [asdict(section) for section in self.sections],
        }
