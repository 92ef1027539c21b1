"""A Hugging Face hub for tests: serves the files of one folder as one model, as slowly as asked.

What huggingface_hub asks for: the model's description, its tree, and each file, whole or from an offset.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PIECE = 1 << 14


def hub_model(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of org/name will lie in a hub's cache, which has none of them yet."""
    monkeypatch.setenv("HF_HUB_CACHE", str(root / "hub"))
    cached = root / "hub" / "models--org--name"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(COMMIT)
    return cached / "snapshots" / COMMIT


@contextmanager
def hub(folder: Path, model: str, *, bytes_per_s: float = float("inf"), stands_still: bool = False) -> Iterator[str]:
    """Its address, for HF_ENDPOINT.

    Args:
        bytes_per_s: of each file that is larger than a piece.
        stands_still: such a file stops in its middle, and the connection stays open.
    """
    over = threading.Event()
    files = {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            path = urlsplit(self.path).path
            name = path.removeprefix(f"/{model}/resolve/").partition("/")[2]
            if path.startswith(f"/api/models/{model}/tree"):
                tree = [{"type": "file", "path": name, "size": file.stat().st_size, "oid": etag(file)}
                        for name, file in files.items()]  # fmt: skip
                self._send_json(tree)
            elif path.startswith(f"/api/models/{model}"):
                self._send_json({"id": model, "modelId": model, "sha": COMMIT, "private": False, "tags": [],
                                 "siblings": [{"rfilename": name} for name in files]})  # fmt: skip
            elif path.startswith(f"/{model}/resolve/") and name in files:
                self._send_file(files[name], with_body=with_body)
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound" if "/resolve/" in path else "RepoNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()

        def _send_json(self, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _send_file(self, file: Path, *, with_body: bool) -> None:
            asked = self.headers.get("Range")
            first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
            began_at = int(first)
            data = file.read_bytes()[: int(last) + 1 if last else None]
            self.send_response(200 if asked is None else 206)
            self.send_header("ETag", f'"{etag(file)}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(len(data) - began_at))
            self.end_headers()
            if not with_body:
                return
            for begin in range(began_at, len(data), PIECE):
                if len(data) > PIECE and stands_still and begin > len(data) / 2:
                    over.wait()
                    return
                self.wfile.write(data[begin : begin + PIECE])
                if len(data) > PIECE:
                    time.sleep(PIECE / bytes_per_s)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()
