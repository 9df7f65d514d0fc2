"""Recordings as a source.

A file is read in blocks, a block is split into lines, and its lines become one batch: no await per line. Beyond the
first megabyte a worker thread reads and decompresses ahead. Which of the three formats a file has is seen from its
first line that is not empty; whether it is compressed, from its first bytes:

* archive: ``2019-06-01T00:00:28.6199940Z {json}``; an empty line is a disconnect;
* stamped: ``1626993367.875267: {json}``, between lines of other shape (URLs, the commands sent), which are skipped;
* bare: ``{json}``; ``received`` is the newest timestamp of the exchange so far. Lines before the first timestamp wait
  for it, and get it too: a stream must not begin in 1970.

The frame is checked here, where file and line are known: the timestamp, UTF-8, and that a message begins and ends as
an object does (or is the text ``pong``). Whether it is JSON all through is for the Decoder to see, which has to
read it anyway, and for which a recording should be no different from the live stream: to look twice cost 0.4 us a
line, nearly as much as all the rest of the work here. Checked to the end are the first line of a file, which shows
what is no recording, and a last one without its newline, which may have been cut. A byte order mark is skipped.

Lines of the archive format are read by columns, many at a time, as long as they look alike (see `_Archive.times`):
0.7 us a line, all in all (0.2 of it is the split into lines), where one by one would be 1.3.
"""

from __future__ import annotations

import io
import math
import os
import re
import stat
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, closing, nullcontext, suppress
from datetime import datetime
from importlib import import_module
from itertools import count, repeat
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import msgspec
import trio

from ..ahead import CHUNK, ReadAhead
from ..errors import RecordingError
from ..messages import Connected, Disconnected, RawMessage
from ..nurseries import background
from ..operator import Batches, Source
from ..timestamps import to_nanoseconds

__all__ = ["Replay"]

Recording: TypeAlias = str | os.PathLike[str] | BinaryIO
Lines: TypeAlias = Generator[tuple[int, list[bytes], bool], None, None]

_BLOCK = 1 << 18  # of text: about 1 ms of work, in which no other task runs
_COMPRESSED_BLOCK = 1 << 16
_FEW = 16  # lines that are not worth another try to read them by columns

_ARCHIVE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z) ")
_STAMPED = re.compile(rb"(\d{1,11})(?:\.(\d{1,9}))?: ")
_OTHER_SHAPE = re.compile(rb"(?:wss?|https?)://")
_EXCHANGE_TIME = re.compile(rb'"timestamp"\s*:\s*"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z)"')
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SECOND = 1_000_000_000
_HELD = 1 << 23  # bytes of messages that wait for the first timestamp, at most


class _JSONObject(msgspec.Struct):
    """Any JSON object: without fields, msgspec checks the syntax to the end and builds nothing."""


_parse = msgspec.json.Decoder(_JSONObject).decode


def _check(data: bytes) -> None:
    try:
        _parse(data)
        if not data.isascii():  # what is skipped is not looked at: msgspec does not see that it is no UTF-8
            data.decode()
    except RecursionError:
        raise ValueError("nested too deeply") from None


