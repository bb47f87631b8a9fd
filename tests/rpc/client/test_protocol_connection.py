"""The client's protocol when its connection drains, fails, falls silent or sends nonsense."""

from __future__ import annotations

from grpclib.const import Status
from hypothesis import given, settings
from hypothesis import strategies as st

from dbos_actors.rpc.wire.framing import frame
from dbos_actors.rpc.wire.http2 import ErrorCode, Http2Options, Setting
from tests.rpc.client.protocol_client import NOW_S, Client, messages
from tests.support.raw_server import HEADERS, OK, RawServer

# -------------------------------------------------------- refusal and goaway


def test_a_refused_call_may_be_sent_again_and_is_the_same() -> None:
    client = Client()
    call = client.start(b"a", end=False, streaming=True)
    client.queue(call, b"b", end=True)
    client.run()
    client.server.reset(call.stream_id, int(ErrorCode.REFUSED_STREAM))
    client.run()
    assert client.refused == [call]
    assert not call.over
    client.connection.start(call, NOW_S)
    client.run()
    request = client.server.requests[call.stream_id]
    assert (request.body, request.ended) == (frame(b"a") + frame(b"b"), True)
    assert call.stream_id == 3


def test_a_call_whose_messages_are_too_many_to_keep_is_not_sent_again() -> None:
    client = Client(replay_bytes_max=1_000)
    call = client.start(bytes(5_000), end=False, streaming=True)  # the first is always kept
    assert call.outbox is not None
    client.queue(call, b"b")
    client.run()
    client.server.reset(call.stream_id, int(ErrorCode.REFUSED_STREAM))
    client.run()
    assert client.refused == []
    assert call.status is Status.UNAVAILABLE


def test_a_call_that_has_begun_is_not_sent_again() -> None:
    client = Client()
    call = client.start(streaming=True)
    client.server.headers(call.stream_id)
    client.run()
    client.server.reset(call.stream_id, int(ErrorCode.REFUSED_STREAM))
    client.run()
    assert client.refused == []
    assert call.status is Status.UNAVAILABLE


def test_after_goaway_earlier_calls_finish_and_later_ones_are_refused() -> None:
    client = Client()
    first, second, third = (client.start() for _ in range(3))
    client.server.goaway(3, debug=b"bye")
    client.run()
    assert {*client.refused} == {third}
    assert not client.connection.can_start
    assert not client.connection.closed
    client.server.answer(first.stream_id, b"1")
    client.server.answer(second.stream_id, b"2")
    client.run()
    assert first.status is second.status is Status.OK
    assert client.connection.closed
    assert client.connection.reason == "the server is going away (bye)"


def test_a_goaway_without_calls_closes_the_connection() -> None:
    client = Client()
    client.server.goaway(0)
    client.run()
    assert client.connection.closed


def test_a_complaint_about_pings_is_noticed() -> None:
    client = Client()
    client.server.goaway(0, code=int(ErrorCode.ENHANCE_YOUR_CALM), debug=b"too_many_pings")
    client.run()
    assert client.connection.too_many_pings


def test_the_servers_limit_of_streams_holds_until_they_are_closed() -> None:
    client = Client(RawServer(Http2Options(concurrent_streams_max=2)))
    first, _ = client.start(), client.start()
    assert not client.connection.can_start
    first.cancel()
    assert not client.connection.can_start  # the server does not know yet
    client.run()
    assert client.connection.can_start
    client.server.change_settings({Setting.MAX_CONCURRENT_STREAMS: 1})
    client.run()
    assert not client.connection.can_start
    client.server.change_settings({Setting.MAX_CONCURRENT_STREAMS: 0})
    client.run()
    assert not client.connection.can_start


def test_a_lost_connection_ends_its_calls_but_keeps_what_has_come() -> None:
    client = Client()
    call = client.start(streaming=True)
    client.server.headers(call.stream_id)
    client.server.data(call.stream_id, frame(b"came"))
    client.run()
    client.connection.lost("gone")
    assert [*messages(call)] == [b"came"]
    assert (call.status, call.message) == (Status.UNAVAILABLE, "gone")
    assert not client.connection.can_start
    client.connection.lost("again")
    assert client.over == [call]


