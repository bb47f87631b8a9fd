"""Commands packed in two steps are the ones packed at once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.store import pack, pack_argument, pack_head


@given(st.lists(st.binary(), min_size=1), st.lists(st.binary()))
def test_a_head_and_its_arguments_make_the_packed_command(
    head: list[bytes], rest: list[bytes]
) -> None:
    packed = pack_head(len(head) + len(rest), *head) + b"".join(map(pack_argument, rest))
    assert packed == pack(*head, *rest)
