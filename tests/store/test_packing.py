"""Commands packed in two steps are the ones packed at once; replies come whole, and in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.store import pack, pack_argument, pack_head
from dbos_actors.store.resp import ReplyReader, all_unpacked, pack_each


@given(st.lists(st.binary(), min_size=1), st.lists(st.binary()))
def test_a_head_and_its_arguments_make_the_packed_command(
    head: list[bytes], rest: list[bytes]
) -> None:
    packed = pack_head(len(head) + len(rest), *head) + b"".join(map(pack_argument, rest))
    assert packed == pack(*head, *rest)


@given(st.one_of(st.lists(st.binary()), st.lists(st.binary(min_size=3, max_size=3))))
def test_one_command_for_each_argument_is_what_packing_each_of_them_gives(
    arguments: list[bytes],
) -> None:
    packed = pack_each(pack_head(3, "HSTRLEN", "key"), arguments)
    assert packed == b"".join([pack("HSTRLEN", "key", argument) for argument in arguments])
    assert [command[2] for command in all_unpacked(packed)] == arguments


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_replies_are_the_same_however_their_bytes_are_cut(size: int) -> None:
    sent = b"$3\r\nabc\r\n:7\r\n$-1\r\n*2\r\n+OK\r\n:1\r\n-ERR no\r\n:8\r\n"
    reader = ReplyReader()
    replies: list[object] = []
    for start in range(0, len(sent), size):
        reader.feed(sent[start : start + size])
        replies += reader.next_replies(5 - len(replies))
    assert replies[:4] == [b"abc", 7, None, [b"OK", 1]]
    assert str(replies[4]) == "ERR no"
    assert reader.error_count == 1
    assert reader.next_replies(2) == [8]
