"""Computes steps of the torch engine: by a CUDA graph per layout, or launch by launch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from serve_app.profiler.batching import Plan
from serve_app.profiler.torch_model import Resumed
from serve_app.profiler.torch_step import Layout, StepInputs

if TYPE_CHECKING:
    from serve_app.profiler.torch_model import Cache, Decoder


# Not cuDNN's, which makes a plan for every length that it meets.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


class StepRunner:
    """Runs plans on a decoder. `graphs`: with CUDA graphs, for the layouts that fit one."""

    def __init__(
        self, decoder: Decoder, cache: Cache, inputs: StepInputs, logits: Any, *, graphs: bool
    ) -> None:
        self._decoder = decoder
        self._cache = cache
        self._inputs = inputs
        self._logits = logits
        self._graphs: dict[Layout, Any] | None = {} if graphs else None
        self._pool = torch.cuda.graph_pool_handle() if graphs else None

    def prepare(self, layouts: Iterable[Layout]) -> None:
        """Capture the graphs of these layouts that are not there yet. The device is idle after."""
        for layout in layouts:
            if self._graphs is not None and layout not in self._graphs and layout.fits_graph:
                self._graphs[layout] = self._capture(layout)

    def run(self, layout: Layout, plan: Plan) -> Any:
        """Compute a plan; returns the logits [sample, vocabulary], which the next step overwrites.
        Only what `prepare` has captured runs as a graph. The device may still be at work."""
        self._inputs.write(layout, plan)
        graph = self._graphs.get(layout) if self._graphs else None
        if graph is not None:
            graph.replay()
        elif layout.resumes and plan.prompt is not None and plan.prompt.slot is not None:
            self._compute(layout, Resumed(slot=plan.prompt.slot, start=plan.prompt_start))
        else:
            self._compute(layout)
        return self._logits[: layout.samples]

    def _compute(self, layout: Layout, resumed: Resumed | None = None) -> None:
        rows, logits = self._inputs.rows(layout), self._logits[: layout.samples]
        with sdpa_kernel(_KERNELS):
            self._decoder.forward(layout, rows, self._cache, logits, resumed)

    def _capture(self, layout: Layout) -> Any:
        """The graph of a layout. Captured on padding, so that no sequence's cache is touched."""
        self._inputs.write(layout, Plan())
        self._compute(layout)  # loads the kernels, which a capture must not
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # thread_local: a meter that reads in another thread must not end the capture.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            self._compute(layout)
        torch.cuda.synchronize()
        return graph
