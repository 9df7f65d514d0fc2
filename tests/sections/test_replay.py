"""Replay: three formats, plain or compressed, whole or damaged, at full speed or paced."""

import gzip
import io
import json
import os
import random
import sys
import threading
import zlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from bitmex_streams.errors import DecodeError, RecordingError
from bitmex_streams.messages import Connected, Disconnected, RawMessage, StateLost
from bitmex_streams.pipeline import Pipeline
from bitmex_streams.sections import replay as replaying
from bitmex_streams.sections.decoder import Decoder
from bitmex_streams.sections.replay import Replay
from bitmex_streams.timestamps import to_nanoseconds

DATA = Path(os.environ.get("BITMEX_STREAMS_DATA") or Path(__file__).parents[3] / "shared" / "data")
SECOND = 1_000_000_000
NOON = to_nanoseconds("2021-07-22T12:00:00Z")


def archive(*seconds):
    """Lines of the archive format, None for a disconnect."""
    line = b'2021-07-22T12:00:%02d.0000000Z {"second":%d}\n'
    return b"".join(b"\n" if second is None else line % (second, second) for second in seconds)


async def read(replay):
    """What a Replay gives, and the error that ended it (or None)."""
    items = []
    async with replay.batches(None) as batches:
        while True:
            try:
                batch = await batches.receive()
            except trio.EndOfChannel:
                return items, None
            except RecordingError as error:
                return items, error
            assert len(batch) > 0
            items += batch


async def read_whole(replay):
    items, error = await read(replay)
    assert error is None, error
    return items


def shape(items):
    """Short names: C and D for the marks, the second for a message."""
    names = {Connected: "C", Disconnected: "D"}
    return [names.get(type(item)) or json.loads(item.data)["second"] for item in items]


@pytest.fixture(params=["at once", "ahead"])
def reading(request, monkeypatch):
    """Files are read where they are wanted, as small ones are, or by a thread from the first byte, as pipes are."""
    if request.param == "ahead":
        monkeypatch.setattr(replaying, "_at_once", lambda path, *, paced: 0)


# --- the formats ---


async def test_lines_of_the_archive_format(tmp_path):
    path = tmp_path / "recording.ndjson"
    path.write_bytes(b'2019-06-01T00:00:28.6199940Z {"info":"Welcome"}\n2019-06-01T00:00:28.6199941Z pong\n')
    welcomed = to_nanoseconds("2019-06-01T00:00:28.6199940Z")
    source = str(path)
    assert await read_whole(Replay(path)) == [
        Connected(welcomed, source),
        RawMessage(welcomed, b'{"info":"Welcome"}', source, 1),
        RawMessage(welcomed + 100, b"pong", source, 2),
    ]


async def test_an_empty_line_of_the_archive_format_is_a_disconnect():
    items = await read_whole(Replay(io.BytesIO(archive(1, 2, None, None, 3, None))))
    assert shape(items) == ["C", 1, 2, "D", "C", 3, "D"]
    assert [item.received - NOON for item in items[3:5]] == [2 * SECOND, 3 * SECOND]


async def test_the_archive_format_with_other_numbers_of_decimals_and_line_ends():
    lines = (
        b'2021-07-22T12:00:01Z {"second":1}\r\n'
        b'2021-07-22T12:00:02.5Z {"second":2}\r\n'
        b'2021-07-22T12:01:03.000001Z {"second":3}'
    )
    items = await read_whole(Replay(io.BytesIO(lines)))
    assert [item.received - NOON for item in items[1:]] == [SECOND, 2_500_000_000, 63_000_001_000]
    assert shape(items) == ["C", 1, 2, 3]


async def test_stamped_lines_between_lines_of_other_shape_with_exact_times():
    lines = (
        b"wss://www.bitmex.com/realtime <-> 1626993367.388005\n"
        b'wss://www.bitmex.com/realtime <- 1626993367.874177: {"op":"subscribe","args":["trade"]}\n'
        b'1626993367.875267: {"second":1}\n'
        b'1626993368.0018098: {"second":2}\n'
        b'1626993369: {"second":3}\n'
    )
    items = await read_whole(Replay(io.BytesIO(lines)))
    assert [(item.received, item.line) for item in items[1:]] == [
        (1626993367875267000, 3), (1626993368001809800, 4), (1626993369000000000, 5),
    ]


