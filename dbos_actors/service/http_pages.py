"""Pages for operators over HTTP/1.1: one GET a connection, everything bounded.

What is served is small and made by functions of this process, so of HTTP this needs only the
head of a request. Whoever can reach the port can use up no more than `CONNECTIONS_MAX`
connections, `REQUEST_BYTES_MAX` for each and `RENDERS_PER_S` pages a second. The oldest
connection makes room for a new one, so that clients which send half a request keep none out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NoReturn

import trio

from dbos_actors.log_limits import log_limited
from dbos_actors.loggers import get_logger

logger = get_logger(__name__)

CONNECTIONS_MAX: Final = 16
"""Open at once. A scraper needs one for some milliseconds."""

REQUEST_BYTES_MAX: Final = 8 * 1024
"""Of a request's head; the usual limit of HTTP servers."""

CONNECTION_S_MAX: Final = 10.0
"""From accepting a connection to its end; Prometheus' default for a whole scrape."""

RENDERS_PER_S: Final = 10
"""Of each page; requests that come faster share one. A page of metrics takes about 5 ms."""

_ACCEPT_RETRY_S: Final = 0.1
"""After a failure to accept, as for want of descriptors."""


@dataclass(frozen=True, slots=True)
class Page:
    """What a path answers."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: str = "200 OK"


Pages = Mapping[str, Callable[[], Page]]
"""Path -> the function that makes the page, in the loop that serves."""


class _Source:
    """Makes one page, not more often than it should."""

    def __init__(self, render: Callable[[], Page]) -> None:
        self._render = render
        self._lock = trio.Lock()
        self._page = Page(b"")
        self._made_s = -1.0

    async def get(self) -> Page:
        """The page, made after this was called."""
        called_s = trio.current_time()
        async with self._lock:
            if self._made_s <= called_s:
                await trio.sleep_until(self._made_s + 1 / RENDERS_PER_S)
                self._made_s = trio.current_time()
                self._page = self._render()
            return self._page


async def serve_pages(
    host: str,
    port: int,
    pages: Pages,
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve pages until cancelled; ``started`` gives the port, which is a free one for 0.

    Raises OSError when the address cannot be listened on.
    """
    sources = {path: _Source(render) for path, render in pages.items()}
    listeners = await trio.open_tcp_listeners(port, host=host)
    open_: OrderedDict[trio.CancelScope, None] = OrderedDict()
    async with trio.open_nursery() as nursery:
        for listener in listeners:
            nursery.start_soon(_accept, listener, sources, open_, nursery)
        task_status.started(listeners[0].socket.getsockname()[1])


async def _accept(
    listener: trio.SocketListener,
    sources: Mapping[str, _Source],
    open_: OrderedDict[trio.CancelScope, None],
    connections: trio.Nursery,
) -> NoReturn:
    async with listener:
        while True:
            try:
                stream = await listener.accept()
            except OSError:
                await trio.sleep(_ACCEPT_RETRY_S)
                continue
            if len(open_) >= CONNECTIONS_MAX:
                oldest, _ = open_.popitem(last=False)
                oldest.cancel()
            scope = trio.CancelScope()
            open_[scope] = None
            connections.start_soon(_serve_connection, stream, sources, open_, scope)


async def _serve_connection(
    stream: trio.SocketStream,
    sources: Mapping[str, _Source],
    open_: OrderedDict[trio.CancelScope, None],
    scope: trio.CancelScope,
) -> None:
    scope.deadline = trio.current_time() + CONNECTION_S_MAX
    try:
        with scope, suppress(trio.BrokenResourceError):  # the client has gone
            await _answer(stream, sources)
    finally:
        open_.pop(scope, None)
        await trio.aclose_forcefully(stream)


async def _answer(stream: trio.SocketStream, sources: Mapping[str, _Source]) -> None:
    head = bytearray()
    while b"\r\n\r\n" not in head:
        if len(head) > REQUEST_BYTES_MAX:
            page = _error("431 Request Header Fields Too Large")
            await _send(stream, page, has_body=True)
            return
        data = await stream.receive_some(REQUEST_BYTES_MAX)
        if not data:
            return
        head += data
    method, path = _request_line(bytes(head))
    source = sources.get(path)
    if not method:
        page = _error("400 Bad Request")
    elif method not in {"GET", "HEAD"}:
        page = _error("405 Method Not Allowed")
    elif source is None:
        page = _error("404 Not Found")
    else:
        try:
            page = await source.get()
        except Exception as failure:  # noqa: BLE001 - logged, and dealt with here
            log_limited(logger.error, "page_failed", path=path, exc_info=failure)
            page = _error("500 Internal Server Error")
    await _send(stream, page, has_body=method != "HEAD")


def _request_line(head: bytes) -> tuple[str, str]:
    """Method and path; empty ones for what is no request (RFC 9112, section 3)."""
    parts = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        return "", ""
    return parts[0], parts[1].partition("?")[0]


def _error(status: str) -> Page:
    return Page(status.encode() + b"\n", status=status)


async def _send(stream: trio.SocketStream, page: Page, *, has_body: bool) -> None:
    head = (
        f"HTTP/1.1 {page.status}\r\n"
        f"Content-Type: {page.content_type}\r\n"
        f"Content-Length: {len(page.body)}\r\n"
        "Connection: close\r\n"
        "\r\n"
    )
    await stream.send_all(head.encode("ascii") + (page.body if has_body else b""))
    await stream.send_eof()
    # Closing over input that nobody read would take the page from the client.
    while await stream.receive_some(REQUEST_BYTES_MAX):
        pass
