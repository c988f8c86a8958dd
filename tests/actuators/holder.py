"""A process that sets power limits and is then ended: holder.py STATE_FILE WATTS HOW UUID..."""

import os
import signal
import sys
import time
from pathlib import Path

from serve_app.actuators.limited_gpus import LimitedGpus


def say(text):
    print(text, flush=True)


def main(state_file, watts, how, *uuids):
    gpus = LimitedGpus(uuids, say=say, state_file=Path(state_file), settle_s=0.0)
    if how == "exit":
        gpus.__enter__()
        gpus.set(float(watts))
        sys.exit(7)
    try:
        with gpus:
            gpus.set(float(watts))
            if how == "fork":
                say(f"child ended with {end_a_child()}")
            say("ready")
            time.sleep(60.0)
    finally:
        say("left")


def end_a_child():
    child = os.fork()
    if child == 0:
        say("child")
        time.sleep(60.0)
        os._exit(1)
    time.sleep(0.2)
    os.kill(child, signal.SIGTERM)
    return os.waitpid(child, 0)[1]


if __name__ == "__main__":
    main(*sys.argv[1:])