async def test_bare_lines_take_the_newest_timestamp_of_the_exchange_so_far():
    lines = (
        b'{"second":1}\n'
        b'{"data":[{"timestamp":"2021-07-22T12:00:02.000Z"},{"timestamp": "2021-07-22T12:00:03.001Z"}],"second":2}\n\n'
        b'{"timestamp":"2021-07-22T12:00:01.000Z","second":3}\n{"second":4}\n'
    )
    items = await read_whole(Replay(io.BytesIO(lines)))
    newest = NOON + 3_001_000_000
    assert [item.received for item in items] == [newest] * 5
    assert [item.line for item in items[1:]] == [1, 2, 4, 5]


TIMELESS = b'{"second":1}\n{"second":2}\n'
TIMED = b'{"timestamp":"2021-07-22T12:00:03.000Z","second":3}\n'
THIRD = NOON + 3 * SECOND


async def test_bare_lines_before_the_first_timestamp_get_it_also_from_the_next_file():
    for recordings in ([TIMELESS + TIMED], [TIMELESS, TIMED], [TIMELESS, archive(3)], [TIMED, TIMELESS]):
        items = await read_whole(Replay(*map(io.BytesIO, recordings)))
        assert sorted(shape(items)[1:]) == [1, 2, 3]
        assert {item.received for item in items} == {THIRD}


async def test_bare_lines_without_any_timestamp_are_of_no_time():
    items, error = await read(Replay(io.BytesIO(TIMELESS)))
    assert (shape(items), error) == (["C", 1, 2], None)
    assert {item.received for item in items} == {0}


async def test_what_waits_for_a_timestamp_is_bounded_and_loses_nothing(monkeypatch):
    monkeypatch.setattr("bitmex_streams.sections.replay._HELD", 30)
    items = await read_whole(Replay(io.BytesIO(TIMELESS * 3 + TIMED)))
    assert shape(items) == ["C", 1, 2, 1, 2, 1, 2, 3]
    assert [item.received for item in items] == [0] * 7 + [THIRD]


async def test_a_disconnect_behind_lines_that_wait_is_not_lost():
    items = await read_whole(Replay(io.BytesIO(TIMELESS), io.BytesIO(b"\n" + archive(3))))
    assert shape(items) == ["C", 1, 2, "D", "C", 3]


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"start": THIRD}, ["C", 1, 2, 3]), ({"start": THIRD + 1}, []), ({"end": THIRD}, []),
     ({"end": THIRD + 1}, ["C", 1, 2, 3])],
)
async def test_start_and_end_go_by_the_time_that_was_waited_for(options, expected):
    assert shape(await read_whole(Replay(io.BytesIO(TIMELESS + TIMED), **options))) == expected


async def test_a_paced_replay_does_not_wait_for_years_between_no_time_and_the_first(autojump_clock, monkeypatch):
    monkeypatch.setattr("bitmex_streams.sections.replay._HELD", 5)
    began = trio.current_time()
    later = b'{"timestamp":"2021-07-22T12:00:05.000Z","second":5}\n'
    assert shape(await read_whole(Replay(io.BytesIO(TIMELESS + TIMED + later), speed=1.0))) == ["C", 1, 2, 3, 5]
    assert trio.current_time() - began == pytest.approx(2)


@pytest.mark.parametrize("recording", [archive(1, 2), TIMELESS, b'1626993368.1: {"second":1}\n', b"\n" + archive(1)])
async def test_a_byte_order_mark_is_skipped(recording):
    mark = b"\xef\xbb\xbf"
    plain = await read_whole(Replay(io.BytesIO(recording)))
    assert await read_whole(Replay(io.BytesIO(mark + recording))) == plain
    assert await read_whole(Replay(io.BytesIO(gzip.compress(mark + recording)))) == plain


@pytest.mark.parametrize("path", ["nul\0name", "\ud800"])
async def test_what_is_no_path_is_reported_as_a_missing_file_is(path):
    items, error = await read(Replay(io.BytesIO(archive(1)), path))
    assert shape(items) == ["C", 1]
    assert "is no path" in str(error)
    assert repr(path) in str(error)
    assert (error.path, error.line) == (path, 0)


