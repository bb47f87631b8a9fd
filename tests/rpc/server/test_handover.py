"""Which messages count as handed over to the socket."""

from __future__ import annotations

from dbos_actors.rpc.server.handover import Handover


def test_a_message_is_handed_over_when_the_socket_has_all_its_bytes() -> None:
    handover = Handover()
    handover.queued(100)
    handover.queued(50)
    handover.looked(51, socket_is_free=True)
    assert (handover.messages, handover.is_complete) == (0, False)
    handover.looked(50, socket_is_free=True)
    assert (handover.messages, handover.is_complete) == (1, False)
    handover.looked(0, socket_is_free=True)
    assert (handover.messages, handover.is_complete) == (2, True)


def test_while_the_socket_is_full_what_was_framed_before_counts() -> None:
    handover = Handover()
    handover.queued(100)
    handover.looked(0, socket_is_free=False)
    assert handover.messages == 0
    handover.queued(100)
    handover.looked(0, socket_is_free=False)
    assert handover.messages == 1
    handover.looked(0, socket_is_free=True)
    assert handover.messages == 2
