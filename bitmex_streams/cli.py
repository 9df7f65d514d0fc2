"""The command line: `watch` a feed, serve the embedded `exchange`, tell what is in a recording (`replay`).

All of it is pipelines, and nothing here holds one up. The view on a terminal reads the live books and tables ten times
a second, and learns of the rest by a `latest` tap; lines for a pipe are written in a thread, because a reader that
stalls must not stall the socket.

A server has to be there when a `watch` of it begins: a URL with a slip in it must not be tried for ever. One that goes
away later is waited for.

Exit status: 0; 1 after an error; 2 for wrong arguments; 130 after Ctrl-C and 143 after SIGTERM.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, nullcontext
from difflib import get_close_matches
from functools import partial
from getpass import getpass
from io import TextIOWrapper
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
    ConnectionFailed,
    Decoder,
    Disconnected,
    Fill,
    FillsMissing,
    MarginState,
    Operator,
    OrderBook,
    OrderBookMerger,
    OrderState,
    Pipeline,
    Position,
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
from .ahead import ABANDON
from .auth import Credentials
from .exchange import DEFAULT_SYMBOLS, open_exchange
from .exchange.demo import DEMO_API_KEY, DEMO_API_SECRET, open_demo_account
from .protocol import PRIVATE_TABLES, PUBLIC_TABLES, check_topic
from .terminal import AccountView, Terminal, View, table, tops
from .timestamps import to_iso
from .transport import TransportFactory, WebsocketTransport

__all__ = ["app"]

DEFAULT_TOPICS = ("orderBookL2:XBTUSD", "trade:XBTUSD")
REFRESH_SECONDS = 0.1
ACCOUNT_KINDS: dict[type, str] = {
    OrderState: "order", Fill: "execution", FillsMissing: "execution", Position: "position", MarginState: "margin",
}  # fmt: skip
"""The items of an account, and the tables that they are made of."""
ACCOUNT_TABLES = tuple(dict.fromkeys(ACCOUNT_KINDS.values()))

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
    if isinstance(sys.stdout, TextIOWrapper):  # what its encoding does not have is no reason to fail
        sys.stdout.reconfigure(errors="replace")


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
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="The API key of an account on the network, to see that, too  [default: $BITMEX_API_KEY, where no "
            "topics are given, or private ones]. Its secret is taken from $BITMEX_API_SECRET, or asked for: there is "
            "no option for it, for everybody on this computer can read a program's options.",
        ),
    ] = None,
    json: JSON = False,
) -> None:
    """Show books, trades and other tables as they change, and an account: a live view on a terminal, JSON in a pipe.

    The embedded exchange has an account to look at.
    """
    if replay and network:
        raise _wrong("a recording is no network: give one of --network and --replay", "--network")
    if speed is not None and not replay:
        raise _wrong("only a recording has a speed: give --replay FILE too", "--speed")
    if api_key is not None:
        if not network:
            which = "a recording" if replay else "the embedded exchange, which has an account of its own,"
            raise _wrong(f"{which} takes no key: give --network too", "--api-key")
        api_key = api_key.strip()
        if not api_key:
            raise _wrong("it is empty: leave it out to see no account", "--api-key")
    terminal = None if json or sys.stdout is None or not sys.stdout.isatty() else Terminal()
    key = api_key or (os.environ.get("BITMEX_API_KEY", "").strip() if network else "")
    wanted = _checked(topics or (() if replay else DEFAULT_TOPICS), private=not network or bool(key))
    asked_for = bool(api_key or not topics or _tables_of(wanted) & PRIVATE_TABLES)
    account = AccountView() if asked_for and not replay and (key or not network) else None
    subscribed = _with_account(wanted) if account else wanted
    source: Source | None = None
    try:
        if replay:
            source = Replay(*replay, speed=1.0 if speed is None and terminal else speed)
        elif network:
            source = _connection(network, subscribed)
    except ValueError as error:
        raise _wrong(str(error), "--speed" if replay else "--network") from None
    if network and account:  # when all else is right: now the secret may be asked for
        source = _connection(network, subscribed, key, _secret_of(key))
    opened: AbstractAsyncContextManager[Any] = nullcontext(source)
    if source is None:
        for symbol in (topic.partition(":")[2] for topic in wanted):
            if symbol and symbol not in DEFAULT_SYMBOLS:
                raise _wrong(f"the embedded exchange has no {symbol!r}: it lists {', '.join(DEFAULT_SYMBOLS)}", "TOPIC")
        opened = _embedded(subscribed, signed_in=account is not None)
    _run(partial(_watch, opened, wanted, account, terminal))


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
            raise _wrong(f"{name} is a table of an account: give --api-key, or set BITMEX_API_KEY", "TOPIC")
        close = get_close_matches(name.lower(), tables, n=1, cutoff=0.5)
        known = ", ".join(sorted(tables.values()))
        hint = f"did you mean {tables[close[0]]}{colon}{symbol}?" if close else f"there are {known}"
        raise _wrong(f"there is no table {name!r}: {hint}", "TOPIC")
    return tuple(dict.fromkeys(topics))


def _with_account(topics: tuple[str, ...]) -> tuple[str, ...]:
    """The topics, and those of the account's tables that none of them names."""
    return *topics, *(name for name in ACCOUNT_TABLES if name not in _tables_of(topics))


