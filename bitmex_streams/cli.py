"""The command line: `watch` a feed, serve the embedded `exchange`, tell what is in a recording (`replay`).

All of it is pipelines, and nothing here holds one up. The view on a terminal reads the live books and tables ten times
a second, and learns of the rest by a `latest` tap; lines for a pipe are written in a thread, because a reader that
stalls must not stall the socket.

Exit status: 0; 1 after an error; 2 for wrong arguments; 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import inspect
import logging
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import msgspec
import trio
import typer
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from . import (
    BitMEXStreamsError,
    BookUpdate,
    Connected,
    Connection,
    Decoder,
    Disconnected,
    Operator,
    OrderBook,
    OrderBookMerger,
    Pipeline,
    Replay,
    Source,
    StateLost,
    SymbolFilter,
    TableApplier,
    TableMessage,
    TableUpdate,
    Tap,
    __version__,
)
from .exchange import DEFAULT_SYMBOLS, open_exchange
from .protocol import PRIVATE_TABLES, PUBLIC_TABLES, check_topic
from .terminal import Terminal, View, table, tops
from .timestamps import to_iso

__all__ = ["app"]

DEFAULT_TOPICS = ("orderBookL2:XBTUSD", "trade:XBTUSD")
REFRESH_SECONDS = 0.1

app = typer.Typer(
    help="BitMEX's realtime feed: live, recorded or simulated.",
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
)  # fmt: skip
log = logging.getLogger("bitmex_streams")

JSON = Annotated[bool, typer.Option("--json", help="JSON, one object a line.")]


# --- the commands ---


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bitmex-streams {__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """BitMEX's realtime feed: live, recorded or simulated."""


@app.command()
def watch(
    topics: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TOPIC]...", help="table or table:symbol  [default: orderBookL2:XBTUSD trade:XBTUSD]"),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="mainnet, testnet, or a ws:// or wss:// URL  [default: an exchange of our own]")
    ] = None,
    replay: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A recording. May be repeated: one in several files.")
    ] = None,
    speed: Annotated[
        float | None, typer.Option(help="Of a recording: 1 is real time  [default: 1; in a pipe, as fast as it can]")
    ] = None,
    json: JSON = False,
) -> None:
    """Show books, trades and other tables as they change: a live view on a terminal, JSON in a pipe."""
    if replay and network:
        raise _wrong("a recording is no network: give one of --network and --replay", "--network")
    if speed is not None and not replay:
        raise _wrong("only a recording has a speed: give --replay FILE too", "--speed")
    terminal = None if json or sys.stdout is None or not sys.stdout.isatty() else Terminal()
    wanted = _checked(topics or (() if replay else DEFAULT_TOPICS), private=bool(replay))
    source: Source | None = None
    try:
        if replay:
            source = Replay(*replay, speed=1.0 if speed is None and terminal else speed)
        elif network:
            source = Connection(network, subscribe=wanted)
    except ValueError as error:
        raise _wrong(str(error), "--speed" if replay else "--network") from None
    if source is None:
        for symbol in (topic.partition(":")[2] for topic in wanted):
            if symbol and symbol not in DEFAULT_SYMBOLS:
                raise _wrong(f"the embedded exchange has no {symbol!r}: it lists {', '.join(DEFAULT_SYMBOLS)}", "TOPIC")
    _run(partial(_watch, source, wanted, terminal))


@app.command()
def exchange(
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 0,
    symbols: Annotated[str, typer.Option(help="What is traded, with commas between.")] = ",".join(DEFAULT_SYMBOLS),
    seed: Annotated[str, typer.Option(help="Of the order flow: the same seed, the same flow.")] = "0",
    rate: Annotated[float, typer.Option(help="Events a second, over all symbols.")] = 20.0,
    speed: Annotated[float, typer.Option(help="Of its clock: 1 is real time, 0 stands still.")] = 1.0,
) -> None:
    """Serve the embedded exchange over a websocket, until Ctrl-C. Its URL is printed."""
    names = [name.strip() for name in symbols.split(",")]
    _run(partial(_serve, host=host, port=port, symbols=names, seed=seed, rate=rate, speed=speed))


