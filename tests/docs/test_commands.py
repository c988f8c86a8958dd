"""Every command, option, make target and link that README and docs name exists."""

from __future__ import annotations

import re
import shlex
from functools import lru_cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve_app.cli.main import COMMANDS, app

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [page for page in PAGES if page.name != "LOG.md"]  # says what was run on its day
NESTED = {"config", "key", "model", "traces", "workload"}  # a word more before the options
FENCE = re.compile(r"^```(?:sh|bash|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
TARGETS = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands_of(page):
    """The words of every `jouleserve ...` and `make ...` in code."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").split("\n")
    ]
    lines += re.findall(r"(?<!`)`([^`\n]+)`(?!`)", text)
    for line in lines:
        found = re.match(
            r"(?:\$ |sudo |\w+=\S* )*(?:\S*/)?(jouleserve|make)(?: +(.*))?$", line.strip()
        )
        if found is None:
            continue
        rest = re.split(r"\s+(?:#|\||&&|>)", f" {found[2] or ''}")[0]
        try:
            yield found[1], shlex.split(rest)
        except ValueError:
            yield found[1], rest.split()


CALLS = [(page.name, *call) for page in PAGES for call in commands_of(page)]
OURS = sorted({(page, " ".join(words)) for page, name, words in CALLS if name == "jouleserve"})


@lru_cache(maxsize=64)
def help_of(*words):
    shown = CliRunner().invoke(app, [*words, "--help"], terminal_width=300, env={"COLUMNS": "300"})
    return shown.exit_code, set(re.findall(r"--[\w-]+", shown.output))


@pytest.mark.parametrize(("page", "call"), OURS)
def test_a_command_and_its_options_exist(page, call):
    words = call.split()
    if not words or words[0].startswith(("-", "<")) or words[0] == "...":
        return
    names = words[0].rstrip(",").split("|")
    assert set(names) <= set(COMMANDS), page
    given = {re.split(r"[=\]]", word.lstrip("["))[0] for word in words if "--" in word[:3]}
    given -= {"--"}
    (name,) = names[:1]
    path = [name]
    if name in NESTED and len(words) > 1 and re.fullmatch(r"[a-z]+", words[1]):
        path.append(words[1])
    code, known = help_of(*path)
    if name == "workload" and (code != 0 or len(path) == 1):  # a trace is described without a word
        code, known = help_of(name, "describe")
    assert code == 0, page
    if "--" in words:  # what follows is another program's
        given = {word for word in words[: words.index("--")] if word.startswith("--")}
    assert given <= known | {"--help"}, page


@pytest.mark.parametrize(
    ("page", "target"),
    sorted({(page, word) for page, name, words in CALLS if name == "make" for word in words}),
)
def test_a_target_of_make_exists(page, target):
    if re.fullmatch(r"[a-z][a-z-]*", target):
        assert target in TARGETS, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    gone = [link for link in links if not (page.parent / link).exists()]
    assert gone == []