def _tables_of(topics: Iterable[str]) -> frozenset[str]:
    return frozenset(topic.partition(":")[0] for topic in topics)


def _connection(
    network: str, topics: tuple[str, ...], api_key: str | None = None, api_secret: str | None = None
) -> Connection:
    return Connection(
        network, subscribe=topics, api_key=api_key, api_secret=api_secret, transport=_there_at_first()
    )


def _there_at_first() -> TransportFactory:
    """Makes transports; until one of them has connected, whatever keeps them from it is final."""
    connected = False

    class ThereAtFirst(WebsocketTransport):
        async def connect(self, nursery: trio.Nursery) -> None:
            nonlocal connected
            try:
                await super().connect(nursery)
            except ConnectionFailed as failed:
                failed.final = failed.final or not connected
                raise
            connected = True

    return ThereAtFirst


def _secret_of(api_key: str) -> str:
    """The secret of a key, which is not shown: from the environment, or whoever sits at the terminal."""
    secret = os.environ.get("BITMEX_API_SECRET", "").strip()
    if not secret:
        if sys.stdin is None or not sys.stdin.isatty():
            raise _wrong("its secret is missing: set BITMEX_API_SECRET (there is no terminal to ask on)", "--api-key")
        secret = _asked_for("API secret (is not shown): ").strip()
        if not secret:
            raise _wrong("no secret was given", "--api-key")
    try:
        Credentials(api_key, secret)
    except ValueError as error:
        raise _wrong(str(error), "--api-key") from None
    return secret


