"""docs/plan.md: its commands work, and its words are those of the output."""

import re
import shlex
from pathlib import Path

import pytest
from planner_cases import CHAT, SMALL, run, write_profile
from random_models import BANDS

PAGE = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
COMMANDS = re.findall(r"^jouleserve plan (.*)$", PAGE, re.MULTILINE)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the commands name, in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("trace.csv").write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        + "".join(f"{second},800,150\n" for second in range(600))
    )
    Path("grid.csv").write_text(
        "time,gCO2_per_kWh\n2026-01-01T00:00,300\n2026-01-01T01:00,200\n2026-01-01T02:00,100\n"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_work(files, command):
    pytest.importorskip("matplotlib")
    done = run(*shlex.split(command))
    assert done.exit_code == 0, (done.output, done.exception)


def test_the_rows_that_are_explained_are_those_of_the_table(tmp_path):
    file = write_profile(tmp_path, bands=BANDS)
    told = run(file, *CHAT, *SMALL, "--power-limits", "400", "--tpot-ms", "25").stdout
    explained = re.findall(r"^\| ([a-z].*?) \| ", PAGE, re.MULTILINE)
    assert explained[0] == "row"
    for row in explained[1:]:
        first, *others = re.split(r" / |, by ", row)
        assert first in told
        for other in others:
            assert other in told
