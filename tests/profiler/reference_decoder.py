"""The torch engine's model once more, as its papers write it: whole sequences, one head at a time.

It shares the weights with the engine's (same seed, same device) and nothing of how they are used.
"""

from __future__ import annotations

import torch

from serve_app.profiler.torch_model import Decoder


class Reference:
    """Logits [token, vocabulary] of a sequence of token ids, in float32 on the CPU."""

    def __init__(self, settings):
        self.shape = settings.shape
        self.weights = named_weights(settings)

    def __call__(self, ids):
        shape, get = self.shape, self.weights.__getitem__
        x = get("model.embed_tokens.weight")[ids]
        for index in range(shape.num_hidden_layers):
            layer = f"model.layers.{index}"
            x = x + self._attention(layer, self._norm(x, get(f"{layer}.input_layernorm.weight")))
            y = self._norm(x, get(f"{layer}.post_attention_layernorm.weight"))
            gate = y @ get(f"{layer}.mlp.gate_proj.weight").T
            up = y @ get(f"{layer}.mlp.up_proj.weight").T
            x = x + (gate * torch.sigmoid(gate) * up) @ get(f"{layer}.mlp.down_proj.weight").T
        x = self._norm(x, get("model.norm.weight"))
        head = self.weights.get("lm_head.weight", get("model.embed_tokens.weight"))
        return x @ head.T

    def _attention(self, layer, x):
        shape, size = self.shape, self.shape.head_dim
        q, k, v = (x @ self.weights[f"{layer}.self_attn.{p}_proj.weight"].T for p in "qkv")
        future = torch.ones(len(x), len(x)).triu(1).bool()
        heads = []
        for head in range(shape.num_attention_heads):
            shared = head // (shape.num_attention_heads // shape.num_key_value_heads)
            queries = self._turned(layer, "q", q[:, head * size : (head + 1) * size])
            keys = self._turned(layer, "k", k[:, shared * size : (shared + 1) * size])
            scores = (queries @ keys.T / size**0.5).masked_fill(future, float("-inf"))
            heads.append(scores.softmax(-1) @ v[:, shared * size : (shared + 1) * size])
        return torch.cat(heads, -1) @ self.weights[f"{layer}.self_attn.o_proj.weight"].T

    def _turned(self, layer, part, x):
        """Rotary positions as complex numbers: value i with value i + half."""
        name = f"{layer}.self_attn.{part}_norm.weight"
        if name in self.weights:
            x = self._norm(x, self.weights[name])
        half = self.shape.head_dim // 2
        speeds = self.shape.rope_theta ** (-torch.arange(half) / half)
        angles = torch.outer(torch.arange(len(x)).float(), speeds)
        turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(torch.ones(1), angles)
        return torch.cat((turned.real, turned.imag), -1)

    def _norm(self, x, weight):
        return x / (x.pow(2).mean(-1, keepdim=True) + self.shape.rms_norm_eps).sqrt() * weight


def transformers_model(settings):
    """transformers' model of the same shape with the same weights."""
    import transformers

    shape = settings.shape
    family = {"llama": "Llama", "qwen3": "Qwen3"}[shape.model_type]
    config = getattr(transformers, f"{family}Config")(
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size,
        max_position_embeddings=shape.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        rms_norm_eps=shape.rms_norm_eps,
        tie_word_embeddings=shape.tie_word_embeddings,
        attn_implementation="eager",
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval().requires_grad_(False)
    missing, unexpected = model.load_state_dict(named_weights(settings), strict=False)
    assert not unexpected
    assert set(missing) <= ({"lm_head.weight"} if shape.tie_word_embeddings else set())
    return model


def named_weights(settings):
    """The engine's weights under transformers' names, in float32 on the CPU."""
    shape = settings.shape
    decoder = Decoder(
        shape, 1, getattr(torch, settings.dtype), torch.device(settings.device), settings.seed
    )
    found = {"model.embed_tokens.weight": decoder.embedding, "model.norm.weight": decoder.norm}
    if not shape.tie_word_embeddings:
        found["lm_head.weight"] = decoder.head
    sizes = [shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads]
    for index, layer in enumerate(decoder.layers):
        q, k, v = layer.qkv.split([size * shape.head_dim for size in sizes])
        gate, up = layer.gate_up.chunk(2)
        parts = {
            "self_attn.q_proj": q,
            "self_attn.k_proj": k,
            "self_attn.v_proj": v,
            "self_attn.o_proj": layer.output,
            "self_attn.q_norm": layer.query_norm,
            "self_attn.k_norm": layer.key_norm,
            "mlp.gate_proj": gate,
            "mlp.up_proj": up,
            "mlp.down_proj": layer.down,
            "input_layernorm": layer.attention_norm,
            "post_attention_layernorm": layer.mlp_norm,
        }
        found |= {f"model.layers.{index}.{k}.weight": v for k, v in parts.items() if v is not None}
    return {name: part.float().cpu() for name, part in found.items()}
