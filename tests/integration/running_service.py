"""A service started as a user starts it (`jouleserve serve FILE`), for all tests of test_serve.py."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import yaml
from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).resolve().parent.parent.parent
MODEL = "smollm2-135m-instruct"
DEPLOYMENT = f"EnergyLLMServer:{MODEL}"
BIN = Path(sys.executable).parent
MARK = "JOULESERVE_TEST_RUN"  # in the environment of every process of the service
PROFILE = REPOSITORY / "tests" / "data" / "planted_cpu_profile.yaml"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(check, timeout_s, what, every_s=0.25):
    """The first true value of `check()`; fails the test with `what` after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    last = None
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError, http.client.HTTPException, psutil.Error):
            last = check()
            if last:
                return last
        time.sleep(every_s)
    raise AssertionError(f"not within {timeout_s} s: {what} (last: {last!r})")


def alive(process):
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


@contextlib.contextmanager
def started(folder, edit=None, environment=None):
    """A service that is ready to answer; nothing of it is left afterwards."""
    service = Service(folder, edit, environment)
    try:
        service.wait_until_ready()
        yield service
    finally:
        try:
            service.stop()
        finally:
            for process in service.processes():
                process.kill()


class Service:
    """`jouleserve serve` on serve_config.yaml with a port of its own and one replica."""

    def __init__(self, folder: Path, edit=None, environment=None) -> None:
        self.folder = folder
        self.port = free_port()
        self.run_id = uuid.uuid4().hex
        self.log = folder / "serve.log"
        self.output = folder / "jouleserve.txt"
        self.config = yaml.safe_load((REPOSITORY / "serve_config.yaml").read_text())
        self.config["http_options"]["port"] = self.port
        application = self.config["applications"][0]
        application["args"]["energy"]["profile"] = str(PROFILE)
        self.request_log = folder / "requests"
        application["args"]["energy"]["request_log"] = {"folder": str(self.request_log)}
        self.decision_log = folder / "decisions"
        application["args"]["energy"]["decision_log"] = {"folder": str(self.decision_log)}
        options = application["args"]["llm_configs"][0]["deployment_config"]
        options["autoscaling_config"] = {"min_replicas": 1, "max_replicas": 1}
        # Tool calls are off in vLLM until a parser is named.
        engine = application["args"]["llm_configs"][0]["engine_kwargs"]
        engine |= {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"}
        if edit is not None:
            edit(self.config)
        self.certificate = self.config["http_options"].get("ssl_certfile")
        self.url = f"http{'s' if self.certificate else ''}://127.0.0.1:{self.port}"
        self.api_key = (environment or {}).get("JOULESERVE_API_KEY")  # for every request below
        file = self.write(self.config, "serve.yaml")
        # Another cluster on this machine is not ours to join.
        self.environment = {
            **os.environ,
            MARK: self.run_id,
            "RAY_ADDRESS": "local",
            "RAY_AUTH_MODE": "disabled",
            "COLUMNS": "200",
            **(environment or {}),
        }
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                [BIN / "jouleserve", "serve", file, "--log", self.log],
                cwd=REPOSITORY,
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    # ---- life

    def write(self, config, name) -> Path:
        path = self.folder / name
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def wait_until_ready(self, timeout_s=300.0):
        def ready():
            text = self.output.read_text()
            assert self.process.poll() is None, f"{text}\n{self.log.read_text()[-4000:]}"
            return "Ctrl-C stops everything" in text

        eventually(ready, timeout_s, "jouleserve serve says that it is ready")

    def stop(self, timeout_s=90.0) -> int:
        """Ctrl-C; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=timeout_s)

    def processes(self):
        """Every living process of this service, wherever it hangs in the tree."""
        found = set()
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.run_id:
                    # A process that sets its title may have written over its environment.
                    found |= {process, *process.children(recursive=True)}
        return [p for p in found if alive(p)]

    def titled(self, pattern):
        """The pids of its processes whose title matches."""
        return sorted(p.pid for p in self.processes() if re.search(pattern, " ".join(p.cmdline())))

    def replica_pids(self):
        return self.titled(rf"ray::ServeReplica:llm:{DEPLOYMENT}")

    # ---- updates

    def edited(self, **deployment):
        """The config with other run-time options for the LLM deployment."""
        config = copy.deepcopy(self.config)
        config["applications"][0]["deployments"] = [{"name": DEPLOYMENT, **deployment}]
        return config

    @property
    def dashboard(self):
        return re.search(r"dashboard at.*?(127\.0\.0\.1:\d+)", self.log.read_text())[1]

    def deploy(self, config):
        """`serve deploy` of an edited file, as a user does it."""
        file = self.write(config, "edited.yaml")
        return subprocess.run(
            [BIN / "serve", "deploy", file, "-a", f"http://{self.dashboard}"],
            cwd=REPOSITORY,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def put(self, config):
        """The same without the command line: what `serve deploy` sends."""
        status, answer = self._dashboard("PUT", json.dumps(config))
        assert status == 200, answer

    def status(self):
        """Serve's own status of the application."""
        return json.loads(self._dashboard("GET")[1])["applications"]["llm"]

    def cluster_status(self):
        """Ray's own account of the cluster."""
        return json.loads(self._dashboard("GET", path="/api/cluster_status")[1])

    def controller_log(self):
        """What the Serve controller of this service has logged."""
        return self._controller_log_path().read_text()

    def ray_logs(self):
        """The folder of all that Ray's processes of this service have logged."""
        return self._controller_log_path().parents[1]

    def _controller_log_path(self):
        (pid,) = self.titled("ray::ServeController")
        logs = Path("/tmp/ray").glob(f"session_*/logs/serve/controller_{pid}.log")
        return max(logs, key=lambda path: path.stat().st_mtime)

    def _dashboard(self, method, body=None, path="/api/serve/applications/"):
        connection = http.client.HTTPConnection(self.dashboard, timeout=30)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    # ---- HTTP

    def _connection(self, timeout_s):
        if self.certificate is None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout_s)
        context = ssl.create_default_context(cafile=self.certificate)
        return http.client.HTTPSConnection(
            "127.0.0.1", self.port, timeout=timeout_s, context=context
        )

    def _head(self, headers=()):
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {"Content-Type": "application/json", **key, **dict(headers)}

    def request(self, method, path, body=None, headers=(), timeout_s=60):
        """(status, headers, body bytes) of one raw request."""
        connection = self._connection(timeout_s)
        try:
            if isinstance(body, dict | list):
                body = json.dumps(body).encode()
            head = self._head(headers)
            connection.request(method, path, body=body, headers=head)
            response = connection.getresponse()
            return response.status, dict(response.headers), response.read()
        finally:
            connection.close()

    def post(self, path, **body):
        status, _, answer = self.request("POST", path, {"model": MODEL, **body})
        assert status == 200, answer
        return json.loads(answer)

    def chat(self, content, **options):
        return self.post(
            "/v1/chat/completions",
            messages=[{"role": "user", "content": content}],
            **{"temperature": 0, "max_tokens": 24, **options},
        )

    def stream(self, path, timeout_s=120, **body):
        """The SSE events of one streamed answer, as they come: 'data: ...' or ': ...'."""
        connection = self._connection(timeout_s)
        try:
            data = json.dumps({"model": MODEL, "stream": True, **body})
            connection.request("POST", path, data, self._head())
            response = connection.getresponse()
            assert response.status == 200, response.read()
            for raw in response:
                if line := raw.decode().rstrip("\n"):
                    yield line
        finally:
            connection.close()

    def energy(self):
        return json.loads(self.request("GET", "/jouleserve/energy")[2])

    def metrics(self):
        return self.request("GET", "/metrics")[2].decode()

    def counted(self, name, **labels):
        """The sum of a counter's samples that have these labels; 0 before the first."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics())
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def report(self, *options):
        """`jouleserve report --json` of its request log, as a user runs it."""
        done = subprocess.run(
            [BIN / "jouleserve", "report", self.request_log, "--json", *options],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def at_rest(self):
        """The books, newer than this call, once no request is open and all that was prepaid has
        been metered."""
        first = self.energy()["meter_joules"]

        def settled():
            books = self.energy()
            if books["meter_joules"] == first:
                return None  # not pushed since
            quiet = all(not r["num_running"] and not r["num_waiting"] for r in books["replicas"])
            paid = not books["open_joules"] and not books["prepaid_joules"]
            return books if quiet and paid and books["num_replicas"] else None

        return eventually(settled, 15.0, "the books at rest", every_s=0.5)
