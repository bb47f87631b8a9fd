from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.rpc.framing import (
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
