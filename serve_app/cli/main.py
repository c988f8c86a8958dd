"""`jouleserve`: the commands by name, and what every one of them does with an error.

A command's module is imported when the command is called, so that `jouleserve --help` is quick and
no command pays for the libraries of another.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from policies.core.errors import EnergyServeError

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Lazy:
    """A command: its module, and its line of help.

    The module holds a Typer application `app`, or just a function of the command's name.
    """

    module: str
    help: str


# To add a command, add a line. Heavy imports of its module belong into its functions all the same:
# `jouleserve <command> --help` imports the module.
COMMANDS: dict[str, Lazy] = {
    "serve": Lazy("serve_app.cli.serve", "Serve a config file on this machine; Ctrl-C stops all."),
    "config": Lazy("serve_app.cli.config", "Show what a config file resolves to."),
    "model": Lazy("serve_app.cli.model", "Prepare the default model in the user's cache."),
    "bench": Lazy("serve_app.cli.bench", "Send load to a server; report latency and energy."),
    "compare": Lazy("serve_app.cli.compare", "Compare with stock ray.serve.llm and bare vLLM."),
    "profile": Lazy("serve_app.cli.profile", "Measure an engine and fit its model."),
    "fit": Lazy("serve_app.cli.fit", "Fit a latency and power model to measured samples."),
    "published": Lazy("serve_app.cli.published", "Fit profiles to measurements of others."),
    "plan": Lazy("serve_app.cli.plan", "Plan replicas, cap and limit for a load; cost a day."),
    "simulate": Lazy("serve_app.cli.simulate", "Play a trace under policies; joules and latency."),
    "meter": Lazy("serve_app.cli.meter", "Run a command and meter its energy."),
    "report": Lazy("serve_app.cli.report", "Report joules, cost and CO2 of logged requests."),
    "traces": Lazy("serve_app.cli.traces", "List, describe, write and download traces."),
    "workload": Lazy("serve_app.cli.workload", "Describe a trace; fit joules to lengths."),
    "doctor": Lazy("serve_app.cli.doctor", "Say what this host can meter and serve, and why not."),
    "explain": Lazy("serve_app.cli.explain", "Say what was decided and why; decide it again."),
    "approve": Lazy("serve_app.cli.approve", "Approve a decision that waits (mode approve)."),
    "key": Lazy("serve_app.cli.key", "Make, list and revoke API keys of a service."),
    "power-agent": Lazy(
        "serve_app.cli.power_agent", "Lease this node's GPU power limits; put back what was found."
    ),
    "gpu-check": Lazy("serve_app.cli.gpu_check", "Check the meter of an NVIDIA GPU; reads only."),
}


class LazyGroup(TyperGroup):
    """The group of COMMANDS. Help shows their lines; only a call imports the module."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002 - the signature is Typer's
        """Return the command names in the order of COMMANDS."""
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Return a stand-in with the line of help; None for an unknown name."""
        lazy = COMMANDS.get(cmd_name)
        return None if lazy is None else TyperCommand(cmd_name, help=lazy.help)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the real command, imported now."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        if name is None or stand_in is None:
            return name, stand_in, rest
        return name, _load(name, COMMANDS[name].module), rest


def _load(name: str, module_name: str) -> Any:
    module = importlib.import_module(module_name)
    found = getattr(module, "app", None)
    if found is None:
        found = typer.Typer(add_completion=False)
        found.command()(getattr(module, name))
    return typer.main.get_command(found)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(importlib.metadata.version("jouleserve"))
        raise typer.Exit


@app.callback()
def jouleserve(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Serve LLMs for the fewest joules per request that the latency targets allow.

    Exit status: 0 done, 1 a finding (a failed request, a damaged file), 2 bad input.
    """


def main() -> None:
    """Run the command line. Never returns normally: exits with the command's status."""
    try:
        app()
    except EnergyServeError as error:
        print(f"jouleserve: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        print("jouleserve: interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