class Replay(Source):
    """Put out a recording: `RawMessage` items as received then, and the marks `Connected` and `Disconnected` between
    them.

    ``paths``: one or several files (str, PathLike; no patterns), or open binary files, which are read from their
    beginning and not closed (an ``io.BytesIO`` replays from memory). Plain, gzip or zstd text in any of the formats
    that this module's top describes. Several are one continuous recording, in the order given, of one source: state
    lives on from file to file, and is lost only where a recording says that the connection was. At the end there is
    no `Disconnected`: the stream just ends.

    ``speed``: None, as fast as it can; else how many seconds of the recording pass in one of trio's clock (1.0: real
    time). ``start`` (inclusive), ``end`` (exclusive): an aware datetime, an ISO string with time zone, or int ns;
    messages before ``start`` are skipped, the partials among them too, without which there are no tables: cut where a
    recording connects. Reading stops at the first message at or after ``end``.

    Each message's ``received`` is exact, in ns; ``data`` is bytes, ``line`` its line in its file, ``source`` the path
    (of several: of the first and the last). Of bare lines without any timestamp of the exchange it is 0 (no time): in
    a recording that has none, or none in its first 8 MiB. Where it is paced, these come at once.

    Beyond its first megabyte, a file is read and decompressed ahead in a worker thread, two megabytes of text at most;
    a pipe from its first byte. No thread: plain bytes in memory, and paced files. Files are closed in the end, also
    when cancelled, which waits for the thread: a moment, for a pipe that does not answer a second, at most.

    Raises ValueError for a speed that is not positive, times without time zone, or a start that is not before the
    end; TypeError for what is no path. While it runs, RecordingError with file and line, when all before it was put
    out: for a file that is missing or no recording, damaged compression, a line without its timestamp, not in UTF-8,
    or that does not begin and end as a message does, and for a last line that was cut short. Whether a message is JSON
    all through is seen by the `Decoder`, which names the file and the line.
    """

    def __init__(
        self,
        *paths: Recording,
        speed: float | None = None,
        start: datetime | str | int | None = None,
        end: datetime | str | int | None = None,
    ) -> None:
        if not paths:
            raise ValueError("Replay needs at least one recording: a path, or an open binary file")
        for path in paths:
            if not (isinstance(path, (str, os.PathLike)) or hasattr(path, "read")):
                raise TypeError(f"Replay takes paths and open binary files, not {path!r}")
        if speed is not None and not 0 < speed < float("inf"):
            raise ValueError(f"speed is a positive number (1.0: real time) or None (as fast as it can), not {speed!r}")
        self.paths = paths
        self.speed = speed
        self.rate = 0.0 if speed is None else float(speed)
        self.start = _moment(start)
        self.end = _moment(end)
        if self.start is not None and self.end is not None and self.start >= self.end:
            raise ValueError(f"start ({start}) must be before end ({end})")
        names = [_name(path) for path in paths]
        self.source = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]}"

    @asynccontextmanager
    async def batches(self, input: Any) -> AsyncIterator[Batches]:
        """Open the recording from its beginning."""
        if input is not None:
            raise RuntimeError("Replay is a source: it can only be the first section of a pipeline")

        async def leave() -> None:
            reader.close()

        async with background(leave) as nursery:
            reader = _Reader(self, nursery)
            yield reader if self.speed is None else _Paced(reader, self.speed)


class _Paced:
    """The batches of a reader, each item when its time has come: counted from the first one, so that nothing drifts.
    """

    def __init__(self, batches: Batches, speed: float) -> None:
        self._batches = batches
        self._speed = speed
        self._waiting: deque[Any] = deque()
        self._origin: tuple[int, float] | None = None

    async def receive(self) -> Sequence[Any]:
        if not self._waiting:
            self._waiting.extend(await self._batches.receive())
        if self._origin is None:
            if not self._waiting[0].received:  # no time yet
                return [self._waiting.popleft()]
            self._origin = self._waiting[0].received, trio.current_time()
        first, began = self._origin
        await trio.sleep_until(began + (self._waiting[0].received - first) / 1e9 / self._speed)
        due = [self._waiting.popleft()]
        passed = max(due[0].received, first + int((trio.current_time() - began) * 1e9 * self._speed))
        while self._waiting and self._waiting[0].received <= passed:
            due.append(self._waiting.popleft())
        return due


