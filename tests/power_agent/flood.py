"""A hostile client: opens connections and sends garbage and questions as fast as it can, until it is
killed. flood.py SOCKET"""

import contextlib
import resource
import socket
import sys
import time
from collections import deque

KEPT = 1000


def main(path):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, KEPT + 100), hard), hard))
    mine = deque()
    while True:
        with contextlib.suppress(OSError):
            one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            one.setblocking(False)
            mine.append(one)
            one.connect(path)
            one.send(b'{"op": "status"}\n' * 50 + b"garbage\n")
        for one in list(mine)[-20:]:
            with contextlib.suppress(OSError):
                one.send(b'{"op": "status"}\n')
        if len(mine) > KEPT:
            mine.popleft().close()
        time.sleep(0.001)


if __name__ == "__main__":
    main(sys.argv[1])
