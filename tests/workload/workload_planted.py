"""Requests whose coefficients are known, as CSV text and as a request log."""

from __future__ import annotations

from datetime import timedelta
from itertools import product

import numpy as np
from log_rows import START, row

from serve_app.request_log.row import ENCODER

ENERGY = (0.02, 0.15, 4e-5, 3.0)
RUN_TIME = (3e-5, 0.008, 2e-7, -0.001)
PROMPTS, OUTPUTS, BATCHES = (32, 200, 900, 3000), (8, 60, 300), (1, 4, 16)
HEADER = "prompt_tokens,output_tokens,joules,run_time_s,batch,model,device"


def rows(energy=ENERGY, run_time=RUN_TIME, *, noise=0.0, repeats=2, seed=0, even_noise=0.0):
    """(prompt, output, joules, run_time_s, batch) over a full grid; `noise` is relative,
    `even_noise` in joules and hundredths of a second, the same for every request."""
    rng = np.random.default_rng(seed)
    found = []
    for prompt, output, batch, _ in product(PROMPTS, OUTPUTS, BATCHES, range(repeats)):
        x = np.array([prompt, output, prompt * output, output / batch])
        joules, seconds = float(x @ energy), float(x @ run_time)
        joules *= 1.0 + noise * rng.standard_normal()
        seconds *= 1.0 + noise * rng.standard_normal()
        joules += even_noise * rng.standard_normal()
        found.append((prompt, output, joules, seconds + 0.01 * even_noise * rng.random(), batch))
    return found


def csv_text(found, columns=HEADER, model="m", device="d"):
    """A file of these rows with only the named columns."""
    names = columns.split(",")
    lines = [columns]
    for values in found:
        cells = dict(zip(HEADER.split(","), (*values, model, device), strict=True))
        lines.append(",".join(str(cells[name]) for name in names))
    return "\n".join(lines) + "\n"


def write_log(folder, found, **changes):
    """A request log of these rows, one after the other, so that each runs alone."""
    folder.mkdir(exist_ok=True)
    time = START
    lines = []
    for number, (prompt, output, joules, seconds, _) in enumerate(found):
        end = time + timedelta(seconds=seconds)
        fields = {
            "start": time,
            "end": end,
            "prompt_tokens": prompt,
            "output_tokens": output,
            "joules": joules,
            "queue_s": 0.0,
            "device_joules": {"gpu": joules},
        }
        lines.append(ENCODER.encode(row(number, **{**fields, **changes})) + b"\n")
        time = end + timedelta(seconds=1)
    (folder / "a.requests.jsonl").write_bytes(b"".join(lines))
    return folder