class _Reader:
    """Reads the files of one Replay, one batch a block."""

    def __init__(self, replay: Replay, nursery: trio.Nursery) -> None:
        self._replay = replay
        self._nursery = nursery
        self._source = replay.source
        self._file = ""  # the one in hand, where there are several
        self._received: int | None = None  # of the last line
        # (line, data, file) before the first time; None: no longer held
        self._held: list[tuple[int, bytes, str]] | None = []
        self._held_bytes = 0
        self._connected = False
        self._text: ReadAhead | None = None  # of the file in hand
        self._batches: Generator[list[Any], None, None] = self._read()

    async def receive(self) -> Sequence[Any]:
        batch: list[Any] | None = []
        while not batch:
            await trio.lowlevel.checkpoint()
            if self._text is not None:
                await self._text.ready()
            batch = next(self._batches, None)  # no await from here on: a cancellation cannot lose anything
            if batch is None:
                raise trio.EndOfChannel
        return batch

    def close(self) -> None:
        self._batches.close()

    def _read(self) -> Generator[list[Any], None, None]:
        """The batches. Each step takes one block, at most, for which `receive` has waited; so a batch can be empty."""
        error: RecordingError | None = None
        try:
            yield from self._read_files()
        except RecordingError as problem:
            error = problem
        if held := self._release(0):
            yield held
        if error is not None:
            raise error

    def _hold(self, number: int, data: bytes) -> list[Any]:
        """Let a message wait for the first time. What comes out: nothing, or all that waits, when it is too much."""
        assert self._held is not None
        self._held.append((number, data, self._file))
        self._held_bytes += len(data)
        return self._release(0) if self._held_bytes > _HELD else []

    def _release(self, received: int) -> list[Any]:
        """What was held, received now (0: at no time)."""
        held, self._held = self._held, None
        start, end = self._replay.start, self._replay.end
        if not held or (start is not None and received < start) or (end is not None and received >= end):
            return []
        self._received, self._connected = received, True
        messages = [RawMessage(received, data, self._source, number, file) for number, data, file in held]
        return [Connected(received, self._source), *messages]

    def _read_files(self) -> Generator[list[Any], None, None]:
        for path in self._replay.paths:
            name = _name(path)
            self._file = name if len(self._replay.paths) > 1 else ""
            format: _Format | None = None
            at_once = _at_once(path, paced=self._replay.speed is not None)
            with closing(ReadAhead(_decompressed(path, name), self._nursery, at_once=at_once)) as self._text:
                yield []
                for number, lines, sound in _lines(self._text, name):
                    if number == 1 and lines:
                        lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
                    batch: list[Any] = []
                    error: RecordingError | None = None
                    ended = False
                    try:
                        if format is None and (begin := _first(lines)) is not None:
                            format = self._format(lines[begin], name, number + begin)
                            ended = self._put_out(batch, name, format, number, lines[: begin + 1], False)
                            number, lines = number + begin + 1, lines[begin + 1:]
                        if format is not None and not ended:
                            ended = self._put_out(batch, name, format, number, lines, sound)
                    except RecordingError as problem:
                        error = problem
                    yield batch
                    if error is not None:
                        raise error
                    if ended:
                        return
            if format is None:
                raise RecordingError(f"{name} is empty, not a recording", path=name)

    def _format(self, line: bytes, name: str, number: int) -> _Format:
        if _ARCHIVE.match(line):
            return _Archive(line)
        if _STAMPED.match(line) or _OTHER_SHAPE.match(line):
            return _Stamped()
        if line.lstrip().startswith(b"{"):
            return _Bare(self._received or None)
        raise RecordingError(
            f"{name}, line {number} is no line of a recording ({_shown(line)}): lines begin with a timestamp "
            "(2019-06-01T00:00:28.6199940Z, or 1626993367.875267:), or are JSON objects",
            path=name, line=number,
        )

    def _put_out(
        self, batch: list[Any], name: str, format: _Format, first: int, lines: list[bytes], sound: bool
    ) -> bool:
        """Append to the batch what lines give; whether ``end`` has come. ``sound``: they were seen to be UTF-8, and
        whole.

        Where lines are not all alike, their halves may be: so one that is odd costs its neighbours little.
        """
        if sound and format.has_columns:
            if self._put_out_alike(batch, format, first, lines):
                return False
            if len(lines) > _FEW:
                half = len(lines) // 2
                return self._put_out(batch, name, format, first, lines[:half], sound) or self._put_out(
                    batch, name, format, first + half, lines[half:], sound
                )
        for number, line in enumerate(lines, first):
            if not line:
                if format.empty_line_is_disconnect:
                    self._disconnect(batch)
                continue
            try:
                if self._put_out_one(batch, format, number, line, sound):
                    return True
            except ValueError as problem:  # as msgspec's errors are, too
                raise RecordingError(
                    f"{name}, line {number} is no recorded message, or was cut short ({problem}): {_shown(line)}",
                    path=name, line=number,
                ) from problem
        return False

    def _put_out_alike(self, batch: list[Any], format: _Format, first: int, lines: list[bytes]) -> bool:
        """Append lines that all look alike in one go; False: they do not, or only some of them are wanted."""
        times = None if self._held else format.times(lines)
        if times is None:
            return False
        start, end = self._replay.start, self._replay.end
        if end is not None and max(times) >= end:
            return False
        if start is not None and min(times) < start:
            if max(times) >= start:
                return False
            self._held = None
            return True
        if not self._connected:
            self._connected = True
            batch.append(Connected(times[0], self._source))
        data = map(_ARCHIVE_DATA, lines)
        batch += map(RawMessage, times, data, repeat(self._source), count(first), repeat(self._file))
        self._received = times[-1]
        return True

    def _put_out_one(self, batch: list[Any], format: _Format, number: int, line: bytes, sound: bool) -> bool:
        """Append what one line gives; whether ``end`` has come. ValueError: it is no message."""
        parsed = format.parse(line)
        if parsed is None:
            return False
        received, data = parsed
        if received is None and self._held is None:
            received = 0
        start, end = self._replay.start, self._replay.end
        if received is not None:
            if start is not None and received < start:
                self._held = None  # these were before the start as well
                return False
            if end is not None and received >= end:
                self._held = None
                return True
        if not (sound and data.startswith(b"{") and data.endswith(b"}")) and data != b"pong":
            _check(data)
        if received is None:
            batch += self._hold(number, data)
            return False
        if self._held:
            batch += self._release(received)
        self._received = received
        if not self._connected:
            self._connected = True
            batch.append(Connected(received, self._source))
        batch.append(RawMessage(received, data, self._source, number, self._file))
        return False

    def _disconnect(self, batch: list[Any]) -> None:
        if self._held:
            batch += self._release(0)  # of the connection that ends here
        if self._connected:
            self._connected = False
            batch.append(Disconnected(self._received or 0, self._source, 1006, "a disconnect in the recording"))