@app.command("replay")
def replay_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="One recording, perhaps in several files.")],
    json: JSON = False,
) -> None:
    """Tell what is in a recording: messages and rows by table, its time span and gaps, the final top of each book."""
    _run(partial(_summarize, files, json))


def _wrong(what: str, argument: str | None = None) -> typer.BadParameter:
    return typer.BadParameter(what, param_hint=argument)


def _checked(topics: Iterable[str], private: bool) -> tuple[str, ...]:
    """The topics, each once. What is no topic of a known table is a wrong argument."""
    tables = {name.lower(): name for name in PUBLIC_TABLES | (PRIVATE_TABLES if private else frozenset())}
    for topic in topics:
        try:
            name, colon, symbol = check_topic(topic).partition(":")
        except ValueError as error:
            raise _wrong(str(error), "TOPIC") from None
        if name in tables.values():
            continue
        if name in PRIVATE_TABLES:
            raise _wrong(f"{name} is a table of one account: it takes an API key, which this command does not", "TOPIC")
        close = get_close_matches(name.lower(), tables, n=1, cutoff=0.5)
        known = ", ".join(sorted(tables.values()))
        hint = f"did you mean {tables[close[0]]}{colon}{symbol}?" if close else f"there are {known}"
        raise _wrong(f"there is no table {name!r}: {hint}", "TOPIC")
    return tuple(dict.fromkeys(topics))


# --- running, and ending ---


def _run(work: Callable[[], Awaitable[None]]) -> None:
    """Run ``work`` to its end, its failure, or a signal, and exit with the status that says which."""
    if sys.stdout is None:  # `>&-`
        print("bitmex-streams: there is no standard output to write to: it is closed", file=sys.stderr)
        raise typer.Exit(1)
    log.addHandler(logging.NullHandler())  # its warnings are in the stream too, and shown
    status = 0
    try:
        status = trio.run(_until_signal, work)
        sys.stdout.flush()
    except Exception as error:
        for leaf in _leaves(error):
            if isinstance(leaf, BrokenPipeError):  # `| head`: who listened has had enough
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            elif isinstance(leaf, BitMEXStreamsError | OSError):
                status = 1
                print(f"bitmex-streams: {leaf}", file=sys.stderr)
            else:  # typer's own; or ours, and then a traceback is right
                raise leaf from None if isinstance(leaf, typer.BadParameter) else error
    raise typer.Exit(status)


async def _until_signal(work: Callable[[], Awaitable[None]]) -> int:
    """Cancel ``work`` on SIGINT and SIGTERM, so that it closes what it has open; the status to exit with."""
    status = 0
    failed: Exception | None = None
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def listen() -> None:
                nonlocal status
                async for number in signals:  # not only one: a second Ctrl-C does not tear what the first one closes
                    status = 128 + number
                    scope.cancel()

            nursery.start_soon(listen)
            try:
                with scope:
                    await work()
            except Exception as error:  # raised below: a nursery would make a group of it
                failed = error
            nursery.cancel_scope.cancel()
    if failed is not None and not status:  # Ctrl-C ends a reader of our pipe too: then that is no error of its own
        raise failed
    return status


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


# --- watch ---


class Books(OrderBookMerger):
    """Order books, and beside them the other tables, which the merger alone would end: so one tap has all, in order."""

    def process(self, item: Any) -> Iterable[Any]:
        if type(item) is TableUpdate and item.table != self.table:
            return (item,)
        return super().process(item)


class TopicFilter(Operator):
    """Of a recording, what would have come of a subscription to ``topics``; without any: everything."""

    def __init__(self, topics: Iterable[str]) -> None:
        symbols: dict[str, set[str]] = defaultdict(set)
        for topic in topics:
            name, _, symbol = topic.partition(":")
            symbols[name].add(symbol)
        self._narrow = {name: None if "" in found else SymbolFilter(*found) for name, found in symbols.items()}

    def process(self, item: Any) -> Iterable[Any]:
        if type(item) is not TableMessage or not self._narrow:
            return (item,)
        if item.table not in self._narrow:
            return ()
        narrow = self._narrow[item.table]
        return (item,) if narrow is None else narrow.process(item)