@given(st.lists(st.integers(0, 10**18 - 1), min_size=1), st.integers(0, 9))
def test_stamps_are_read_to_the_last_digit(times, digits):
    def line(time):
        return f"{time // 10**9}" + (f".{time % 10**9:09d}"[: digits + 1] if digits else "") + ": {}\n"

    items = trio.run(read_whole, Replay(io.BytesIO("".join(map(line, times)).encode())))
    step = 10 ** (9 - digits)
    assert [item.received for item in items[1:]] == [time // step * step for time in times]


LINES = st.sampled_from([
    b'2021-07-22T12:00:0%d.1234567Z {"second":1}', b'2021-07-22T12:0%d:59.9999999Z {"second":2}',
    b'2021-07-2%dT12:00:00.0000000Z {"second":3}', b'2021-07-22T12:00:00.%dZ {"second":4}',
    b'2021-07-22T12:00:00.12345%d7Z {"second":5} ', b"2021-07-22T12:00:00.12345%d7Z pong", b"",
    b'2021-07-22T12:00:00.1234567Z {"\xe2\x82\xac":1,"second":6}',
])
BAD_LINES = st.sampled_from([
    b'2021-07-22T12:00:0%d.123456Z  {"second":1}', b'2021-07-22 12:00:0%d.1234567Z {"second":1}',
    b'2021-W29-6T12:00:0%d.1234567Z{"second":1}', b'2021-07-22T12:00:0%d:1234567Z {"second":1}',
    b'2021-07-22T12:00:0.1%d234567Z {"second":1}', b'2021-07-22T12:00:0e.%d123456Z {"second":1}',
    b'2021-07-22T12:00:0%d.1234567Z {"second":1', b'2021-07-22T12:00:0%d.1234567Z "second":1}',
    b'2021-07-22T12:00:0%d.1234567+ {"second":1}', b"2021-07-22T12:00:0%d.1234567Z",
    b"2021-07-22T77:0%d:00.1234567Z {}",
    b'2021-07-22T12:00:0%d.1234567Z {"\xff":1}',
])


@given(
    runs=st.lists(st.tuples(LINES, st.integers(1, 40)), min_size=1, max_size=6),
    bad=st.none() | st.tuples(BAD_LINES, st.integers(0, 240)),
    cut=st.tuples(*[st.none() | st.integers(NOON - SECOND, NOON + 10 * SECOND)] * 2),
)
def test_what_is_read_by_columns_is_what_is_read_line_by_line(runs, bad, cut):
    digits = random.Random(1)
    lines = [line for line, count in runs for _ in range(count)]
    if bad is not None:
        lines.insert(bad[1], bad[0])
    recording = b"".join((line % digits.randrange(10) if b"%d" in line else line) + b"\n" for line in lines)
    start, end = (None, None) if None not in cut and cut[0] >= cut[1] else cut

    def outcome():
        items, error = trio.run(read, Replay(io.BytesIO(recording), start=start, end=end))
        return items, str(error)

    by_columns = outcome()
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(replaying._Archive, "times", lambda archive, lines: None)
        assert outcome() == by_columns


@pytest.mark.parametrize("column", range(29))
@pytest.mark.parametrize("odd", [b"x", b" ", b".", b",", b"e", b"-", b"9"])
async def test_no_damage_to_a_timestamp_passes_for_another_time(column, odd):
    lines = archive(*range(60)).splitlines(keepends=True)
    lines[40] = lines[40][:column] + odd + lines[40][column + 1:]
    items, error = await read(Replay(io.BytesIO(b"".join(lines))))
    if odd == b"9" and error is None:
        assert items[41].received == to_nanoseconds(lines[40][:28].decode())
    elif lines[40][column:column + 1] != archive(40)[column:column + 1]:
        assert error.line == 41
        assert shape(items) == ["C", *range(40)]


# --- compression, files and blocks ---


async def test_gzip_is_known_by_its_content_whatever_the_name(tmp_path):
    path = tmp_path / "recording.txt"
    path.write_bytes(gzip.compress(archive(1, 2)))
    assert shape(await read_whole(Replay(path))) == ["C", 1, 2]


async def test_a_gzip_of_several_members_with_padding():
    recording = gzip.compress(archive(1, 2)) + gzip.compress(archive(3)) + b"\0" * 512
    assert shape(await read_whole(Replay(io.BytesIO(recording)))) == ["C", 1, 2, 3]


async def test_zstd_where_a_reader_is_installed():
    zstandard = pytest.importorskip("zstandard", reason="zstandard is not installed")
    compress = zstandard.ZstdCompressor().compress
    frames = compress(archive(*[1] * 9000)) + compress(archive(2))
    assert shape(await read_whole(Replay(io.BytesIO(frames)))) == ["C", *[1] * 9000, 2]
    _, error = await read(Replay(io.BytesIO(frames[:-3])))
    assert "truncated" in str(error)


async def test_zstd_where_no_reader_is_installed(monkeypatch):
    for module in ("compression", "compression.zstd", "zstandard"):
        monkeypatch.setitem(sys.modules, module, None)
    items, error = await read(Replay(io.BytesIO(bytes.fromhex("28b52ffd0000"))))
    assert items == []
    assert "pip install zstandard" in str(error)


@given(st.binary(max_size=3000), st.integers(1, 40))
def test_lines_do_not_depend_on_where_the_blocks_end(noise, lines):
    line = b'2021-07-22T12:00:00.0000000Z {"second":%d,"noise":"%s"}\n'
    text = b"".join(line % (number, noise.hex().encode() * number) for number in range(lines))
    for recording in (text, gzip.compress(text, 0)):
        items = trio.run(read_whole, Replay(io.BytesIO(recording)))
        assert shape(items) == ["C", *range(lines)]
        assert [item.line for item in items[1:]] == list(range(1, lines + 1))


@pytest.mark.parametrize("block", [1, 2, 3, 7, 20, 30, 100])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_blocks_may_end_anywhere(block, end, reading, monkeypatch):
    monkeypatch.setattr(replaying, "_BLOCK", block)
    monkeypatch.setattr(replaying, "_COMPRESSED_BLOCK", max(block, 4))  # the format shows in the first
    recording = archive(1, 2, None, 3) + '2021-07-22T12:00:04.0000000Z {"€":"ü","second":4}\n'.encode() + archive(5)
    recording = recording.replace(b"\n", end)
    for data in (recording, gzip.compress(recording), recording.removesuffix(end)):
        items = await read_whole(Replay(io.BytesIO(data)))
        assert shape(items) == ["C", 1, 2, "D", "C", 3, 4, 5]
        assert [item.line for item in items if type(item) is RawMessage] == [1, 2, 4, 5, 6]


SEVERAL_MEGABYTES = archive(*range(60)) * 1500


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
async def test_a_long_file_comes_whole_by_way_of_a_thread(tmp_path, compress):
    path = tmp_path / "recording"
    path.write_bytes(compress(SEVERAL_MEGABYTES))
    items = await read_whole(Replay(path, path))
    lines = SEVERAL_MEGABYTES.splitlines()
    assert [item.data for item in items[1:]] == [line[29:] for line in lines] * 2
    assert [item.line for item in items[1:]] == [*range(1, len(lines) + 1)] * 2
    assert [item.received - NOON for item in items[1:]] == [second * SECOND for second in range(60)] * 3000


def test_what_a_little_compressed_data_becomes_comes_in_blocks_all_the_same():
    recording = gzip.compress(archive(1) * 1_000_000)
    blocks = [len(block) for block in replaying._decompressed(io.BytesIO(recording), "bomb")]
    assert len(recording) < 3 * replaying._COMPRESSED_BLOCK
    assert max(blocks) <= replaying._BLOCK
    assert sum(blocks) == len(archive(1)) * 1_000_000


async def test_neither_a_small_file_nor_plain_bytes_in_memory_need_a_thread(tmp_path, monkeypatch):
    monkeypatch.setattr(trio.to_thread, "run_sync", None)
    path = tmp_path / "recording.gz"
    path.write_bytes(gzip.compress(archive(1, 2)))
    assert shape(await read_whole(Replay(path))) == ["C", 1, 2]
    assert len(await read_whole(Replay(io.BytesIO(SEVERAL_MEGABYTES)))) == 90_001


async def test_a_pipe_that_nobody_writes_to_stops_neither_other_tasks_nor_a_cancellation(autojump_clock):
    receiving, sending = os.pipe()
    with os.fdopen(receiving, "rb") as file, os.fdopen(sending, "wb") as writer:
        with trio.move_on_after(5) as scope:
            async with Replay(file).batches(None) as batches:
                await batches.receive()
        assert scope.cancelled_caught
        writer.close()


async def test_what_a_pipe_gives_is_a_recording(tmp_path):
    receiving, sending = os.pipe()
    with os.fdopen(receiving, "rb") as file:
        with os.fdopen(sending, "wb") as writer:
            writer.write(archive(1, 2, 3))
        assert shape(await read_whole(Replay(file))) == ["C", 1, 2, 3]


async def test_a_pipeline_that_is_left_early_leaves_no_thread_at_work_and_no_open_file(tmp_path, monkeypatch):
    monkeypatch.setattr("bitmex_streams.ahead.PATIENCE", 600)
    path = tmp_path / "recording.gz"
    path.write_bytes(gzip.compress(SEVERAL_MEGABYTES))
    readers, files = set(), []
    inflate = replaying._inflate
    open_path = Path.open

    def watched(decoder, data):
        for text in inflate(decoder, data):
            readers.add(threading.current_thread())
            yield text

    def opening(self, *arguments):
        files.append(open_path(self, *arguments))
        return files[-1]

    monkeypatch.setattr(replaying, "_inflate", watched)
    monkeypatch.setattr(Path, "open", opening)
    count = 0
    async with Pipeline.create(Replay(path)) as pipeline, pipeline.tap() as tap:
        async for _ in tap:
            count += 1
            if count == 50_000:  # well beyond the first megabyte, and not at the end
                break
    assert len(readers) == 2
    assert [file.closed for file in files] == [True]  # which only can be when the thread has let go of it


async def test_other_tasks_have_their_turns_while_what_is_before_the_start_is_skipped():
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count_turns)
        assert await read_whole(Replay(io.BytesIO(SEVERAL_MEGABYTES), start="2022-01-01T00:00:00Z")) == []
        nursery.cancel_scope.cancel()
    assert turns >= len(SEVERAL_MEGABYTES) // replaying._BLOCK