# --- the formats ---


class _Format(Protocol):
    empty_line_is_disconnect: bool
    has_columns: bool
    """Whether `times` can be of use."""

    def parse(self, line: bytes) -> tuple[int | None, bytes] | None:
        """A line's (received, data), or None to skip it; received None: not known yet. ValueError: it is no line of
        this format.
        """

    def times(self, lines: list[bytes]) -> list[int] | None:
        """When each was received. None: they do not look alike, and have to be parsed one by one."""


# A line of the archive format: 2019-06-01T00:00:28.6199940Z {"table":...}
_ARCHIVE_STAMP = itemgetter(slice(30))
_ARCHIVE_DATA = itemgetter(slice(29, None))
_ARCHIVE_MINUTE = itemgetter(slice(17))
_ARCHIVE_REST = b"00.0000000Z {"
_ARCHIVE_DIGITS = (17, 18, 20, 21, 22, 23, 24, 25, 26)
_LAST_BYTE = itemgetter(-1)
_parse_integers = msgspec.json.Decoder(list[int]).decode


class _Archive:
    """The second of a timestamp hardly ever changes from one line to the next: mostly, only the decimals are parsed."""

    empty_line_is_disconnect = True

    def __init__(self, first: bytes) -> None:
        self.has_columns = first[27:29] == b"Z "  # with other decimals, it would be tried in vain again and again
        self._prefix = b"\n"  # of no line
        self._second = 0

    def times(self, lines: list[bytes]) -> list[int] | None:
        """The times of lines whose stamps have seven decimals, and whose messages begin and end as objects do.

        No loop over the lines: one over the digits, each of which is a column of the stamps laid end to end. The
        columns become a list of JSON integers; when they are blanked, the stamps must be all the same. 0.15 us a
        line (0.5 where the minute changes all the time); a slice, int() and check of the form for each took 0.6.
        """
        size = len(lines)
        stamps = bytearray(b"".join(map(_ARCHIVE_STAMP, lines)))
        if len(stamps) != 30 * size or bytes(map(_LAST_BYTE, lines)) != b"}" * size:
            return None
        zeros = b"0" * size
        integers = bytearray(b"100000000000," * size)  # the 1 keeps the zeros behind it, the last two are ns
        for place, column in enumerate(_ARCHIVE_DIGITS, 1):
            digits = stamps[column::30]
            if not digits.isdigit():
                return None
            integers[place::13] = digits
            stamps[column::30] = zeros
        one_minute = stamps == stamps[:30] * size
        if not one_minute:
            for column in range(17):
                stamps[column::30] = zeros
        if not stamps.endswith(_ARCHIVE_REST) or stamps != stamps[:30] * size:
            return None
        integers[-1:] = b"]"
        nanoseconds = _parse_integers(b"[" + integers)
        try:
            if one_minute:
                minute = _minute(lines[0][:17])
                return [minute + time for time in nanoseconds]
            prefixes = list(map(_ARCHIVE_MINUTE, lines))
            minutes = {prefix: _minute(prefix) for prefix in set(prefixes)}
            return [minutes[prefix] + time for prefix, time in zip(prefixes, nanoseconds, strict=True)]
        except ValueError:
            return None

    def parse(self, line: bytes) -> tuple[int, bytes]:
        if line.startswith(self._prefix) and line[27:29] == b"Z ":
            decimals = line[20:27]
            if decimals.isdigit():
                return self._second + int(decimals) * 100, line[29:]
        match = _ARCHIVE.match(line)
        if match is None:
            raise ValueError("no timestamp of the form 2019-06-01T00:00:28.6199940Z")
        timestamp = match[1].decode()
        received = to_nanoseconds(timestamp)
        if line[19:20] == b".":
            self._prefix = line[:20]
            self._second = received - received % _SECOND
        return received, line[match.end():]


