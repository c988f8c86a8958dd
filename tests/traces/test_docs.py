"""docs/traces.md names the commands, options, presets and defaults that there are."""

import re
from pathlib import Path

from typer.main import get_command

from policies.sim.mixing import MIN_SHIFT_GAPS, MIN_SHIFT_S
from serve_app.cli.traces import app
from serve_app.traces.catalog import load_catalog, load_presets
from serve_app.traces.figures import MIN_SPREAD_WINDOWS, SPREAD_WINDOW_S
from serve_app.traces.load import COARSE_BURSTS, COARSE_STEP_S

PAGE = (Path(__file__).parents[2] / "docs" / "traces.md").read_text(encoding="utf-8")
PROSE = " ".join(PAGE.split())
COMMANDS = get_command(app).commands


def options_of(command):
    return {
        one for param in command.params for one in (*param.opts, *param.secondary_opts)
    }  # fmt: skip


def test_every_command_line_shown_is_one_that_there_is():
    lines = re.findall(r"^jouleserve traces (\w+) ?(.*)$", PAGE, re.MULTILINE)
    assert {name for name, _ in lines} == set(COMMANDS)
    for name, rest in lines:
        assert set(re.findall(r"--[a-z-]+", rest)) <= options_of(COMMANDS[name]), rest


def test_every_option_is_explained():
    known = {one for command in COMMANDS.values() for one in options_of(command)}
    assert {one for one in known if one.startswith("--")} <= {
        *re.findall(r"--[a-z-]+", PAGE), "--help",
    }  # fmt: skip
    assert set(re.findall(r"`(--[a-z-]+)", PAGE)) <= known


def test_names_and_defaults_are_those_of_the_code():
    for name in load_presets():
        assert f"`{name}`" in PAGE
    assert "azure-2023-chat" in load_catalog()
    assert (MIN_SHIFT_S, MIN_SHIFT_GAPS) == (60, 20)
    assert "a minute, 20 mean gaps" in PROSE
    assert COARSE_STEP_S == 300
    wanted = f"five minutes or more {COARSE_BURSTS.rate_cv:g} and {COARSE_BURSTS.correlation_s:g} s"
    assert wanted in PROSE
    assert (SPREAD_WINDOW_S, MIN_SPREAD_WINDOWS) == (600, 12)
    assert "ten-minute windows (of a twelfth of the trace" in PROSE
    assumed = {
        name
        for name, one in load_presets().items()
        if "assumed" in " ".join(one.sources.model_dump().values())
    }
    assert assumed == {"chat-day", "code-bursty"}
