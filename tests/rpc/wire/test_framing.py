from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.rpc.wire.framing import (
    InvalidFlagError,
    MessageReader,
    MessageTooLargeError,
    TruncatedMessageError,
    frame,
)


def test_a_frame_is_a_flag_a_big_endian_length_and_the_body() -> None:
    assert frame(b"ab") == b"\x00\x00\x00\x00\x02ab"
    assert frame(b"ab", compressed=True) == b"\x01\x00\x00\x00\x02ab"


@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=5),
    st.integers(min_value=1, max_value=60),
)
def test_messages_come_out_the_same_however_they_are_sliced(
    messages: list[tuple[bool, bytes]], size: int
) -> None:
    data = b"".join(frame(body, compressed=flag) for flag, body in messages)
    reader = MessageReader()
    received = []
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        received += list(reader)
    reader.end()
    assert received == messages


@given(
    st.lists(st.tuples(st.booleans(), st.binary(max_size=40)), max_size=9),
    st.integers(min_value=1, max_value=200),
    st.integers(min_value=1, max_value=4),
)
def test_many_at_a_time_are_the_same_messages(
    messages: list[tuple[bool, bytes]], size: int, count_max: int
) -> None:
    data = b"".join(frame(body, compressed=flag) for flag, body in messages)
    reader = MessageReader()
    received = []
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        while taken := reader.next_many(count_max):
            assert len(taken) <= count_max
            received += taken
    reader.end()
    assert received == messages


@pytest.mark.parametrize(
    ("bad", "error"),
    [(b"\x02\0\0\0\0", InvalidFlagError), (b"\0\0\0\0\x0b", MessageTooLargeError)],
)
def test_of_many_those_before_a_bad_prefix_come_first(bad: bytes, error: type[Exception]) -> None:
    reader = MessageReader(limit=10)
    reader.feed(frame(b"1") + frame(b"2") + bad)
    assert reader.next_many(10) == [(False, b"1"), (False, b"2")]
    with pytest.raises(error):
        reader.next_many(10)


def test_a_message_over_the_limit_is_refused_at_its_prefix() -> None:
    reader = MessageReader(limit=10)
    reader.feed(frame(b"x" * 11)[:5])
    with pytest.raises(MessageTooLargeError) as caught:
        reader.next()
    assert (caught.value.size, caught.value.limit) == (11, 10)


def test_a_message_of_exactly_the_limit_passes() -> None:
    reader = MessageReader(limit=10)
    reader.feed(frame(b"x" * 10))
    assert reader.next() == (False, b"x" * 10)


def test_a_flag_other_than_0_and_1_is_refused() -> None:
    reader = MessageReader()
    reader.feed(b"\x02\x00\x00\x00\x00")
    with pytest.raises(InvalidFlagError):
        reader.next()


def test_an_end_inside_a_message_is_an_error_and_between_messages_is_not() -> None:
    reader = MessageReader()
    reader.feed(frame(b"abc") + frame(b"abc")[:-1])
    assert reader.next() == (False, b"abc")
    assert reader.announced_bytes == 8
    with pytest.raises(TruncatedMessageError):
        reader.end()