def _minute(prefix: bytes) -> int:
    """What is added to the integers of `_Archive.times`: the minute, without the 1 that they begin with."""
    if not _ARCHIVE.match(prefix + b"00Z "):
        raise ValueError("no timestamp of the form 2019-06-01T00:00:28.6199940Z")
    return to_nanoseconds(prefix.decode() + "00Z") - 100 * _SECOND


class _Stamped:
    empty_line_is_disconnect = False
    has_columns = False

    def times(self, lines: list[bytes]) -> None:
        """Its stamps have as many decimals as there were digits."""

    def parse(self, line: bytes) -> tuple[int, bytes] | None:
        match = _STAMPED.match(line)
        if match is None:
            if line[:1].isdigit():
                raise ValueError("no timestamp of the form 1626993367.875267:")
            return None
        seconds, decimals = match.groups(b"")
        return int(seconds + decimals.ljust(9, b"0")), line[match.end():]


class _Bare:
    """Takes the time from the messages. Those before the first timestamp have that of the file before, or none."""

    empty_line_is_disconnect = False
    has_columns = False

    def __init__(self, newest: int | None) -> None:
        self._newest = newest
        self._seen = b""

    def times(self, lines: list[bytes]) -> None:
        """It has no stamps."""

    def parse(self, line: bytes) -> tuple[int | None, bytes]:
        times = _EXCHANGE_TIME.findall(line)
        if times and (latest := max(times)) != self._seen:  # parsing it costs 1 us
            self._seen = latest
            self._newest = max(self._newest or 0, to_nanoseconds(latest.decode()))
        return self._newest, line


# --- the files ---


def _first(lines: list[bytes]) -> int | None:
    """The index of the first line that is not empty."""
    return next((index for index, line in enumerate(lines) if line), None)


def _lines(text: ReadAhead, name: str) -> Lines:
    """The lines of a file without their ends, block by block: the number of the first of them (from 1), the lines, and
    whether they are seen to be UTF-8, and whole (what stands behind the last newline may have been cut).
    """
    number = 1
    rest: list[bytes] = []  # of a line that goes on in the next block: joined once, however long it is
    try:
        for block in text:
            lines = block.split(b"\n")
            rest.append(lines.pop())
            if not lines:
                yield number, [], True
                continue
            lines[0], rest = b"".join((*rest[:-1], lines[0])), rest[-1:]
            if b"\r" in block or lines[0].endswith(b"\r"):
                lines = [line.removesuffix(b"\r") for line in lines]
            sound = (block.isascii() and lines[0].isascii()) or _is_utf_8(b"\n".join(lines))
            yield number, lines, sound
            number += len(lines)
        if last := b"".join(rest).rstrip(b"\r"):
            yield number, [last], False
    except _READING_ERRORS as error:
        what = error.strerror or error if isinstance(error, OSError) else error
        raise RecordingError(
            f"{name} cannot be read" + (f" beyond line {number - 1}" if number > 1 else "") + f": {what}",
            path=name, line=number if not isinstance(error, OSError) else 0,
        ) from error


def _is_utf_8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _at_once(path: Recording, *, paced: bool) -> float:
    """How many bytes of a recording are read where they are wanted: what lies beyond is read ahead, in a thread.

    Plain bytes in memory are there already. The beginning of a file is read faster (1 ms a block) than it could be
    waited for; and so a small one never meets a thread. A paced replay has time enough, and without a thread it runs
    on a clock of trio's that jumps (MockClock), as a test would want. But a pipe, a terminal, or whatever else may
    take its time, must not stop every task while it does.
    """
    if isinstance(path, io.BytesIO) and not path.getbuffer()[:4].tobytes().startswith((_GZIP, _ZSTD)):
        return math.inf
    if not (isinstance(path, io.BytesIO) or _is_on_disk(path)):
        return 0
    return math.inf if paced else CHUNK


