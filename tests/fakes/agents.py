"""The real agent as a process of its own, on fake GPUs."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from policies.core.errors import ActuationError
from serve_app.power_agent.client import AgentClient

ROOT = Path(__file__).parents[2]


class AgentProcess:
    """Starts and ends it; `path` is its socket, `state` and `audit` its files."""

    def __init__(self, folder, *options, environ=None):
        folder.mkdir(exist_ok=True)
        self.path, self.state = folder / "agent.sock", folder / "limits.json"
        self.audit, self.errors = folder / "audit.jsonl", folder / "errors"
        self.options = options
        self.environ = {**(environ or os.environ), "PYTHONPATH": str(ROOT)}
        self.process = None

    def command(self):
        files = {"--socket": self.path, "--state-file": self.state, "--audit-file": self.audit}
        words = [str(word) for pair in files.items() for word in pair]
        return [sys.executable, "-m", "serve_app.power_agent", *words, *self.options]

    def start(self, *, wait=True):
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                self.command(), env=self.environ, stderr=errors, cwd=ROOT
            )
        if wait:
            self.client().status()
        return self

    def client(self):
        """A client of the agent, once it answers."""
        client = AgentClient(self.path, timeout_s=5.0)
        until = time.monotonic() + 10.0
        while True:
            try:
                client.status()
                return client
            except ActuationError:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise AssertionError(self.errors.read_text()) from None
                time.sleep(0.02)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; its exit status."""
        self.process.terminate()
        return self.process.wait(timeout=30)


@contextmanager
def running(folder, *options):
    agent = AgentProcess(folder, *options)
    try:
        yield agent.start()
    finally:
        if agent.process.poll() is None:
            agent.kill()


def wait_for(condition, timeout_s=10.0):
    """Wait until it is so; the seconds that took."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() < started_s + timeout_s, "it did not come to that"
        time.sleep(0.01)
    return time.monotonic() - started_s