async def test_several_files_are_one_recording_of_one_source(tmp_path, reading):
    first, second = tmp_path / "1.gz", tmp_path / "2"
    first.write_bytes(gzip.compress(archive(1, 2)))
    second.write_bytes(archive(3, None, 4))
    items = await read_whole(Replay(first, str(second)))
    assert shape(items) == ["C", 1, 2, 3, "D", "C", 4]
    assert {item.source for item in items} == {f"{first} ... {second}"}
    assert [item.line for item in items if type(item) is RawMessage] == [1, 2, 1, 3]


async def test_a_replay_can_be_run_again(tmp_path):
    replay = Replay(io.BytesIO(archive(1, 2)))
    assert await read_whole(replay) == await read_whole(replay)


@pytest.mark.parametrize("name", ["bitmex-2021-07-22.ws.gz", "bitmex-2021-07-22.ndjson.gz"])
async def test_the_real_recordings_have_as_many_messages_as_expected(name):
    path = DATA / "captures" / name
    if not path.is_file():
        pytest.skip(f"no recording at {path} (set BITMEX_STREAMS_DATA)")
    expected = json.loads((DATA / "captures" / "bitmex-2021-07-22.expected.json").read_text())["messages"]
    counted = {}
    for item in await read_whole(Replay(path)):
        if type(item) is RawMessage and (message := json.loads(item.data)).get("table"):
            count = counted.setdefault(message["table"], {}).setdefault(message["action"], [0, 0])
            count[0] += 1
            count[1] += len(message["data"])
    assert counted == expected


