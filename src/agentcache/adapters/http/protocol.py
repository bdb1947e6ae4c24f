"""HTTP/1.1 as uvicorn speaks it over httptools, with a bound on what a request may keep open."""

import asyncio
from typing import Any, ClassVar

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD = 65_536  # bytes of a request's line and headers, and of what else is neither its body
PATIENCE = 20.0  # seconds for a head to arrive, and for the rest of a request that is answered


class HttpProtocol(HttpToolsProtocol):
    """Refuses heads and trailers without an end, which the parser would keep whole in memory.

    A request may be MOST_HEAD bytes long before its headers are complete, and between two pieces
    of its body, whatever is read at once on top of that. A connection on which a request is awaited
    for longer than `patience` is closed; while one is answered, the endpoint awaits its body.
    """

    patience: ClassVar[float] = PATIENCE

    def __init__(self, config: Config, *rest: Any, **named: Any) -> None:
        super().__init__(config, *rest, **named)
        self._unheard = 0  # bytes since the last that meant something to the application
        self._whole = True  # the request that came last
        self._unanswered = 0  # requests whose head has come
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self._expect()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._rest()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._unheard += len(data)
        super().data_received(data)
        if self._unheard > MOST_HEAD and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """See HttpToolsProtocol."""
        super().on_message_begin()
        self._expect()

    def on_headers_complete(self) -> None:
        """See HttpToolsProtocol."""
        self._unheard, self._whole = 0, False
        self._unanswered += 1
        self._rest()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """See HttpToolsProtocol."""
        self._unheard = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """See HttpToolsProtocol."""
        self._unheard, self._whole = 0, True
        self._rest()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """See HttpToolsProtocol."""
        self._unanswered -= 1
        super().on_response_complete()
        if not self._whole:
            self._expect()

    def _expect(self) -> None:
        """The rest of what has begun to arrive has to come in time."""
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(self.patience, self._expired)

    def _rest(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expired(self) -> None:
        self._timer = None
        if self._unanswered:
            self._expect()  # a request that was sent behind another one, which is answered first
        else:
            self.transport.close()
