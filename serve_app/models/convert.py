"""GGUF weights to a folder with safetensors, tokenizer and chat template. Runs as a process.

`python -P convert.py WEIGHTS.gguf FOLDER`: a process of its own keeps torch and transformers, and
what they print, out of the command that shows the progress.
"""

from __future__ import annotations

import sys
from pathlib import Path


def convert(weights: Path, folder: Path) -> None:
    """Write the model in bfloat16 to `folder`.

    The weights are dequantised: without that, transformers keeps them quantised and cannot save.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(weights.parent), weights.name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=name)
    model = AutoModelForCausalLM.from_pretrained(
        source,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    for path in folder.iterdir():  # safetensors come private, the cache may be shared
        path.chmod(0o644)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
