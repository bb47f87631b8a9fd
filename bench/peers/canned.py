"""A server that answers every request with the same prepared frames and looks at nothing.

It costs less per call than any gRPC server, so the load generator's own limit shows.
"""

from __future__ import annotations

import os
import select
import socket

from bench.load import frames

_GREETING = (
    frames.settings(
        {
            frames.SETTING_INITIAL_WINDOW_SIZE: frames.MAX_WINDOW_BYTES,
            frames.SETTING_MAX_CONCURRENT_STREAMS: 10_000,
        }
    )
    + frames.frame(frames.SETTINGS, frames.ACK, 0)
    + frames.window_update(0, frames.MAX_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES)
)
_MESSAGE = b"\x00\x00\x00\x00\x02\x08\x01"
_REGRANT_BYTES = 2**30


def _literal(name: str, value: str) -> bytes:
    return bytes((0, len(name))) + name.encode() + bytes((len(value),)) + value.encode()


class _Client:
    """One connection; waits for its client when that does not read."""

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._rest = b""
        self._preface_bytes = len(frames.PREFACE)
        self._consumed = 0
        block = b"\x88" + _literal("content-type", "application/grpc")
        trailers = _literal("grpc-status", "0")
        self._headers = frames.frame_start(frames.HEADERS, frames.END_HEADERS, len(block))
        self._data = block + frames.frame_start(frames.DATA, 0, len(_MESSAGE))
        flags = frames.END_HEADERS | frames.END_STREAM
        self._trailers = _MESSAGE + frames.frame_start(frames.HEADERS, flags, len(trailers))
        self._end = trailers
        sock.sendall(_GREETING)

    def serve(self) -> bool:
        """Answers what has come; False when the client has gone."""
        try:
            data = self.socket.recv(262_144)
        except OSError:
            return False
        if not data:
            return False
        self._consumed += len(data)
        data = self._rest + data
        position = self._preface_bytes
        if len(data) < position:
            self._rest = data
            return True
        self._preface_bytes = 0
        last = len(data) - 9
        answers: list[bytes] = []
        while position <= last:
            length_kind, flags, stream = frames.unpack_header(data, position)
            end = position + 9 + (length_kind >> 8)
            if end > len(data):
                break
            if flags & 1 and length_kind & 0xFF == 0:
                word = frames.pack_word(stream)
                answers += (self._headers, word, self._data, word, self._trailers, word, self._end)
            position = end
        self._rest = data[position:]
        if self._consumed > _REGRANT_BYTES:
            answers.append(frames.window_update(0, self._consumed))
            self._consumed = 0
        try:
            self.socket.sendall(b"".join(answers))
        except OSError:
            return False
        return True


def main() -> None:
    """Serves until it is stopped."""
    listener = socket.create_server(("127.0.0.1", int(os.environ.get("PORT", "0"))))
    print(f"ready address=127.0.0.1:{listener.getsockname()[1]}", flush=True)
    clients: dict[int, _Client] = {}
    while True:
        readable, _, _ = select.select([listener.fileno(), *clients], (), ())
        for ready in readable:
            if ready == listener.fileno():
                sock, _ = listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                clients[sock.fileno()] = _Client(sock)
            elif not clients[ready].serve():
                clients.pop(ready).socket.close()


if __name__ == "__main__":
    main()