# --- damage: all that was good comes first, then an error that names file and line ---

GOOD = archive(1, 2)
COMPRESSED = gzip.compress(GOOD)


@pytest.mark.parametrize(
    ("recording", "good", "line", "reason"),
    [
        pytest.param(GOOD + GOOD[:-5], [1, 2, 1], 4, "truncated", id="a cut message"),
        pytest.param(GOOD + b"2021-07-22T12:00", [1, 2], 3, "no timestamp", id="a cut timestamp"),
        pytest.param(GOOD + b"2021-07-22T12:00:03.0000000Z no json\n" + GOOD, [1, 2], 3, "malformed", id="no JSON"),
        pytest.param(GOOD + b'2021-07-22T12:00:03.0000000Z {"a":nil}', [1, 2], 3, "malformed", id="nearly JSON"),
        pytest.param(GOOD + b'2021-07-22T12:00:03.0000000Z {"a":[{}', [1, 2], 3, "truncated", id="cut behind a brace"),
        pytest.param(GOOD + b'2021-07-22T12:00:03.0000000Z {"a":\n' + GOOD, [1, 2], 3, "truncated", id="a torn line"),
        pytest.param(b'{"second":nil}\n{"second":1}\n', [], 1, "malformed", id="a first line that is no JSON"),
        pytest.param(GOOD + b"2021-07-22T12:00:03.0000000Z [1]\n", [1, 2], 3, "object", id="no object"),
        pytest.param(GOOD + b"hello\n", [1, 2], 3, "no timestamp", id="a foreign line"),
        pytest.param(GOOD + b"2021-77-22T12:00:03.0000000Z {}\n", [1, 2], 3, "ISO timestamp", id="no date"),
        pytest.param(b'1626993368.1: {"second":1}\n1626993368.2: {"s', [1], 2, "truncated", id="a cut stamped message"),
        pytest.param(b'1626993368.1: {"second":1}\n16269933', [1], 2, "no timestamp", id="a cut stamp"),
        pytest.param(b'{"second":1}\n{"second":', [1], 2, "truncated", id="a cut bare message"),
        pytest.param(b'{"second":1}\n7\n', [1], 2, "object", id="a bare number"),
        pytest.param(GOOD + b'2021-07-22T12:00:03.0000000Z {"a":"\xff"}\n' + GOOD, [1, 2], 3, "utf-8", id="no UTF-8"),
        pytest.param(b'{"second":1}\n{"second":\xff}', [1], 2, "malformed", id="no UTF-8 in a bare message"),
        pytest.param(b'{"second":1}\n{"a":' + b"[" * 200_000, [1], 2, "nested", id="nested without end"),
        pytest.param(COMPRESSED[:-9], [1, 2], 3, "truncated", id="a truncated gzip"),
        pytest.param(COMPRESSED[:-8] + b"\0" * 8, [1, 2], 3, "incorrect data check", id="a wrong checksum"),
        pytest.param(COMPRESSED + b"junk", [1, 2], 3, "incorrect header", id="junk behind the gzip"),
        pytest.param(b"\x1f\x8b\x08", [], 1, "truncated", id="a gzip of nothing"),
    ],
)
async def test_damage_is_reported_after_all_that_was_good(tmp_path, recording, good, line, reason, reading):
    path = tmp_path / "recording"
    path.write_bytes(recording)
    items, error = await read(Replay(path))
    assert shape(items) == (["C", *good] if good else [])
    assert str(path) in str(error)
    assert reason in str(error)
    assert (error.path, error.line) == (str(path), line)


