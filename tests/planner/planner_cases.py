"""Profiles on disk, and `jouleserve plan` from outside."""

import json
from dataclasses import replace

import yaml
from random_models import H100
from typer.testing import CliRunner

from serve_app.cli.main import app

CHAT = ("--rate", 20, "--prompt-tokens", 500, "--output-tokens", 200, "--tpot-ms", 30)
SMALL = ("--max-replicas", 4, "--max-num-seqs", 160)


def write_profile(folder, name="h100", **changes):
    """The H100 profile with these fields changed, as a file."""
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(replace(H100, name=name, **changes).to_dict()))
    return path


def run(*arguments):
    """`jouleserve plan` with these arguments."""
    environment = {"COLUMNS": "250", "NO_COLOR": "1"}
    return CliRunner().invoke(app, ["plan", *map(str, arguments)], env=environment)


def document(*arguments, code=0):
    """The JSON document of a plan."""
    done = run(*arguments, "--json")
    assert done.exit_code == code, (done.output, done.exception)
    return json.loads(done.stdout)


def answer(*arguments, code=0):
    """What the document says of its only profile."""
    (found,) = document(*arguments, code=code)["profiles"]
    return found
