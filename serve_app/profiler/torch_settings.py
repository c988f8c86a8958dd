"""How the torch engine is started, without importing torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from policies.core.errors import ConfigError, EngineError
from serve_app.profiler.shapes import ModelShape

if TYPE_CHECKING:
    from serve_app.profiler.torch_engine import TorchEngine

DEVICES = ("cuda", "cpu")
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchEngineSettings:
    """Names as vLLM has them. `name`: of the shape. `enforce_eager`: no CUDA graphs (on a CPU there
    are none). `gpu_memory_utilization`: the share of the free memory that weights and KV cache may
    take; the rest is for what a step computes in between, and for the graphs. `num_threads`: of
    torch, where it computes on the CPU."""

    name: str
    shape: ModelShape
    device: str = "cuda"
    dtype: str = "bfloat16"
    max_num_seqs: int = 64
    max_model_len: int = 2048
    max_num_batched_tokens: int = 2048
    gpu_memory_utilization: float = 0.9
    enforce_eager: bool = False
    num_threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        longest = self.shape.max_position_embeddings
        most = self.max_num_batched_tokens - 1  # a step has room for a prompt beside all others
        share = self.gpu_memory_utilization
        for name, value, allowed, fits in (
            ("--device", self.device, ", ".join(DEVICES), self.device in DEVICES),
            ("dtype", self.dtype, ", ".join(DTYPES), self.dtype in DTYPES),
            ("--max-num-seqs", self.max_num_seqs, f"1 to {most}", 1 <= self.max_num_seqs <= most),
            (
                "--max-model-len",
                self.max_model_len,
                f"2 to {longest} ({self.name})",
                2 <= self.max_model_len <= longest,
            ),
            ("--threads", self.num_threads, "1 or more", self.num_threads >= 1),
            ("gpu_memory_utilization", share, "above 0, at most 1", 0.0 < share <= 1.0),
        ):
            if not fits:
                raise ConfigError(f"{name}: {value}; allowed: {allowed}")

    @property
    def on_cpu(self) -> bool:
        """Whether the engine runs on the CPU."""
        return self.device == "cpu"

    @property
    def num_gpus(self) -> int:
        """GPUs that it computes on, where the device is one."""
        return 1

    def environment(self) -> dict[str, str]:
        """What must stand in the environment before torch is imported: nothing."""
        return {}

    def engine_args(self) -> dict[str, Any]:
        """Everything that the measurement depends on, as plain data."""
        return {"engine": "torch", **asdict(self)}


def open_torch_engine(settings: TorchEngineSettings) -> TorchEngine:
    """Start the engine; use it in `with`. EngineError where torch, the GPU or the memory is not
    there."""
    try:
        from serve_app.profiler.torch_engine import TorchEngine
    except ImportError as error:
        raise EngineError(f"the torch engine needs torch and numpy: {error}") from error
    return TorchEngine(settings)
