"""gRPC on Trio, for any grpclib service and for plain functions of a call.

Knows nothing of DBOS. `framing`, `metadata`, `deadlines` and `protocol` are pure
(bytes and times in, calls and bytes out); `server` drives them over sockets;
`http2` alone imports the HTTP/2 engine.
"""

from __future__ import annotations
