"""SIGKILL at random moments of agent, replica and both, run by test_power_agent.py under the fake
NVML library: the limits that were found, which are not the default, are back within TTL + 2 s."""

import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from agents import ROOT, AgentProcess
from fake_nvml import FakeNvml, uuid_of

from policies.core.errors import ActuationError
from serve_app.power_agent.client import AgentClient

POINTS, WORLDS = 200, 8
TTL_S, GRACE_S = 1.0, 2.0
SUPERVISOR_S = 0.2  # systemd's RestartSec
REPLICA = Path(__file__).with_name("restless_replica.py")


class World:
    """Two fake GPUs, an agent that is started again when it was killed, a replica."""

    def __init__(self, folder):
        folder.mkdir()
        self.fake = FakeNvml.create(folder / "state", gpus=2, virtual_ns=10**15)
        self.environ = {
            **os.environ,
            "FAKE_NVML_STATE": str(folder / "state"),
            "PYTHONPATH": str(ROOT),
        }
        self.agent = AgentProcess(folder / "agent", "--min-interval-s", "0", environ=self.environ)
        self.client = AgentClient(self.agent.path, timeout_s=5.0)

    def limits(self):
        return [(gpu.limit_mw / 1e3, gpu.lock_max) for gpu in self.fake.state.dev[:2]]

    def point(self, number):
        """One kill; (who, seconds until all was as found, what was found)."""
        seed = random.Random(number)
        who = ("agent", "replica", "both")[number % 3]
        found = [seed.uniform(400.0, 699.0), 650.0]
        for index, watts in enumerate(found):
            self.fake.state.dev[index].limit_mw = round(watts * 1e3)
        before = self.limits()
        if self.agent.process is None:
            self.agent.start()
        command = [sys.executable, str(REPLICA), str(self.agent.path), str(TTL_S)]
        replica = subprocess.Popen(
            [*command, uuid_of(0), uuid_of(1)],
            env=self.environ,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(seed.uniform(0.0, 0.5))
        killed_s = time.monotonic()
        if who != "replica":
            self.agent.process.kill()
        if who != "agent":
            replica.kill()
        if who != "replica":
            self.agent.process.wait()
            time.sleep(SUPERVISOR_S)
            self.agent.start(wait=False)
        moved = self.limits() != before
        try:
            took_s = self.wait_until_back(before, killed_s)
        finally:
            replica.kill()
            replica.wait()
        assert self.limits() == before, (number, who)
        return number, who, moved, took_s

    def wait_until_back(self, before, killed_s):
        """The seconds until all was as before, for good: what a killed replica had sent may still
        be read, and be a lease."""
        back_s = None
        while back_s is None or time.monotonic() < back_s + 0.1:
            if not self.at_rest(before):
                back_s = None
            elif back_s is None:
                back_s = time.monotonic()
            if time.monotonic() > killed_s + TTL_S + GRACE_S + 5.0:
                break
            time.sleep(0.005)
        return (back_s or time.monotonic()) - killed_s

    def at_rest(self, before):
        if self.limits() != before or self.agent.state.exists():
            return False
        try:
            return all(gpu["holder"] is None for gpu in self.client.status()["gpus"])
        except ActuationError:  # the agent is starting
            return False

    def close(self):
        self.client.close()
        if self.agent.process is not None and self.agent.process.poll() is None:
            self.agent.kill()


@pytest.mark.timeout(280)
def test_whatever_is_killed_whenever_what_was_found_is_back_in_time(tmp_path):
    def play(place):
        world = World(tmp_path / str(place))
        try:
            return [world.point(number) for number in range(place, POINTS, WORLDS)]
        finally:
            world.close()

    with ThreadPoolExecutor(WORLDS) as pool:
        points = [point for part in pool.map(play, range(WORLDS)) for point in part]
    assert len(points) == POINTS
    late = [point for point in points if point[3] > TTL_S + GRACE_S]
    assert late == []
    assert sum(moved for _, _, moved, _ in points) > POINTS / 4  # most kills came under a limit
    print(f"{POINTS} kills: all was back after {max(p[3] for p in points):.2f} s at most")
