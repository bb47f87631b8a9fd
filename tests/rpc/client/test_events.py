from __future__ import annotations

import asyncio

import grpclib.client
from grpclib.events import RecvMessage, SendMessage, listen

from dbos_actors.rpc.client.channel import Channel
from dbos_actors.rpc.client.events import channel_events

_EVENTS = (
    "send_request",
    "send_message",
    "recv_message",
    "recv_initial_metadata",
    "recv_trailing_metadata",
)


def test_a_channel_has_the_same_kind_of_listeners_as_one_of_grpclib() -> None:
    async def of_grpclib() -> object:
        return type(grpclib.client.Channel().__dispatch__)

    ours = channel_events()
    assert type(ours) is asyncio.run(of_grpclib())
    assert all(hasattr(ours, name) for name in _EVENTS)


async def test_a_listener_registered_through_grpclib_is_called_and_may_change_a_message() -> None:
    async def shout(event: SendMessage | RecvMessage) -> None:
        event.message = event.message.upper()

    channel = Channel()
    listen(channel, SendMessage, shout)
    assert await channel.__dispatch__.send_message("text") == ("TEXT",)
    assert await channel.__dispatch__.recv_message("text") == ("text",)
    listen(channel, RecvMessage, shout)
    assert await channel.__dispatch__.recv_message("text") == ("TEXT",)