def _books() -> tuple[Books, Books]:
    return Books(), Books(table="orderBookL2_25")


async def _watch(source: Source | None, topics: tuple[str, ...], terminal: Terminal | None) -> None:
    decoder, tables, books = Decoder(), TableApplier(), _books()
    async with (
        _given_or_embedded(source, topics) as feed,
        Pipeline.create(feed, decoder, TopicFilter(topics), tables, *books) as pipeline,
    ):
        if terminal is None:
            written = await _write_lines(pipeline.tap())
            if not written and topics:
                print(f"bitmex-streams: nothing came of {', '.join(topics)}", file=sys.stderr)
        else:
            view = View(feed.url if isinstance(feed, Connection) else getattr(feed, "source", ""), tables, books)
            await _show(view, pipeline.tap(decoder, overflow="latest", key=type), terminal)


@asynccontextmanager
async def _given_or_embedded(source: Source | None, topics: tuple[str, ...]) -> AsyncIterator[Source]:
    if source is not None:
        yield source
        return
    async with open_exchange(rate=60.0) as exchange:
        yield Connection(exchange.url, subscribe=topics)


async def _show(view: View, news: Tap, terminal: Terminal) -> None:
    """Redraw until the stream ends; the last view stays on the terminal."""
    try:
        with news, Live(console=terminal, screen=True, auto_refresh=False) as live:
            while view.take(news):
                # In a thread: a terminal that is slow, or held by Ctrl-S, must not hold up the stream.
                await trio.to_thread.run_sync(partial(live.update, view.draw(*terminal.size), refresh=True))
                await trio.sleep(REFRESH_SECONDS)
    finally:
        terminal.print(view.draw(*terminal.size))


async def _write_lines(items: Tap) -> bool:
    """One JSON object a line for each item; all that waits goes in one write. Returns whether there was any."""
    written = False
    async for item in items:
        lines = [_line(item)]
        try:
            while len(lines) < 1000:
                lines.append(_line(items.receive_nowait()))
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
        await trio.to_thread.run_sync(_write, b"".join(lines), **ABANDON)
        written = True
    return written


# The same parameter, before and after trio 0.23.
_MODERN = "abandon_on_cancel" in inspect.signature(trio.to_thread.run_sync).parameters
ABANDON: dict[str, Any] = {"abandon_on_cancel" if _MODERN else "cancellable": True}


def _line(item: BookUpdate | TableUpdate) -> bytes:
    fields = ["table", "action", "rows", "received"]
    if isinstance(item, BookUpdate):
        fields = ["table", "symbol", "best_bid", "best_ask", "stale", "timestamp", "received"]
    elif item.action == "stale":
        fields += ["filter", "reason"]
    elif item.action == "partial":
        fields += ["filter"]
    return msgspec.json.encode({field: getattr(item, field) for field in fields}) + b"\n"


def _write(data: bytes) -> None:
    """All of it to stdout, past Python's buffer: so nothing is left in that to fail at the exit."""
    view = memoryview(data)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]


# --- exchange ---


async def _serve(*, host: str, port: int, **options: Any) -> None:
    try:
        async with open_exchange(host=host, port=port, **options) as exchange:
            print(exchange.url, flush=True)
            print("Until Ctrl-C. To see it: bitmex-streams watch --network", exchange.url, file=sys.stderr)
            await trio.sleep_forever()
    except ValueError as error:
        raise _wrong(str(error)) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OSError(f"cannot listen on {host}, port {port}: {error.strerror or error}") from error


# --- replay ---


