from __future__ import annotations

import pytest
from grpclib.metadata import decode_grpc_message
from hypothesis import given
from hypothesis import strategies as st

from dbos_actors.rpc.wire.metadata import (
    MetadataError,
    decode_binary,
    decode_metadata,
    decode_timeout,
    encode_binary,
    encode_metadata,
    encode_status_message,
    encode_timeout,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1H", 3600), (b"2M", 120), (b"3S", 3), (b"4m", 0.004), (b"5u", 5e-6), (b"99999999n", 0.1)],
)
def test_a_timeout_is_digits_and_a_unit(value: bytes, seconds: float) -> None:
    assert decode_timeout(value) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "value",
    [b"", b"S", b"1", b"1s", b"-1S", b"+1S", b"1.5S", b" 1S", b"123456789S", "\uff11S".encode()],
)
def test_a_malformed_timeout_is_refused(value: bytes) -> None:
    with pytest.raises(MetadataError):
        decode_timeout(value)


@given(st.floats(min_value=1e-9, max_value=1e9))
def test_an_encoded_timeout_is_never_shorter_and_hardly_longer(seconds: float) -> None:
    decoded = decode_timeout(encode_timeout(seconds))
    assert seconds * (1 - 1e-9) <= decoded <= seconds * 1.0001 + 1e-9


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=4), st.booleans())
def test_joined_binary_values_come_apart_padded_or_not(values: list[bytes], padded: bool) -> None:
    parts = [encode_binary(value) for value in values]
    if padded:
        parts = [part + b"=" * (-len(part) % 4) for part in parts]
    assert decode_binary(b",".join(parts)) == values


@pytest.mark.parametrize("value", [b"!", b"a", b"ab=c", b"\xff"])
def test_malformed_base64_is_refused(value: bytes) -> None:
    with pytest.raises(MetadataError):
        decode_binary(value)


def test_metadata_keeps_order_and_repeats_and_leaves_out_the_protocols_own_fields() -> None:
    metadata = decode_metadata(
        [
            (b":path", b"/a/b"),
            (b"te", b"trailers"),
            (b"grpc-timeout", b"1S"),
            (b"content-type", b"application/grpc"),
            (b"a", b"1"),
            (b"a", b"2"),
            (b"b-bin", b"AAE,Ag=="),
        ]
    )
    assert list(metadata.items()) == [
        ("a", "1"),
        ("a", "2"),
        ("b-bin", b"\x00\x01"),
        ("b-bin", b"\x02"),
    ]


def test_encoded_metadata_decodes_to_the_same() -> None:
    pairs: list[tuple[str, str | bytes]] = [("a", "x y"), ("b-bin", b"\x00\xff"), ("a", "")]
    assert list(decode_metadata(encode_metadata(pairs)).items()) == pairs


@pytest.mark.parametrize(
    "pair",
    [
        ("te", "x"),
        ("grpc-status", "0"),
        ("Upper", "x"),
        ("", "x"),
        ("a\n", "x"),
        ("a", "x\r\ny: z"),
        ("a", "\u00e9"),
        ("a", b"x"),
        ("a-bin", "x"),
    ],
)
def test_metadata_that_must_not_be_sent_is_refused(pair: tuple[str, str | bytes]) -> None:
    with pytest.raises(MetadataError):
        encode_metadata([pair])


def test_a_status_message_is_percent_encoded_and_cut() -> None:
    assert encode_status_message("100%\n\u00e9") == b"100%25%0A%C3%A9"
    assert encode_status_message("\ud800") == b"?"
    assert len(encode_status_message("x" * 10_000)) == 4_096
    assert encode_status_message("  a b ") == b"%20%20a b%20"
    assert encode_status_message("  ") == b"%20%20"


@pytest.mark.parametrize("character", ["x", "%", "\u00e9", "\u20ac", "\N{GRINNING FACE}", " "])
def test_a_status_message_is_cut_between_two_characters(character: str) -> None:
    encoded = encode_status_message(character * 50)
    for limit in range(len(encoded)):
        cut = encode_status_message(character * 50, limit)
        assert len(cut) <= limit
        text = decode_grpc_message(cut.decode())
        assert set(text.rstrip(".")) <= {character}
        assert text.endswith("..."[:limit])
        longest = len(encoded) // 50 + 2 * 3 * (character == " ")
        assert limit < len(cut) + longest


def test_metadata_has_no_spaces_at_its_ends() -> None:
    assert encode_metadata([("a", "  x y "), ("b", "   ")]) == [(b"a", b"x y"), (b"b", b"")]
