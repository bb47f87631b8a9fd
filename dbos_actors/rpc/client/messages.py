"""The messages of a client's calls, and the details of their status, as bytes and as objects.

A channel may be given grpclib's codecs for both. Without them, a message is an object with
``SerializeToString`` whose class has ``FromString``, as those of protobuf and betterproto; or it is
bytes, which are sent and returned as they are.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool, message_factory
from grpclib.const import Status
from grpclib.encoding.base import CodecBase, StatusDetailsCodecBase
from grpclib.exceptions import GRPCError

from dbos_actors.rpc.client.call import ClientCall
from dbos_actors.rpc.wire.schemas import message_class

_RpcStatus = message_class("google.rpc.Status")


def encode(message: Any, message_type: Any, codec: CodecBase | None) -> bytes:
    """A message's bytes. Raises TypeError for one of another type."""
    if codec is not None and not isinstance(message, bytes):
        return codec.encode(message, message_type)
    if isinstance(message, bytes):
        return message
    if not isinstance(message, message_type):
        raise TypeError(f"message must be of type {message_type!r}, not {type(message)!r}")
    data: bytes = message.SerializeToString()
    return data


def decode(body: bytes, message_type: Any, codec: CodecBase | None) -> Any:
    """A message. Raises `grpclib.GRPCError` (INTERNAL) if the bytes are none."""
    if message_type is bytes:
        return body
    try:
        if codec is not None:
            return codec.decode(body, message_type)
        return message_type.FromString(body)
    except Exception as error:
        text = "the response message cannot be decoded"
        raise GRPCError(Status.INTERNAL, text) from error


def decode_details(call: ClientCall, codec: StatusDetailsCodecBase | None) -> Any:
    """The details of a call's status; None without any, or if they are malformed.

    Without a codec: a list of messages; of those whose type is not in protobuf's default pool, the
    google.protobuf.Any that holds them.
    """
    if call.details is None or call.status is None:
        return None
    if codec is not None:
        return codec.decode(call.status, call.message, call.details)
    try:
        return [_unpacked(detail) for detail in _RpcStatus.FromString(call.details).details]
    except Exception:  # noqa: BLE001 - the status matters more than its details
        return None


def _unpacked(detail: Any) -> Any:
    name = detail.type_url.rpartition("/")[2]
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError:
        return detail
    return message_factory.GetMessageClass(descriptor).FromString(detail.value)
