"""HTTP/1.1 as uvicorn speaks it over httptools, with a bound on what a request may keep open."""

from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 65_536  # bytes of a request's line and headers, and of what else is neither its body


class HttpProtocol(HttpToolsProtocol):
    """Refuses heads and trailers without an end, which the parser would keep whole in memory.

    A request may be MOST_HEAD bytes long before its headers are complete, and between two pieces
    of its body, whatever is read at once on top of that.
    """

    def __init__(self, config: Config, *rest: Any, **named: Any) -> None:
        super().__init__(config, *rest, **named)
        self._unheard = 0  # bytes since the last that meant something to the application

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._unheard += len(data)
        super().data_received(data)
        if self._unheard > MOST_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_headers_complete(self) -> None:
        """See HttpToolsProtocol."""
        self._unheard = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See HttpToolsProtocol."""
        self._unheard = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See HttpToolsProtocol."""
        self._unheard = 0
        super().on_message_complete()
