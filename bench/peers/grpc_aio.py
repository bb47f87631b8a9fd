"""A peer: `grpc.aio` server, `redis.asyncio` client, upb messages."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import grpc

from bench.peers.durable import Durable, connect


def _handler(call: Any, request_class: Any, response_class: Any) -> Any:
    async def behaviour(request: Any, _context: Any) -> Any:
        return await call(request)

    return grpc.unary_unary_rpc_method_handler(
        behaviour,
        request_deserializer=request_class.FromString,
        response_serializer=response_class.SerializeToString,
    )


async def _serve() -> None:
    redis = connect()
    by_service: dict[str, dict[str, Any]] = {}
    for path, method in Durable(redis).methods().items():
        _, service, name = path.split("/")
        by_service.setdefault(service, {})[name] = _handler(*method)
    server = grpc.aio.server()
    server.add_generic_rpc_handlers(
        tuple(
            grpc.method_handlers_generic_handler(service, handlers)
            for service, handlers in by_service.items()
        )
    )
    port = server.add_insecure_port(f"127.0.0.1:{os.environ.get('PORT', '0')}")
    await server.start()
    print(f"ready address=127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(_serve())