def _is_on_disk(path: Recording) -> bool:
    if isinstance(path, (str, os.PathLike)):
        try:
            return not stat.S_ISFIFO(mode := Path(path).stat().st_mode) and not stat.S_ISCHR(mode)
        except (OSError, ValueError):
            return True  # which is quickly said
    try:
        return stat.S_ISREG(os.fstat(path.fileno()).st_mode)
    except (AttributeError, OSError, ValueError):
        return False


def _decompressed(path: Recording, name: str) -> Generator[bytes, None, None]:
    with _opened(path) as file:
        block = file.read(_COMPRESSED_BLOCK)
        if not isinstance(block, bytes):
            raise RecordingError(f"{name} gives {type(block).__name__}, not bytes: open it in binary mode", path=name)
        if block.startswith(_GZIP):
            new: Callable[[], Any] = _gzip
            decompress = _inflate
        elif block.startswith(_ZSTD):
            new = _zstd(name)
            decompress = _decompress
        else:
            while block:
                yield block
                block = file.read(_BLOCK)
            return
        decoder = new()
        while block:
            data = block
            while data:
                if decoder.eof:  # the next member of the file
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    decoder = new()
                yield from decompress(decoder, data)
                data = decoder.unused_data if decoder.eof else b""
            block = file.read(_COMPRESSED_BLOCK)
        if not decoder.eof:
            raise EOFError("the compressed data ends too early: the file is truncated")


def _inflate(decoder: Any, data: bytes) -> Generator[bytes, None, None]:
    text = b""
    while (data or len(text) == _BLOCK) and not decoder.eof:  # after a full block there may be more
        before = decoder.copy()
        try:
            text = decoder.decompress(data, _BLOCK)
        except zlib.error:
            # What was good in front of the damage is lost with the call: take it byte by byte.
            for index in range(len(data)):
                if good := before.decompress(data[index:index + 1]):
                    yield good
            raise
        if text:
            yield text
        data = decoder.unconsumed_tail


def _decompress(decoder: Any, data: bytes) -> Generator[bytes, None, None]:
    if text := decoder.decompress(data):
        yield text


def _gzip() -> Any:
    return zlib.decompressobj(wbits=31)


def _zstd(name: str) -> Callable[[], Any]:
    with suppress(ImportError):
        return import_module("compression.zstd").ZstdDecompressor  # Python 3.14
    try:
        zstandard = import_module("zstandard")
    except ImportError:
        raise RecordingError(
            f"{name} is compressed with zstd: install zstandard (pip install zstandard), or use Python 3.14 or newer",
            path=name,
        ) from None
    return lambda: zstandard.ZstdDecompressor().decompressobj()


def _reading_errors() -> tuple[type[Exception], ...]:
    errors: list[type[Exception]] = [OSError, EOFError, zlib.error]
    for module in ("compression.zstd", "zstandard"):
        with suppress(ImportError):
            errors.append(import_module(module).ZstdError)
    return tuple(errors)


_READING_ERRORS = _reading_errors()


def _opened(path: Recording) -> Any:
    if isinstance(path, (str, os.PathLike)):
        try:
            return Path(path).open("rb")
        except ValueError as error:  # a NUL in it, or what no file system can spell
            raise RecordingError(f"{_name(path)!r} is no path: {error}", path=_name(path)) from error
    if path.seekable():
        path.seek(0)
    return nullcontext(path)


def _name(path: Recording) -> str:
    if isinstance(path, (str, os.PathLike)):
        return os.fspath(path)
    name = getattr(path, "name", None)
    return name if isinstance(name, str) else f"<{type(path).__name__}>"


def _moment(time: datetime | str | int | None) -> int | None:
    if isinstance(time, (datetime, str)):
        return to_nanoseconds(time)
    if time is None or isinstance(time, int):
        return time
    raise TypeError(f"start and end are an aware datetime, an ISO string or int ns, not {time!r}")


def _shown(line: bytes) -> str:
    text = line.decode(errors="backslashreplace")
    return repr(text if len(text) <= 80 else f"{text[:50]}...{text[-25:]}")
