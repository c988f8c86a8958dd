"""Shapes of models, for an engine with random weights. The data: configs/models/shapes.yaml."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import yaml

from policies.core.errors import ConfigError
from policies.model.parsing import read_fields

SHAPES = Path(__file__).resolve().parents[2] / "configs" / "models" / "shapes.yaml"
_NORMED_HEADS = {"llama": False, "qwen3": True}  # by model_type: an RMSNorm on queries and keys


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A decoder-only transformer's dimensions, under the names of Hugging Face's config.json.

    `source`: the model they are of; `licence`: of its weights; `model_type`: llama or qwen3.
    """

    source: str
    licence: str
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tie_word_embeddings: bool

    @property
    def normed_heads(self) -> bool:
        """Whether queries and keys pass an RMSNorm of their own (Qwen3)."""
        return _NORMED_HEADS[self.model_type]

    @property
    def num_parameters(self) -> int:
        """All weights, norms included."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        layer = self.hidden_size * (heads * self.head_dim + 3 * self.intermediate_size + 2)
        layer += 2 * self.head_dim if self.normed_heads else 0
        vocabularies = 1 if self.tie_word_embeddings else 2
        return (
            self.num_hidden_layers * layer + (vocabularies * self.vocab_size + 1) * self.hidden_size
        )

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the KV cache holds for one token."""
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim


def load_shapes(path: Path = SHAPES) -> dict[str, ModelShape]:
    """All shapes of a file, by name. ConfigError names file, shape and key."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"{path}: expected a mapping from names to shapes")
    return {str(name): _shape(values, f"{path}: {name}") for name, values in data.items()}


def shape_of(name: str, path: Path = SHAPES) -> ModelShape:
    """The shape of that name; ConfigError lists the names that there are."""
    shapes = load_shapes(path)
    if name in shapes:
        return shapes[name]
    near = difflib.get_close_matches(name.lower(), shapes, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ConfigError(f"shape {name!r}: {hint}known shapes: {', '.join(shapes)}")


def write_model_folder(shape: ModelShape, folder: Path) -> Path:
    """A folder with the config.json of that shape and nothing else: what an engine that makes its
    weights up (vLLM's load_format "dummy") needs. Returns it."""
    names = {"llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
    values = asdict(shape)
    config = {name: values[name] for name in values if name not in {"source", "licence"}} | {
        "architectures": [names[shape.model_type]],
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / ".config.json.part"
    draft.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    draft.replace(folder / "config.json")
    return folder


def _shape(values: object, source: str) -> ModelShape:
    shape = read_fields(ModelShape, values, source)
    for field in fields(shape):
        value = getattr(shape, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool) and value <= 0:
            raise ConfigError(f"{source}: {field.name} is {value}; allowed: above 0")
    if shape.model_type not in _NORMED_HEADS:
        raise ConfigError(
            f"{source}: model_type is {shape.model_type!r}; allowed: {', '.join(_NORMED_HEADS)}"
        )
    if shape.num_attention_heads % shape.num_key_value_heads:
        raise ConfigError(
            f"{source}: num_key_value_heads is {shape.num_key_value_heads}; allowed: a divisor of "
            f"num_attention_heads ({shape.num_attention_heads})"
        )
    if shape.head_dim % 2:
        raise ConfigError(f"{source}: head_dim is {shape.head_dim}; allowed: an even number")
    return shape