def test_of_a_lost_connection_calls_that_were_not_sent_are_not_lost() -> None:
    client = Client()
    sent = client.start()
    unsent = client.make_call(b"x")
    client.connection.start(unsent, NOW_S)
    ended = client.make_call(b"x")
    client.connection.start(ended, NOW_S)
    ended.cancel()
    client.connection.lost("gone")
    assert sent.status is Status.UNAVAILABLE
    assert client.refused == [unsent]
    assert unsent.status is None
    assert unsent.connection is None


def test_metadata_beyond_the_servers_limit_fails_its_call_not_the_connection() -> None:
    client = Client(RawServer(Http2Options(header_list_bytes_max=2_000)))
    call = client.make_call(b"x")
    call.fields.append((b"a", b"x" * 2_000))
    client.connection.start(call, NOW_S)
    assert call.status is Status.RESOURCE_EXHAUSTED
    other = client.start()
    client.server.answer(other.stream_id, b"fine")
    client.run()
    assert other.status is Status.OK


def test_a_server_that_speaks_something_else_is_given_up() -> None:
    client = Client(greet=False)
    client.connection.receive(b"HTTP/1.1 400 Bad Request\r\n\r\n", NOW_S)
    client.output()
    assert client.connection.closed
    assert client.connection.reason


def test_keepalive_pings_a_silent_server_that_is_asked_and_gives_it_up() -> None:
    client = Client(keepalive_s=10.0, keepalive_answer_s_max=3.0)
    client.connection.tick(NOW_S + 100)
    assert client.server.seen.pings == []  # nobody is waiting for it
    call = client.start()
    client.connection.tick(NOW_S + 109)
    client.to_server()
    assert client.server.seen.pings == []
    client.connection.tick(NOW_S + 111)
    client.to_server()
    assert len(client.server.seen.pings) == 1
    client.connection.receive(client.server.output(), NOW_S + 113)
    client.connection.tick(NOW_S + 115)
    client.connection.tick(NOW_S + 124)
    client.to_server()
    assert len(client.server.seen.pings) == 2
    client.connection.tick(NOW_S + 126)
    assert not call.over
    client.connection.tick(NOW_S + 127)
    assert (call.status, call.message) == (Status.UNAVAILABLE, "the server does not answer pings")


# ------------------------------------------------------------------ hostile


def scenario(client: Client) -> bytes:
    """A server's bytes of several calls, and what it sends when they are over."""
    calls = [client.start(b"q", streaming=bool(n % 2)) for n in range(6)]
    server = client.server
    server.answer(calls[0].stream_id, b"one")
    server.headers(calls[1].stream_id)
    server.data(calls[1].stream_id, frame(b"x" * 500) + frame(b"y"))
    server.reset(calls[2].stream_id, 7)
    server.only_headers(calls[3].stream_id, [*HEADERS, (b"grpc-status", b"3")])
    server.trailers(calls[1].stream_id, [*OK, (b"x-bin", b"AAEC")])
    server.engine.ping(b"abcdefgh")
    server.goaway(calls[4].stream_id)
    server.answer(calls[4].stream_id, b"z" * 300)
    return server.output()


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_of_a_server_raise_or_leave_a_call_without_an_end(data: st.DataObject) -> None:
    client = Client()
    raw = bytearray(scenario(client))
    for _ in range(data.draw(st.integers(0, 6))):
        at = data.draw(st.integers(0, len(raw) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "repeat"])):
            case "flip":
                raw[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del raw[at : at + data.draw(st.integers(1, 20))]
                raw = raw or bytearray(1)
            case "insert":
                raw[at:at] = data.draw(st.binary(max_size=20))
            case "repeat":
                raw[at:at] = raw[at : at + 40]
    size = data.draw(st.sampled_from([1, 3, 50, 10_000]))
    for start in range(0, len(raw), size):
        client.connection.receive(bytes(raw[start : start + size]), NOW_S)
        client.output()
    client.connection.lost("end")
    client.output()
    assert client.connection.live == 0
    assert len(client.over) == len({*client.over})
    ended = {*client.over, *client.refused}
    assert len(ended) == 6
    for call in client.over:
        list(messages(call))
        call.end()
        assert call.status is not None
