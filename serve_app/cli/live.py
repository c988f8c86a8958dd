"""The bar of a running bench."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from serve_app.bench.preflight import Progress


@contextmanager
def live_bar(progress: Progress, console: Console, refresh_s: float) -> Iterator[None]:
    """Show the counts while the block runs; nothing where stderr is no terminal.

    A thread draws, so that drawing is not a turn of the event loop that measures.
    """
    if not console.is_terminal:
        yield
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[counts]}"),
    )
    done = threading.Event()
    with Bar(*columns, console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task("bench", total=None, counts="")
        begin = perf_counter()

        def draw() -> None:
            while not done.wait(refresh_s):
                rate = progress.content_chunks / (perf_counter() - begin)
                counts = (
                    f"{progress.running} running, {progress.completed} done, "
                    f"{progress.failed} failed, {rate:.0f} chunks/s"
                )
                total = progress.scheduled or None
                bar.update(task, completed=progress.sent, total=total, counts=counts)
                bar.refresh()

        drawer = threading.Thread(target=draw, name="bench-bar", daemon=True)
        drawer.start()
        try:
            yield
        finally:
            done.set()
            drawer.join()