async def test_what_only_the_decoder_can_see_it_reports_with_file_and_line(tmp_path):
    path = tmp_path / "recording"
    odd = b'2021-07-22T12:00:03.0000000Z {"a":nil}\n'
    path.write_bytes(GOOD + odd + GOOD)
    assert [item.line for item in (await read_whole(Replay(path)))[1:]] == [1, 2, 3, 4, 5]

    async with Pipeline.create(Replay(path), Decoder()) as pipeline, pipeline.tap() as tap:
        items = [item async for item in tap]
    assert len(items) == 6
    assert type(items[3]) is StateLost
    assert f"{path}, line 3: cannot be decoded" in items[3].reason

    items = []
    with pytest.raises(DecodeError, match="recording, line 3: cannot be decoded"):
        async with Pipeline.create(Replay(path), Decoder(on_error="raise")) as pipeline, pipeline.tap() as tap:
            async for item in tap:
                items.append(item)
    assert len(items) == 3


async def test_of_several_files_the_decoder_names_the_one_that_it_cannot_decode(tmp_path, reading):
    odd = b'2021-07-22T12:00:03.0000000Z {"a":nil}\n'
    paths = [tmp_path / name for name in ("one", "two", "three")]
    for path in paths:
        path.write_bytes(GOOD + odd + GOOD if path.name == "two" else GOOD)
    async with Pipeline.create(Replay(*paths), Decoder()) as pipeline, pipeline.tap() as tap:
        lost = [item async for item in tap if type(item) is StateLost]
    assert [item.reason.partition(": ")[0] for item in lost] == [f"{paths[1]}, line 3"]
    assert lost[0].source == f"{paths[0]} ... {paths[2]}"  # whose state it is

    items, _ = await read(Replay(*paths))
    assert [item.file for item in items[1:]] == [str(paths[0])] * 2 + [str(paths[1])] * 5 + [str(paths[2])] * 2


