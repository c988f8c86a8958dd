"""Runs a command that sees a fake powercap tree at /sys/class/powercap, where pyRAPL looks for it.

    python tests/fakes/fake_sys_class.py TREE COMMAND [ARG ...]

TREE is a FakePowercap root. It is bound over /sys/class/powercap in a mount namespace of the
command's own, so nothing outside sees it; the test goes on editing TREE. Where the machine has no
/sys/class/powercap to bind over, all of /sys/class is shadowed by a copy of its links that has one.
Needs root and util-linux (unshare, mount).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SYS_CLASS = Path("/sys/class")
_INSIDE = "FAKE_SYS_CLASS_INSIDE"


def command_under(tree: Path, *command: str) -> list[str]:
    """The command line that runs `command` with the tree in place."""
    return [sys.executable, __file__, str(tree), *command]


def possible() -> bool:
    """Whether this process may make a mount namespace."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return (
        subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
    )


def _mount(tree: Path) -> None:
    target = SYS_CLASS / "powercap"
    if not target.is_dir():
        shadow = Path(tempfile.mkdtemp(prefix="sys-class-"))
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(shadow)], check=True)
        subprocess.run(f"cp -a {SYS_CLASS}/. {shadow}/ 2>/dev/null", shell=True, check=False)
        (shadow / "powercap").mkdir()
        subprocess.run(["mount", "--bind", str(shadow), str(SYS_CLASS)], check=True)
        subprocess.run(["umount", "-l", str(shadow)], check=True)
        shadow.rmdir()
    subprocess.run(["mount", "--bind", str(tree), str(target)], check=True)


def main(tree: Path, *command: str) -> None:
    """Replace this process by the command."""
    if os.environ.get(_INSIDE) != "1":
        os.environ[_INSIDE] = "1"
        os.execvp("unshare", ["unshare", "-m", *command_under(tree, *command)])
    del os.environ[_INSIDE]
    _mount(tree.resolve())
    os.execvp(command[0], list(command))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
