"""A fake powercap tree: zones laid out as the kernel shows them, counters that a test turns.

The counters wrap at max_energy_range_uj. Files are overwritten in place with fixed width, as
readers that keep them open (pyRAPL) need it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PACKAGE_RANGE_UJ = 262_143_328_850
DRAM_RANGE_UJ = 65_712_999_613


@dataclass
class FakeZone:
    """One zone. `total_uj` is the truth: what it has used since it was made, without wraps."""

    path: Path
    range_uj: int
    start_uj: int
    total_uj: int = 0

    def add(self, microjoules: int) -> None:
        self.total_uj += microjoules
        self._write((self.start_uj + self.total_uj) % self.range_uj)

    def reset(self, to_uj: int = 0) -> None:
        """Set the counter as a reloaded driver does, without energy being used."""
        self.start_uj = to_uj - self.total_uj
        self._write(to_uj)

    def _write(self, value: int) -> None:
        with (self.path / "energy_uj").open("r+b") as file:
            file.write(f"{value:<15d}\n".encode())

    @property
    def file(self) -> Path:
        return self.path / "energy_uj"


class FakePowercap:
    """The tree under `root`, which stands for /sys/class/powercap. `zones` by directory name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.zones: dict[str, FakeZone] = {}
        root.mkdir(parents=True, exist_ok=True)

    def add(
        self, entry: str, name: str, *, range_uj: int = PACKAGE_RANGE_UJ, start_uj: int = 1_000_000
    ) -> FakeZone:
        """Make the zone `entry` (`intel-rapl:0`, `intel-rapl:0:1`) with its flat link."""
        control, *numbers = entry.split(":")
        folder = self.root / control
        for depth in range(len(numbers)):
            folder = folder / ":".join([control, *numbers[: depth + 1]])
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "enabled").write_text("1\n")
        (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
        (folder / "energy_uj").write_text(f"{start_uj:<15d}\n")
        (self.root / entry).symlink_to(folder.relative_to(self.root))
        self.zones[entry] = FakeZone(folder, range_uj, start_uj)
        return self.zones[entry]

    @classmethod
    def server(cls, root: Path, *, sockets: int = 1) -> FakePowercap:
        """A server: per socket a package with core, uncore and DRAM zones, and psys on top."""
        tree = cls(root)
        for socket in range(sockets):
            top = f"intel-rapl:{socket}"
            tree.add(top, f"package-{socket}")
            tree.add(f"{top}:0", "core")
            tree.add(f"{top}:1", "uncore")
            tree.add(f"{top}:2", "dram", range_uj=DRAM_RANGE_UJ)
        tree.add(f"intel-rapl:{sockets}", "psys")
        return tree