def _asked_for(prompt: str) -> str:
    """What is typed at the terminal, unseen; "" for Ctrl-D. After a signal, too, the terminal shows what is typed."""

    def exit(number: int, _: Any) -> None:
        print(file=sys.stderr)
        raise typer.Exit(128 + number)

    before = {number: signal.signal(number, exit) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return getpass(prompt)
    except EOFError:
        return ""
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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


class Shown(Operator):
    """Without the rows of the account's tables that were not asked for: its own items tell of them. Marks pass."""

    def __init__(self, hidden: Collection[str]) -> None:
        self._hidden = hidden

    def process(self, item: Any) -> Iterable[Any]:
        hidden = type(item) is TableUpdate and item.table in self._hidden and item.action != "stale"
        return () if hidden else (item,)


class Interruption(msgspec.Struct, frozen=True):
    """What lines of JSON tell of a connection: that it was ``disconnected``, or is ``connected`` again."""

    action: str
    received: int
    code: int | None = None
    reason: str = ""


class Interruptions(Operator):
    """Tells, ahead of each mark that says so, that the connection was lost, and that it stands again."""

    lost = False

    def process(self, item: Any) -> Iterable[Any]:
        if type(item) is Disconnected:
            self.lost = True
            return Interruption("disconnected", item.received, item.code, item.reason), item
        if type(item) is Connected and self.lost:
            self.lost = False
            return Interruption("connected", item.received), item
        return (item,)


async def _watch(
    opened: AbstractAsyncContextManager[Any],
    topics: tuple[str, ...],
    account: AccountView | None,
    terminal: Terminal | None,
) -> None:
    decoder, tables, books = Decoder(), TableApplier(), _books()
    hidden = frozenset(ACCOUNT_TABLES) - _tables_of(topics) if account else frozenset()
    narrow = TopicFilter(_with_account(topics) if account else topics)
    sections = account.sections if account else ()
    view: View | None = None
    ended = False
    try:
        async with (
            opened as feed,
            Pipeline.create(
                feed, decoder, narrow, Interruptions(), tables, *sections, *books, Shown(hidden)
            ) as pipeline,
        ):
            if terminal is None:
                written = await _write_lines(pipeline.tap())
                if not written and topics:
                    print(f"bitmex-streams: nothing came of {', '.join(topics)}", file=sys.stderr)
            else:
                view = View(feed, tables, books, account, hidden)
                await _show(view, pipeline.tap(decoder, overflow="latest", key=type), terminal)
        ended = True
    except Exception:
        ended = True
        raise
    finally:
        if terminal is not None and view is not None:
            if ended:
                view.end()
            if (last := view.draw(*terminal.size) if ended else view.drawn) and view.begun:
                terminal.print(last)


@asynccontextmanager
async def _embedded(topics: tuple[str, ...], signed_in: bool) -> AsyncIterator[Connection]:
    async with open_exchange(rate=60.0) as exchange:
        open_demo_account(exchange)
        key, secret = (DEMO_API_KEY, DEMO_API_SECRET) if signed_in else (None, None)
        yield Connection(exchange.url, subscribe=topics, api_key=key, api_secret=secret)


async def _show(view: View, news: Tap, terminal: Terminal) -> None:
    """Redraw until the stream ends."""
    with news, Live(console=terminal, screen=True, auto_refresh=False) as live:
        while view.take(news):
            # In a thread: a terminal that is slow, or held by Ctrl-S, must not hold up the stream.
            await trio.to_thread.run_sync(partial(live.update, view.draw(*terminal.size), refresh=True))
            await trio.sleep(REFRESH_SECONDS)


async def _write_lines(items: Tap) -> bool:
    """One JSON object a line for each item; all that waits goes in one write. Returns whether any was of a table."""
    written = False
    async for item in items:
        waiting = [item]
        try:
            while len(waiting) < 1000:
                waiting.append(items.receive_nowait())
        except (trio.WouldBlock, trio.EndOfChannel):
            pass
        await trio.to_thread.run_sync(_write, b"".join(map(_line, waiting)), **ABANDON)
        written = written or any(type(item) is not Interruption for item in waiting)
    return written


def _line(item: Any) -> bytes:
    table = ACCOUNT_KINDS.get(type(item))
    if table is not None:
        values = {name: getattr(item, name) for name in item.__struct_fields__ if name not in ("row", "source")}
        return msgspec.json.encode({"table": table, **values}) + b"\n"
    if isinstance(item, Interruption):
        line = {"table": None, "action": item.action, "rows": (), "received": item.received}
        how = {} if item.code is None else {"code": item.code, "reason": item.reason}
        return msgspec.json.encode(line | how) + b"\n"
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
            open_demo_account(exchange, seed=options["seed"], trading=options["rate"] > 0)
            demo = f"BITMEX_API_KEY={DEMO_API_KEY} BITMEX_API_SECRET={DEMO_API_SECRET}"
            watching = f"bitmex-streams watch --network {exchange.url}"
            print(exchange.url, flush=True)
            print(f"Until Ctrl-C. To see it, and its demo account:\n{demo} {watching}", file=sys.stderr)
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
    _write(msgspec.json.encode(report) + b"\n")
