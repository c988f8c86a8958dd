"""A real Prometheus and a real Alertmanager on the shipped files, and who they send alerts to."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import subprocess
import threading
import time
import urllib.parse
import urllib.request

import yaml
from monitoring_tools import need, working_folder
from rule_files import FOLDER, RULE_FILES
from running_service import eventually, free_port

# In the place of the shipped windows: as short as samples once a second allow.
WINDOWS_S = {"5m": 5, "10m": 6, "15m": 8, "30m": 6, "1h": 8, "2h": 8, "6h": 10, "1d": 12, "3d": 15}
MIN_MISSED = "jouleserve:slo_burn_min_missed:requests"


def shortened(rules):
    """A shipped rule file for a test of some seconds: windows and offsets by `WINDOWS_S`, `for` at
    most 1 s, every group evaluated each second. Nothing else of an expression is touched."""

    def expr(text):
        text = re.sub(r"\[(\w+)\]", lambda found: f"[{WINDOWS_S[found[1]]}s]", text)
        return re.sub(r"offset (\w+)", lambda found: f"offset {WINDOWS_S[found[1]]}s", text)

    for group in rules["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            rule["expr"] = expr(rule["expr"])
            if "for" in rule:
                rule["for"] = "1s"
    return rules


class Webhook(http.server.ThreadingHTTPServer):
    """Takes what Alertmanager sends. `events`: (alert name, status, labels), oldest first."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.url = f"http://127.0.0.1:{self.server_port}/alerts"
        self.events = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def statuses(self, name, **labels):
        """What was told about an alert: firing, resolved, ..."""
        return [s for n, s, had in list(self.events) if n == name and labels.items() <= had.items()]


class _Receive(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for alert in json.loads(body)["alerts"]:
            labels = dict(alert["labels"])
            self.server.events.append((labels.pop("alertname"), alert["status"], labels))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


class Monitoring:
    """Prometheus scrapes `port` each second; alerts arrive at `webhook`."""

    def __init__(self, folder, port) -> None:
        self.folder, self.webhook = folder, Webhook()
        self._processes = []
        self._manager, self.url = free_port(), f"http://127.0.0.1:{free_port()}"
        rules = [self._rules(file) for file in RULE_FILES]
        config = yaml.safe_load((FOLDER / "prometheus.example.yaml").read_text())
        config["global"] = dict.fromkeys(config["global"], "1s")
        config["rule_files"] = rules
        (manager,) = config["alerting"]["alertmanagers"]
        manager["static_configs"] = [{"targets": [f"127.0.0.1:{self._manager}"]}]
        (scrape,) = config["scrape_configs"]
        scrape["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
        self._config = self._write("prometheus.yaml", config)

    def _rules(self, file):
        rules = shortened(yaml.safe_load(file.read_text()))
        for group in rules["groups"]:
            for rule in group["rules"]:
                if rule.get("record") == MIN_MISSED:  # the user's to set: a test sends few
                    rule["expr"] = "vector(3)"
        return self._write(file.name, rules)

    def _write(self, name, data):
        path = self.folder / name
        path.write_text(yaml.safe_dump(data, sort_keys=False))
        return str(path)

    def start(self):
        routes = yaml.safe_load((FOLDER / "alertmanager.example.yaml").read_text())
        routes["route"] |= {"group_wait": "200ms", "group_interval": "1s"}
        routes["receivers"][0]["webhook_configs"][0]["url"] = self.webhook.url
        self._run(
            need("prometheus-alertmanager", "alertmanager"),
            f"--config.file={self._write('alertmanager.yaml', routes)}",
            f"--storage.path={self.folder / 'alertmanager'}",
            "--cluster.listen-address=",
            f"--web.listen-address=127.0.0.1:{self._manager}",
        )
        self._run(
            need("prometheus"),
            f"--config.file={self._config}",
            f"--storage.tsdb.path={self.folder / 'tsdb'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
        )
        eventually(lambda: self.query("up == 1"), 20, "Prometheus scrapes the service")

    def _run(self, *command):
        with (self.folder / "monitoring.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=working_folder(command[0])
            )
        self._processes.append(process)

    def stop(self):
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
            process.kill()
        self.webhook.shutdown()
        self.webhook.server_close()

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}", timeout=10) as answer:
            return json.loads(answer.read())["data"]

    def query(self, expr):
        """The instant vector of an expression: [(labels, value)]."""
        found = self.get(f"query?{urllib.parse.urlencode({'query': expr})}")["result"]
        return [(one["metric"], float(one["value"][1])) for one in found]

    def told(self, name, status, timeout_s=20, **labels):
        """Waits until the webhook has heard that the alert is `firing` or `resolved`; returns how
        long that took, s."""
        began_s = time.monotonic()
        what = f"{name} {status}, by {self.webhook.events}"
        eventually(
            lambda: self.webhook.statuses(name, **labels)[-1:] == [status], timeout_s, what, 0.1
        )
        return time.monotonic() - began_s
