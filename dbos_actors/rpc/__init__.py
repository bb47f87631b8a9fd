"""gRPC on Trio: a server for grpclib's services and for plain functions, and a client.

Nothing here knows of DBOS. ``server`` and ``client`` do not import each other; what both need is in
``wire``. On either side, a ``connection`` module turns bytes that have come into calls, and calls
into bytes to send, and does no I/O. A driver beside it moves the bytes through a socket.
`dbos_actors.rpc.wire.http2` alone imports the HTTP/2 engine.
"""

from __future__ import annotations
