"""A web server with one picture, for vLLM to fetch."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.vision_model import png

RED, BLUE = png(255, 0, 0), png(0, 0, 255)


class Pictures(ThreadingHTTPServer):
    """Serves RED as red.png; is too busy for busy.png, and has nothing else."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Picture)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.asked: list[str] = []


class Picture(BaseHTTPRequestHandler):
    server: Pictures

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path == "/red.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(RED)
        else:
            self.send_error(503 if self.path == "/busy.png" else 404)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def running_pictures() -> Iterator[Pictures]:
    with Pictures() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)
