"""Page tokens and page sizes."""

from __future__ import annotations

import base64
import struct
from binascii import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.domain.paging import (
    PAGE_SIZE_MAX,
    TOKEN_CHARS_MAX,
    Listing,
    Position,
    event_count,
    page_size,
)
from dbos_actors.errors import InvalidFieldError, RefusedError

LISTING = Listing("ListResults", "agent-1", 0, 0, "ping", False)
TOKEN = LISTING.token(1_700_000_000, "result-7")


def text_of(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def body_of(token: str) -> bytes:
    return base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))[:-4]


def sealed(body: bytes) -> str:
    """A token with a good check around a body of our choice."""
    return text_of(body + struct.pack(">I", crc32(body)))


scores = st.integers(-(2**63), 2**63 - 1)
identifiers = st.text(max_size=300)


@given(scores, identifiers)
def test_a_token_leads_back_to_its_position(score: int, identifier: str) -> None:
    token = LISTING.token(score, identifier)
    assert LISTING.position(token) == Position(score, identifier)


@given(scores, identifiers)
def test_a_token_needs_no_escaping_in_a_url(score: int, identifier: str) -> None:
    token = LISTING.token(score, identifier)
    assert all(c.isascii() and (c.isalnum() or c in "-_") for c in token)


def test_no_token_is_the_first_page() -> None:
    assert LISTING.position("") is None


def test_the_same_filters_make_the_same_listing() -> None:
    again = Listing("ListResults", "agent-1", 0, 0, "ping", False)
    assert again.position(TOKEN) == Position(1_700_000_000, "result-7")


@pytest.mark.parametrize(
    "other",
    [
        Listing("ListModuleStates", "agent-1", 0, 0, "ping", False),
        Listing("ListResults", "agent-2", 0, 0, "ping", False),
        Listing("ListResults", "agent-1", 1, 0, "ping", False),
        Listing("ListResults", "agent-1", 0, 1, "ping", False),
        Listing("ListResults", "agent-1", 0, 0, "", False),
        Listing("ListResults", "agent-1", 0, 0, "ping", True),
        Listing("ListResults"),
    ],
)
def test_a_token_of_other_filters_is_refused(other: Listing) -> None:
    with pytest.raises(InvalidFieldError, match="page_token belongs to a listing with other"):
        other.position(TOKEN)


def test_filters_side_by_side_are_kept_apart() -> None:
    with pytest.raises(InvalidFieldError):
        Listing("L", "ab", "c").position(Listing("L", "a", "bc").token(1, "x"))


def test_a_set_of_states_is_the_same_in_any_order() -> None:
    token = Listing("L", "a", ["running", "created", "running"]).token(1, "x")
    assert Listing("L", "a", ("created", "running")).position(token) == Position(1, "x")
    with pytest.raises(InvalidFieldError):
        Listing("L", "a", ("created",)).position(token)


@given(st.text(min_size=1))
def test_any_text_that_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(RefusedError, match="page_token"):
        LISTING.position(text)


@given(st.binary(min_size=1))
def test_any_bytes_made_to_look_like_a_token_are_refused(data: bytes) -> None:
    with pytest.raises(RefusedError, match="page_token"):
        LISTING.position(text_of(data))


def test_a_token_with_any_character_changed_is_refused() -> None:
    for index, old in enumerate(TOKEN):
        for new in "A_z0-+ é=":
            if new != old:
                with pytest.raises(RefusedError):
                    LISTING.position(TOKEN[:index] + new + TOKEN[index + 1 :])


def test_a_token_cut_short_or_with_more_behind_it_is_refused() -> None:
    for length in range(1, len(TOKEN)):
        with pytest.raises(RefusedError):
            LISTING.position(TOKEN[:length])
    for more in ("A", "AAAA", "=", "==", "\n", " ", TOKEN):
        with pytest.raises(RefusedError):
            LISTING.position(TOKEN + more)


def test_a_token_of_another_version_is_refused_as_such() -> None:
    with pytest.raises(InvalidFieldError, match="another version"):
        LISTING.position(sealed(b"\x02" + body_of(TOKEN)[1:]))


def test_a_checked_token_whose_id_is_not_utf8_is_refused() -> None:
    assert sealed(body_of(TOKEN)) == TOKEN
    with pytest.raises(InvalidFieldError, match="page_token is not one"):
        LISTING.position(sealed(body_of(TOKEN) + b"\xff"))


def test_an_enormous_token_is_refused_by_its_length() -> None:
    with pytest.raises(RefusedError, match="the limit is 98304"):
        LISTING.position("A" * (TOKEN_CHARS_MAX + 1))


def test_the_token_of_the_longest_id_of_a_generous_limit_is_taken() -> None:
    assert LISTING.position(LISTING.token(0, "🙂" * 2048)) == Position(0, "🙂" * 2048)


@pytest.mark.parametrize(("asked", "given_"), [(0, 0), (1, 1), (10_000, 10_000), (10_001, 10_000)])
def test_a_page_size_is_cut_to_its_maximum(asked: int, given_: int) -> None:
    assert page_size(asked) == given_


def test_a_negative_page_size_is_refused() -> None:
    with pytest.raises(InvalidFieldError, match="page_size must not be negative"):
        page_size(-1)


@pytest.mark.parametrize(
    ("asked", "given_"), [(-5, 100), (0, 100), (1, 1), (10_000, 10_000), (2**62, PAGE_SIZE_MAX)]
)
def test_the_number_of_events_has_a_default_and_a_maximum(asked: int, given_: int) -> None:
    assert event_count(asked) == given_
