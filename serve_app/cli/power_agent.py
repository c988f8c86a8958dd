"""`jouleserve power-agent`: the privileged process of a node.

Its options are `argparse`'s, because the agent runs where nothing of this command line is
installed; this hands them over as they are.
"""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False)


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    }
)
def power_agent(context: typer.Context) -> None:
    """Lease the power limits of this node's GPUs; put back what was found. Runs as root."""
    from serve_app.power_agent.agent import main

    raise typer.Exit(main(context.args))