class Summary(Operator):
    """Counts what passes, as any section of a user's between two of ours could."""

    def __init__(self) -> None:
        self.messages: Counter[tuple[str, str]] = Counter()  # by table and action; answers by their kind
        self.rows: Counter[tuple[str, str]] = Counter()
        self.times: list[int] = []  # the first, the last
        self.gaps: list[dict[str, int | None]] = []
        self.undecodable: list[str] = []

    def process(self, item: Any) -> Iterable[Any]:
        self.times[1:] = [item.received]
        match item:
            case TableMessage():
                self.messages[item.table, item.action] += 1
                self.rows[item.table, item.action] += len(item.rows)
            case Disconnected():
                self.gaps.append({"start": item.received, "end": None})
            case Connected():
                if self.gaps:
                    self.gaps[-1]["end"] = item.received
            case StateLost():
                self.undecodable.append(item.reason)
            case _:
                self.messages["", type(item).__name__] += 1
        return (item,)


async def _summarize(files: list[Path], json: bool) -> None:
    summary, tables, books = Summary(), TableApplier(), _books()
    console = Terminal(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    try:
        with (
            Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress,
            ExitStack() as opened,
        ):
            recording = Replay(*(_opened(file, progress, opened) for file in files))
            async with Pipeline.create(recording, Decoder(), summary, tables, *books) as pipeline:
                pipeline.start()
                await pipeline.wait()
    finally:  # of a damaged recording: what was good before the damage
        if summary.times:
            report = _print_json if json else _print_report
            report(summary, tables, [book for merger in books for book in merger.books.values()])


def _opened(file: Path, progress: Progress, opened: ExitStack) -> Any:
    """The file, its reading shown by ``progress``; where it cannot be opened, its path: Replay says so in its turn."""
    try:
        return opened.enter_context(progress.open(file, "rb", description=file.name))
    except OSError:
        return file


def _print_report(summary: Summary, tables: TableApplier, books: list[OrderBook]) -> None:
    terminal = Terminal()
    start, end = summary.times[0], summary.times[-1]
    total = summary.messages.total() + len(summary.undecodable)
    terminal.print(f"{total:,} messages in {(end - start) / 1e9:,.3f} s, from {to_iso(start)} to {to_iso(end)}\n")
    counts = table("tables", "table", "action", "messages", "rows", right=("messages", "rows"))
    for key, messages in sorted(summary.messages.items()):
        rows = f"{summary.rows[key]:,}" if key in summary.rows else ""
        counts.add_row(key[0] or "(answers)", key[1], f"{messages:,}", rows)
    terminal.print(counts, "", sep="\n")
    if books:
        terminal.print(tops(books, terminal.width), "", sep="\n")
    for gap in summary.gaps:
        lasted = "to the end" if gap["end"] is None else f"for {(gap['end'] - (gap['start'] or 0)) / 1e9:,.3f} s"
        terminal.print(f"disconnected at {to_iso(gap['start'] or 0)}, {lasted}")
    for reason in (*summary.undecodable, *(f"stale at the end: {reason}" for reason in tables.stale.values())):
        terminal.print(reason, soft_wrap=True)


def _print_json(summary: Summary, tables: TableApplier, books: list[OrderBook]) -> None:
    """One object; times are ns since the epoch, as ``received`` everywhere."""
    counts: dict[str, dict[str, Any]] = defaultdict(dict)
    answers = {}
    for (name, action), messages in summary.messages.items():
        if name:
            counts[name][action] = {"messages": messages, "rows": summary.rows[name, action]}
        else:
            answers[action] = messages
    fields = ("symbol", "best_bid", "best_ask", "stale", "timestamp")
    report = {
        "start": summary.times[0], "end": summary.times[-1], "tables": counts, "answers": answers,
        "gaps": summary.gaps, "undecodable": summary.undecodable, "stale": tables.stale,
        "books": [
            {field: getattr(book, field) for field in fields} | {"bids": len(book.bids), "asks": len(book.asks)}
            for book in books
        ],
    }  # fmt: skip
    print(msgspec.json.encode(report).decode())
