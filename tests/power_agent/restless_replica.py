"""A replica that asks for another limit all the time, until something goes wrong:
restless_replica.py SOCKET TTL_S UUID..."""

import random
import sys
import time
from pathlib import Path

from policies.core.errors import ActuationError
from serve_app.power_agent.client import AgentClient


def main(path, ttl_s, *uuids):
    client = AgentClient(Path(path))
    try:
        wish = {"watts": 300.0, "clock_mhz": 1500}
        lease = client.acquire(uuids, ttl_s=float(ttl_s), holder="restless", **wish)["lease"]
        while True:
            wish = {"watts": random.uniform(200.0, 690.0), "clock_mhz": random.choice([None, 900])}
            client.renew(lease, **wish)
            time.sleep(random.uniform(0.0, 0.02))
    except ActuationError as error:
        print(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
