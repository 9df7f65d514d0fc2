"""Recordings as a source.

A file is read in blocks, a block is split into lines, and its lines become one batch: no await per line. Which of the
three formats it has is seen from its first line that is not empty; whether it is compressed, from its first bytes:

* archive: ``2019-06-01T00:00:28.6199940Z {json}``; an empty line is a disconnect;
* stamped: ``1626993367.875267: {json}``, between lines of other shape (URLs, the commands sent), which are skipped;
* bare: ``{json}``; ``received`` is the newest timestamp of the exchange so far. Lines before the first timestamp wait
  for it, and get it too: a stream must not begin in 1970.

Each message is checked to be one whole JSON object in UTF-8 (or the text ``pong``) without building it, so that a
damaged file is noticed here, where file and line are known. A byte order mark at the beginning of a file is skipped.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, closing, nullcontext, suppress
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeAlias

import msgspec
import trio

from ..errors import RecordingError
from ..messages import Connected, Disconnected, RawMessage
from ..operator import Batches, Source
from ..timestamps import to_nanoseconds

__all__ = ["Replay"]

Recording: TypeAlias = str | os.PathLike[str] | BinaryIO
Lines: TypeAlias = Generator[tuple[int, list[bytes]], None, None]

_BLOCK = 1 << 18  # of text: about 2 ms of work, in which no other task runs
_COMPRESSED_BLOCK = 1 << 15

_ARCHIVE = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z) ")
_STAMPED = re.compile(rb"(\d{1,11})(?:\.(\d{1,9}))?: ")
_OTHER_SHAPE = re.compile(rb"(?:wss?|https?)://")
_EXCHANGE_TIME = re.compile(rb'"timestamp"\s*:\s*"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?Z)"')
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

    Raises ValueError for a speed that is not positive, times without time zone, or a start that is not before the
    end; TypeError for what is no path. While it runs, RecordingError with file and line, when all before it was put
    out: for a file that is missing or no recording, damaged compression, a line cut short or that is no message.
    Files are closed in the end, also when cancelled.
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
        with closing(_Reader(self)) as reader:
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

    def __init__(self, replay: Replay) -> None:
        self._replay = replay
        self._source = replay.source
        self._received: int | None = None  # of the last line
        self._held: list[tuple[int, bytes]] | None = []  # (line, data) before the first time; None: no longer held
        self._held_bytes = 0
        self._connected = False
        self._batches: Generator[list[Any], None, None] = self._read()

    async def receive(self) -> Sequence[Any]:
        await trio.lowlevel.checkpoint()
        batch = next(self._batches, None)  # no await from here on: a cancellation cannot lose anything
        if batch is None:
            raise trio.EndOfChannel
        return batch

    def close(self) -> None:
        self._batches.close()

    def _read(self) -> Generator[list[Any], None, None]:
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
        self._held.append((number, data))
        self._held_bytes += len(data)
        return self._release(0) if self._held_bytes > _HELD else []

    def _release(self, received: int) -> list[Any]:
        """What was held, received now (0: at no time)."""
        held, self._held = self._held, None
        start, end = self._replay.start, self._replay.end
        if not held or (start is not None and received < start) or (end is not None and received >= end):
            return []
        self._received, self._connected = received, True
        messages = [RawMessage(received, data, self._source, number) for number, data in held]
        return [Connected(received, self._source), *messages]

    def _read_files(self) -> Generator[list[Any], None, None]:
        for path in self._replay.paths:
            name = _name(path)
            format: _Format | None = None
            with closing(_lines(path, name)) as lines:
                for number, block in lines:
                    if number == 1:
                        block[0] = block[0].removeprefix(b"\xef\xbb\xbf")
                    if format is None:
                        begin = next((index for index, line in enumerate(block) if line), None)
                        if begin is None:
                            continue
                        format = self._format(block[begin], name, number + begin)
                    ended = yield from self._put_out(name, format, number, block)
                    if ended:
                        return
            if format is None:
                raise RecordingError(f"{name} is empty, not a recording", path=name)

    def _format(self, line: bytes, name: str, number: int) -> _Format:
        if _ARCHIVE.match(line):
            return _Archive()
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
        self, name: str, format: _Format, first: int, block: list[bytes]
    ) -> Generator[list[Any], None, bool]:
        """The batch of one block; returns whether ``end`` has come."""
        parse, source = format.parse, self._source
        start, end = self._replay.start, self._replay.end
        batch: list[Any] = []
        error: RecordingError | None = None
        ended = False
        for number, line in enumerate(block, first):
            if not line:
                if format.empty_line_is_disconnect and self._held:
                    batch += self._release(0)  # of the connection that ends here
                if format.empty_line_is_disconnect and self._connected:
                    self._connected = False
                    batch.append(Disconnected(self._received or 0, source, 1006, "a disconnect in the recording"))
                continue
            try:
                parsed = parse(line)
                if parsed is None:
                    continue
                received, data = parsed
                if received is None and self._held is None:
                    received = 0
                if received is not None:
                    if start is not None and received < start:
                        self._held = None  # these were before the start as well
                        continue
                    if end is not None and received >= end:
                        self._held = None
                        ended = True
                        break
                if data != b"pong":
                    _check(data)
            except ValueError as problem:  # as msgspec's errors are, too
                error = RecordingError(
                    f"{name}, line {number} is no recorded message, or was cut short ({problem}): {_shown(line)}",
                    path=name, line=number,
                )
                break
            if received is None:
                batch += self._hold(number, data)
                continue
            if self._held:
                batch += self._release(received)
            self._received = received
            if not self._connected:
                self._connected = True
                batch.append(Connected(received, source))
            batch.append(RawMessage(received, data, source, number))
        if batch:
            yield batch
        if error is not None:
            raise error
        return ended


# --- the formats ---


class _Format(Protocol):
    empty_line_is_disconnect: bool

    def parse(self, line: bytes) -> tuple[int | None, bytes] | None:
        """A line's (received, data), or None to skip it; received None: not known yet. ValueError: it is no line of
        this format.
        """


class _Archive:
    """The second of a timestamp hardly ever changes from one line to the next: mostly, only the decimals are parsed."""

    empty_line_is_disconnect = True

    def __init__(self) -> None:
        self._prefix = b"\n"  # of no line
        self._second = 0

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


class _Stamped:
    empty_line_is_disconnect = False

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

    def __init__(self, newest: int | None) -> None:
        self._newest = newest

    def parse(self, line: bytes) -> tuple[int | None, bytes]:
        times = _EXCHANGE_TIME.findall(line)
        if times:
            self._newest = max(self._newest or 0, to_nanoseconds(max(times).decode()))
        return self._newest, line


# --- the files ---


def _lines(path: Recording, name: str) -> Lines:
    """The lines of a file without their ends, block by block, each with the number of its first line (from 1)."""
    number = 1
    rest: list[bytes] = []  # of a line that goes on in the next block: joined once, however long it is
    try:
        with closing(_decompressed(path, name)) as blocks:
            for block in blocks:
                head, newline, tail = block.rpartition(b"\n")
                if not newline:
                    rest.append(block)
                    continue
                text = b"".join((*rest, head, newline))
                if b"\r" in text:
                    text = text.replace(b"\r\n", b"\n")
                lines = text.split(b"\n")
                lines.pop()  # what comes behind the last newline: nothing
                rest = [tail] if tail else []
                yield number, lines
                number += len(lines)
        if rest:
            yield number, [b"".join(rest).rstrip(b"\r")]
    except _READING_ERRORS as error:
        what = error.strerror or error if isinstance(error, OSError) else error
        raise RecordingError(
            f"{name} cannot be read" + (f" beyond line {number - 1}" if number > 1 else "") + f": {what}",
            path=name, line=number if not isinstance(error, OSError) else 0,
        ) from error


def _decompressed(path: Recording, name: str) -> Generator[bytes, None, None]:
    with _opened(path) as file:
        block = file.read(_COMPRESSED_BLOCK)
        if not isinstance(block, bytes):
            raise RecordingError(f"{name} gives {type(block).__name__}, not bytes: open it in binary mode", path=name)
        magic = block[:4]
        if magic[:2] == b"\x1f\x8b":
            new: Callable[[], Any] = _gzip
        elif magic == b"\x28\xb5\x2f\xfd":
            new = _zstd(name)
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
                yield from _decompress(decoder, data)
                data = decoder.unused_data if decoder.eof else b""
            block = file.read(_COMPRESSED_BLOCK)
        if not decoder.eof:
            raise EOFError("the compressed data ends too early: the file is truncated")


def _decompress(decoder: Any, data: bytes) -> Generator[bytes, None, None]:
    before = decoder.copy() if hasattr(decoder, "copy") else None
    try:
        text = decoder.decompress(data)
    except zlib.error:
        # What was good in front of the damage is lost with the call: take it byte by byte.
        if before is not None:
            for index in range(len(data)):
                yield before.decompress(data[index:index + 1])
        raise
    if text:
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
