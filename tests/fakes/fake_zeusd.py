"""The part of zeusd that ZeusdLimits asks, by its HTTP API reference, over the fake GPUs."""

import json
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlparse


class FakeZeusd:
    """Serves on `path` until `close`; `commands` are the routes that were posted."""

    def __init__(self, path, fake):
        self.commands = []
        self.status = 200
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.answer(outer.read(*self.asked()))

            def do_POST(self):
                self.answer(outer.write(*self.asked()))

            def asked(self):
                url = urlparse(self.path)
                query = {key: values[0] for key, values in parse_qs(url.query).items()}
                ids = [int(one) for one in query.pop("gpu_ids").split(",")]
                return url.path.removeprefix("/gpu/"), ids, query

            def answer(self, data):
                body = b"" if data is None else json.dumps(data).encode()
                self.send_response(outer.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self):
                return "unix"

            def log_message(self, *_):
                pass

        class Server(socketserver.ThreadingUnixStreamServer):
            daemon_threads = True

        self.fake = fake
        self._server = Server(str(path), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def read(self, route, ids, _):
        devices = {str(one): self.fake.state.dev[one] for one in ids}
        if route == "get_power_limit":
            return {key: {"power_limit_mw": one.limit_mw} for key, one in devices.items()}
        assert route == "get_power_limit_constraints"
        return {
            key: {"min_power_limit_mw": one.min_mw, "max_power_limit_mw": one.max_mw}
            for key, one in devices.items()
        }

    def write(self, route, ids, query):
        if self.status >= 400:
            return {"error": "planned"}
        assert query.pop("block") == "true"
        self.commands.append(route)
        for one in ids:
            device = self.fake.state.dev[one]
            if route == "set_power_limit":
                device.limit_mw = int(query["power_limit_mw"])
            elif route == "set_gpu_locked_clocks":
                device.lock_max = int(query["max_clock_mhz"])
            else:
                assert route == "reset_gpu_locked_clocks"
                device.lock_max = 0
        return None

    def close(self):
        self._server.shutdown()
        self._server.server_close()
