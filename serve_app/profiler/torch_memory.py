"""What the torch engine needs of memory, checked before any of it is taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import psutil
import torch

from policies.core.errors import EngineError

if TYPE_CHECKING:
    from serve_app.profiler.torch_settings import TorchEngineSettings

_GIB = 2**30


def check_room(settings: TorchEngineSettings) -> None:
    """Return if weights and KV cache fit into the free memory; EngineError says what would."""
    if settings.on_cpu:
        free = int(psutil.virtual_memory().available)
    else:
        free = int(torch.cuda.mem_get_info()[0])
    shape, item = settings.shape, torch.finfo(getattr(torch, settings.dtype)).bits // 8
    weights = shape.num_parameters * item
    sequence = shape.kv_values_per_token * settings.max_model_len * item
    room = int(settings.gpu_memory_utilization * free) - weights
    fitting = max(0, room // sequence - 1)  # one slot takes what padding writes
    if fitting < settings.max_num_seqs:
        raise EngineError(
            f"{settings.name} needs {weights / _GIB:.1f} GiB for weights and "
            f"{sequence / _GIB:.2g} GiB of KV cache for each sequence of {settings.max_model_len} "
            f"tokens; {settings.gpu_memory_utilization:.0%} of the {free / _GIB:.1f} GiB that are "
            f"free on {settings.device} hold {fitting} of the {settings.max_num_seqs} sequences: "
            "lower --max-num-seqs or --max-model-len"
        )


@contextmanager
def out_of_memory(what: str) -> Iterator[None]:
    """Turns torch's error into an EngineError that says what was being done."""
    try:
        yield
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        raise EngineError(
            f"out of GPU memory while {what}: lower --max-num-seqs or --max-model-len"
        ) from error
