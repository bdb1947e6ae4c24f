"""A Hugging Face hub on 127.0.0.1, as far as its client asks for the files of a model.

Spoken: model info, tree listing, file resolution, and the error codes for missing and gated models
(huggingface.co/docs/hub/api).
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

_COMMIT = "c0ffee" * 6 + "cafe"


class HubStandIn(ThreadingHTTPServer):
    """Serves `models`: files by name, by model id. `gated` ids are refused. Keeps `requests`."""

    # Clients keep connections open; closing the server does not wait for them.
    daemon_threads = True

    def __init__(self, models: Mapping[str, Mapping[str, bytes]], gated: frozenset[str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.models = models
        self.gated = gated
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: HubStandIn
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.server.requests.append(path)
        if path.startswith("api/models/"):
            model, rest = self._split(path.removeprefix("api/models/"))
            self._api(model, rest)
        else:
            model, rest = self._split(path)
            self._file(model, rest.removeprefix(f"resolve/{_COMMIT}/"))

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        organisation, name, *rest = path.split("/", 2)
        return f"{organisation}/{name}", rest[0] if rest else ""

    def _api(self, model: str, rest: str) -> None:
        if model in self.server.gated:
            self._refuse(403, "GatedRepo")
        elif model not in self.server.models:
            self._refuse(404, "RepoNotFound")
        elif rest.startswith("tree/"):
            self._json([_entry(name, body) for name, body in self.server.models[model].items()])
        else:
            self._json({"id": model, "sha": _COMMIT, "siblings": []})

    def _file(self, model: str, name: str) -> None:
        body = self.server.models.get(model, {}).get(name)
        if body is None:
            self._refuse(404, "EntryNotFound")
        else:
            etag = hashlib.sha1(body).hexdigest()
            self._send(200, body, {"ETag": f'"{etag}"', "X-Repo-Commit": _COMMIT})

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"", {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


def _entry(name: str, body: bytes) -> dict[str, object]:
    return {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}


@contextmanager
def hub_stand_in(
    models: Mapping[str, Mapping[str, bytes]], gated: frozenset[str] = frozenset()
) -> Iterator[HubStandIn]:
    """A running hub."""
    with HubStandIn(models, gated) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
