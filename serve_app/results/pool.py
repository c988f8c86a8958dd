"""Tasks on several processes, stage by stage, with the place and the time left on stderr."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from serve_app.results.lab import Lab
from serve_app.results.store import Finished, NotStoredError, Store
from serve_app.results.tasks import Row, Task, work

_REFRESHED_S = 600.0  # the pace over so long says how much time is left


def run_tasks(
    tasks: Sequence[Task],
    runs: Path,
    jobs: int,
    on_rows: Callable[[Task, list[Row]], None],
    minutes: float | None = None,
) -> list[Task]:
    """Do the tasks and hand out the rows of each as it ends; returns those that were left out for
    want of time. What is under way after `minutes` is finished, and nothing new begun."""
    began_s = time.monotonic()
    left: list[Task] = []
    context = multiprocessing.get_context("spawn")
    with (
        _progress() as bar,
        ProcessPoolExecutor(jobs, context, initializer=_prepare, initargs=(runs,)) as pool,
    ):
        shown = bar.add_task("compiling", total=sum(task.cost for task in tasks))
        pool.submit(_compiled).result()
        for stage in sorted({task.stage for task in tasks}):
            waiting = [task for task in tasks if task.stage == stage]
            under_way: dict[Future[list[Row]], Task] = {}
            while waiting or under_way:
                late = minutes is not None and time.monotonic() - began_s > 60.0 * minutes
                if late:
                    left += waiting
                    waiting = []
                while waiting and len(under_way) < jobs:
                    task = waiting.pop(0)
                    under_way[pool.submit(_work, task)] = task
                names = ", ".join(task.name for task in under_way.values())
                bar.update(shown, description=names[:100])
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    task = under_way.pop(done)
                    on_rows(task, done.result())
                    bar.update(shown, advance=task.cost)
    return left


def collect(
    tasks: Sequence[Task], runs: Path, on_rows: Callable[[Task, list[Row]], None]
) -> list[Task]:
    """Run nothing: hand out the rows of the tasks whose runs are all there; returns the others."""
    lab, left = Lab(Finished(runs)), []
    for task in tasks:
        try:
            on_rows(task, work(task, lab))
        except NotStoredError:
            left.append(task)
    return left


_lab: Lab | None = None


def _prepare(runs: Path) -> None:
    global _lab  # noqa: PLW0603  (one per process)
    _lab = Lab(Store(runs))


def _compiled() -> None:
    """Compile once, for all processes: the first one keeps the code for the others."""
    from serve_app.simulator.compiled import keep_compiled

    keep_compiled()
    from policies.sim.blocks import block_of
    from policies.sim.trace import TraceRow
    from serve_app.simulator.models import truth_of
    from serve_app.simulator.run import simulate_trace
    from serve_app.simulator.scenario import Scenario
    from serve_app.simulator.specs import parse_spec

    truth = truth_of("llama-3.1-8b-instruct@h100")
    block = block_of([TraceRow(arrival_s=0.0, prompt_tokens=10, output_tokens=2)])
    scenario = Scenario(truth=truth, belief=truth)
    simulate_trace(("one request", block), parse_spec("static"), scenario)


def _work(task: Task) -> list[Row]:
    assert _lab is not None, "the process was prepared"
    return work(task, _lab)


def _progress() -> Any:
    return Progress(
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=Console(stderr=True),
        speed_estimate_period=_REFRESHED_S,
    )
