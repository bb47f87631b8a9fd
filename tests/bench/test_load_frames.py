"""Frames and header blocks of the load generator, read back by independent implementations."""

from __future__ import annotations

import pytest
from hpack import Decoder
from hyperframe.frame import Frame, HeadersFrame, SettingsFrame, WindowUpdateFrame

from bench.load import frames

PATH = "/dbos.DBOS/StoreResult"
EXPECTED = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", PATH),
    (":authority", "127.0.0.1:50051"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("user-agent", "dbos-bench/1"),
]


def test_the_first_header_block_and_later_ones_say_the_same() -> None:
    headers = frames.RequestHeaders(PATH, "127.0.0.1:50051", frames.DEFAULT_TABLE_BYTES)
    decoder = Decoder()
    for block in (headers.first, headers.later, headers.later):
        assert [(str(name), str(value)) for name, value in decoder.decode(block)] == EXPECTED
    assert len(headers.later) == len(EXPECTED)  # an index each


def test_a_peer_without_a_header_table_gets_literals_each_time() -> None:
    headers = frames.RequestHeaders(PATH, "127.0.0.1:50051", 0)
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    for block in (headers.first, headers.later, headers.later):
        assert [(str(name), str(value)) for name, value in decoder.decode(block)] == EXPECTED
    assert not decoder.header_table.dynamic_entries


def test_a_frame_start_and_a_stream_id_make_a_frame_header() -> None:
    start = frames.frame_start(frames.HEADERS, frames.END_HEADERS, 5)
    parsed, length = Frame.parse_frame_header(memoryview(start + frames.pack_word(7)))
    assert isinstance(parsed, HeadersFrame)
    assert (parsed.stream_id, length) == (7, 5)
    assert "END_HEADERS" in parsed.flags


def test_the_preface_grants_large_windows() -> None:
    data = memoryview(frames.client_preface().removeprefix(frames.PREFACE))
    settings, length = Frame.parse_frame_header(data[:9])
    settings.parse_body(data[9 : 9 + length])
    assert isinstance(settings, SettingsFrame)
    assert settings.settings[SettingsFrame.INITIAL_WINDOW_SIZE] == frames.STREAM_WINDOW_BYTES
    data = data[9 + length :]
    update, length = Frame.parse_frame_header(data[:9])
    update.parse_body(data[9:])
    assert isinstance(update, WindowUpdateFrame)
    assert update.window_increment + frames.DEFAULT_WINDOW_BYTES == frames.MAX_WINDOW_BYTES


@pytest.mark.parametrize("values", [{}, {1: 0}, {3: 100, 4: 65_536, 5: 16_384}])
def test_settings_survive_a_round_trip(values: dict[int, int]) -> None:
    assert frames.parse_settings(frames.settings(values)[9:]) == values


def test_what_follows_the_last_whole_setting_is_ignored() -> None:
    assert frames.parse_settings(frames.settings({3: 1})[9:] + b"\x00") == {3: 1}
