"""A diagnosis as people read it: a table per section, and below it what to do, to be copied."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve_app.doctor.findings import Diagnosis, Level, Section

_STYLES = {
    Level.OK: "green",
    Level.NOTE: "cyan",
    Level.WARNING: "yellow",
    Level.PROBLEM: "bold red",
}


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print all of it."""
    for section in diagnosis.sections:
        console.print(_table(section))
        for finding in section.findings:
            if finding.fix:
                console.print(Text(f"{finding.subject}:", style=_STYLES[finding.level]))
            for line in finding.fix:
                console.print(Text(f"    {line}"), soft_wrap=True)
        console.print()
    counts = diagnosis.counts()
    words = ", ".join(f"{counts[level]} {level.value}" for level in Level if counts[level])
    console.print(Text(words, style=_STYLES[diagnosis.level]))


def _table(section: Section) -> Table:
    table = Table(title=section.name, title_justify="left", title_style="bold", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=46)
    table.add_column(overflow="fold")
    for finding in section.findings:
        level = Text(finding.level.value, style=_STYLES[finding.level])
        table.add_row(level, Text(finding.subject), Text(finding.text))
    return table