async def test_of_a_gzip_that_is_damaged_in_the_middle_all_before_the_damage_comes(reading):
    compressor = zlib.compressobj(wbits=31)
    seconds = [1] * 5000
    recording = compressor.compress(archive(*seconds)) + compressor.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 100
    items, error = await read(Replay(io.BytesIO(recording)))
    assert shape(items) == ["C", *seconds]
    assert "<BytesIO> cannot be read beyond line 5000: " in str(error)
    assert error.line == 5001


@pytest.mark.parametrize("recording", [b"", b"\n\n", gzip.compress(b"")])
async def test_an_empty_file_is_no_recording(recording):
    items, error = await read(Replay(io.BytesIO(recording)))
    assert items == []
    assert "<BytesIO> is empty" in str(error)


@pytest.mark.parametrize("recording", [b"price,size\n1,2\n", b"\x89PNG\r\n\x1a\n\0\0\0", b"[1]\n", os.urandom(100)])
async def test_what_is_no_recording_is_said_to_be_none(recording):
    items, error = await read(Replay(io.BytesIO(recording)))
    assert items == []
    assert "no line of a recording" in str(error)
    assert error.line >= 1


async def test_a_missing_file_and_a_directory_are_reported_after_the_files_before_them(tmp_path, reading):
    good = tmp_path / "good"
    good.write_bytes(archive(1))
    for bad, reason in ((tmp_path / "missing", "No such file"), (tmp_path, "Is a directory")):
        items, error = await read(Replay(good, bad))
        assert shape(items) == ["C", 1]
        assert str(bad) in str(error)
        assert reason in str(error)
        assert (error.path, error.line) == (str(bad), 0)


async def test_a_text_file_object_is_an_error_that_shows_the_way():
    _, error = await read(Replay(io.StringIO("text")))
    assert "binary mode" in str(error)


async def test_the_error_waits_its_turn_in_a_pipeline(tmp_path):
    path = tmp_path / "recording"
    path.write_bytes(archive(*range(10)) + b"oops\n")
    items = []
    with pytest.raises(RecordingError, match="line 11"):
        async with Pipeline.create(Replay(path)) as pipeline, pipeline.tap() as tap:
            async for item in tap:
                items.append(item)
    assert shape(items) == ["C", *range(10)]


async def test_files_are_closed_at_the_end_on_error_and_when_cancelled(tmp_path, monkeypatch, reading):
    opened = []
    open_path = Path.open

    def opening(self, *arguments):
        opened.append(open_path(self, *arguments))
        return opened[-1]

    good, bad, long = tmp_path / "good", tmp_path / "bad", tmp_path / "long"
    good.write_bytes(archive(1, 2))
    bad.write_bytes(archive(1, 2) + b"oops\n")
    long.write_bytes(archive(*[1] * 100_000))
    monkeypatch.setattr(Path, "open", opening)
    await read_whole(Replay(good))
    await read(Replay(bad))
    with trio.move_on_after(1) as scope:
        async with Replay(long).batches(None) as batches:
            await batches.receive()
            scope.cancel()
            await batches.receive()
    assert scope.cancelled_caught
    assert [file.closed for file in opened] == [True] * 3


