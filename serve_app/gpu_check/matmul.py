"""Child process of the check: matrix products on one GPU between the words `on` and `off`.

Says `ready`, or `error: ...`, on stdout; reads words from stdin; ends at its end.
"""

from __future__ import annotations

import os
import sys
import threading

_SIZE = 8192  # bfloat16: 3 x 128 MiB; a product takes 1.1e12 operations, about 2 ms on an H100
_PRODUCTS_PER_TURN = 8  # `off` takes effect after as many


def main() -> int:
    """Return the exit status."""
    try:
        import torch

        left = torch.randn(_SIZE, _SIZE, device="cuda", dtype=torch.bfloat16)
        out = left @ left
        torch.cuda.synchronize()
    except Exception as error:
        words = " ".join(str(error).split())
        print(f"error: {words[:300]}", flush=True)
        return 1
    running, ended = threading.Event(), threading.Event()
    threading.Thread(target=_listen, args=(running, ended), daemon=True).start()
    print("ready", flush=True)
    while not ended.is_set():
        if not running.wait(timeout=0.5):
            continue
        for _ in range(_PRODUCTS_PER_TURN):
            torch.mm(left, left, out=out)
        torch.cuda.synchronize()
    return 0


def _listen(running: threading.Event, ended: threading.Event) -> None:
    # Raw reads: a buffered read of stdin holds a lock that the interpreter waits for at exit.
    while words := os.read(sys.stdin.fileno(), 4096).decode().split():
        (running.set if words[-1] == "on" else running.clear)()
    ended.set()
    running.set()


if __name__ == "__main__":
    sys.exit(main())