# --- speed, start and end ---


async def test_a_paced_replay_gives_each_message_when_its_time_has_come(autojump_clock):
    replay = Replay(io.BytesIO(archive(1, 1, 2, None, 31)), speed=2.0)
    assert replay.rate == 2.0
    began = trio.current_time()
    came = []
    async with replay.batches(None) as batches:
        with pytest.raises(trio.EndOfChannel):
            while True:
                came += [(trio.current_time() - began, name) for name in shape(await batches.receive())]
    assert came == [(pytest.approx(time), name) for time, name in [
        (0, "C"), (0, 1), (0, 1), (0.5, 2), (0.5, "D"), (15, "C"), (15, 31),
    ]]


async def test_a_paced_replay_of_files_needs_no_thread_and_so_runs_on_a_clock_that_jumps(
    tmp_path, autojump_clock, monkeypatch
):
    monkeypatch.setattr(trio.to_thread, "run_sync", None)
    path = tmp_path / "recording.gz"
    path.write_bytes(gzip.compress(SEVERAL_MEGABYTES))
    items = await read_whole(Replay(path, speed=1.0))
    assert len(items) == 90_001
    assert trio.current_time() == pytest.approx(59)


async def test_a_paced_replay_that_is_cancelled_while_it_waits_loses_nothing(autojump_clock):
    items = []
    async with Replay(io.BytesIO(archive(*range(20))), speed=1.0).batches(None) as batches:
        with pytest.raises(trio.EndOfChannel):
            while True:
                with trio.move_on_after(0.3):
                    items += await batches.receive()
    assert shape(items) == ["C", *range(20)]


async def test_at_full_speed_the_clock_of_the_recording_is_not_trios():
    assert Replay("somewhere").rate == 0.0


@pytest.mark.parametrize(
    ("start", "end", "seconds"),
    [
        ("2021-07-22T12:00:02Z", None, [2, 3, 4]),
        (None, "2021-07-22T12:00:02.000Z", [1]),
        (datetime(2021, 7, 22, 12, 0, 2, tzinfo=UTC), datetime(2021, 7, 22, 12, 0, 4, tzinfo=UTC), [2, 3]),
        (NOON + 2 * SECOND + 1, NOON + 4 * SECOND + 1, [3, 4]),
        ("2021-07-23T00:00:00Z", None, []),
    ],
)
async def test_start_is_inclusive_and_end_exclusive(start, end, seconds):
    items = await read_whole(Replay(io.BytesIO(archive(1, 2, 3, 4)), start=start, end=end))
    assert shape(items) == (["C", *seconds] if seconds else [])


async def test_a_disconnect_before_the_start_is_none():
    items = await read_whole(Replay(io.BytesIO(archive(1, None, 2, None, 3)), start=NOON + 2 * SECOND))
    assert shape(items) == ["C", 2, "D", "C", 3]


async def test_nothing_is_read_beyond_the_end(reading):
    items, error = await read(Replay(io.BytesIO(archive(1, 2, 3) + b"oops\n"), "missing", end=NOON + 3 * SECOND))
    assert (shape(items), error) == (["C", 1, 2], None)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"speed": 0}, ValueError, "positive"),
        ({"speed": -1.0}, ValueError, "positive"),
        ({"start": datetime(2021, 7, 22)}, ValueError, "time zone"),
        ({"end": "2021-07-22T12:00:00"}, ValueError, "time zone"),
        ({"start": "noon"}, ValueError, "ISO"),
        ({"start": 1.5}, TypeError, "int ns"),
        ({"start": 2, "end": 2}, ValueError, "before"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, error, words):
    with pytest.raises(error, match=words):
        Replay("somewhere", **arguments)


def test_a_replay_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        Replay()
    with pytest.raises(TypeError, match="takes paths"):
        Replay(["a", "b"])


async def test_a_replay_is_no_place_to_send_to():
    with pytest.raises(RuntimeError, match="first section"):
        async with Replay("somewhere").batches(object()):
            pass
