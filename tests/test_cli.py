"""The command line, as its users run it: in processes of its own, in pipes, on a terminal, with signals."""

import contextlib
import fcntl
import gzip
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from pathlib import Path

import pytest

from bitmex_streams.__main__ import main
from bitmex_streams.exchange import Session, Simulation
from bitmex_streams.exchange.demo import DEMO_API_KEY, DEMO_API_SECRET

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("BITMEX_STREAMS_DATA") or ROOT.parent / "shared" / "data")
COMMAND = [sys.executable, "-m", "bitmex_streams"]
START = 1_767_225_600_000_000_000  # 2026-01-01T00:00Z
SECOND = 1_000_000_000
TOPICS = ["orderBookL2:XBTUSD", "trade:XBTUSD", "orderBookL2_25:ETHUSD", "instrument:ETHUSD"]
PATIENCE = 30
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("BITMEX_API_")}
DEMO = {"BITMEX_API_KEY": DEMO_API_KEY, "BITMEX_API_SECRET": DEMO_API_SECRET}


def run(*arguments, code=0, env=None):
    """Run a command to its end, without a terminal; what it wrote to stdout and stderr."""
    ended = subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=ROOT, env={**ENVIRONMENT, **(env or {})}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE,
    )  # fmt: skip
    assert "Traceback" not in ended.stderr, ended.stderr
    assert ended.returncode == code, ended
    return ended.stdout, ended.stderr


@contextlib.contextmanager
def running(*arguments, env=None):
    """A command that runs, its stdout and stderr in pipes."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    environment = {**ENVIRONMENT, **(env or {})}
    with subprocess.Popen([*COMMAND, *map(str, arguments)], cwd=ROOT, env=environment, **pipes) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


class Terminal:
    """A command on a terminal of its own."""

    def __init__(self, *arguments, columns=100, lines=40, env=None):
        self.master, slave = pty.openpty()
        self.name = os.ttyname(slave)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**ENVIRONMENT, "TERM": "xterm-256color", **(env or {})},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that ^C is a Ctrl-C
        )  # fmt: skip
        os.close(slave)
        self.raw = ""

    @property
    def shown(self):
        """What was written, without bold and colors."""
        return re.sub(r"\x1b\[[\d;]*m", "", self.raw)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)

    def read_until(self, seen):
        """Read until ``seen(shown)`` or the end of the command; whether it was seen."""
        deadline = time.monotonic() + PATIENCE
        while not seen(self.shown):
            assert time.monotonic() < deadline, self.shown[-5000:]
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    data = os.read(self.master, 65536)
                except OSError:  # EIO: the other side is closed
                    data = b""
                if not data:
                    return False
                self.raw += data.decode(errors="replace")
        return True

    def end(self):
        """Read to the end; the exit status."""
        self.read_until(lambda shown: False)
        return self.process.wait(PATIENCE)


# --- recordings of the exchange, in the archive format ---


class Recorded:
    """What an exchange says to one client: ``lines`` of (time in ns, text), the ``simulation`` as it is in the end."""

    def __init__(self):
        self.simulation = Simulation(["XBTUSD", "ETHUSD"], seed=7, start_time=START, rate=200, levels=30)
        self.lines = []
        self.connect()

    def connect(self):
        self.session = Session(self.simulation.feed, self.simulation.tables, self._write)
        self.session.welcome(self.simulation.now, 39)
        self.session.receive(json.dumps({"op": "subscribe", "args": TOPICS}))

    def disconnect(self):
        self.session.close()
        self.lines.append((self.simulation.now, None))

    def go_on(self, seconds):
        for _ in range(seconds * 10):
            self.simulation.advance(0.1)

    def _write(self, text):
        self.lines.append((self.simulation.now // 100 * 100, text))  # as exact as the format

    @property
    def messages(self):
        return [json.loads(text) for _, text in self.lines if text is not None]

    def bytes(self):
        return "".join(_archived(received, text) for received, text in self.lines).encode()

    def top(self, symbol):
        market = self.simulation.markets[symbol]
        return [float(market.instrument.price(ticks)) for ticks in (market.engine.best_bid, market.engine.best_ask)]


def _archived(received, text):
    if text is None:
        return "\n"
    seconds, fraction = divmod(received, SECOND)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{fraction // 100:07d}Z {text}\n"


@pytest.fixture(scope="module")
def recorded():
    made = Recorded()
    made.go_on(10)
    return made


@pytest.fixture(scope="module")
def recording(recorded, tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "a.ndjson.gz"
    path.write_bytes(gzip.compress(recorded.bytes()))
    return path


# --- replay ---


def test_replay_counts_messages_and_rows_and_ends_with_the_books_of_the_exchange(recorded, recording):
    out, err = run("replay", "--json", recording)
    assert err == ""
    report = json.loads(out)
    messages, rows = Counter(), Counter()
    for message in recorded.messages:
        if "table" in message:
            messages[message["table"], message["action"]] += 1
            rows[message["table"], message["action"]] += len(message["data"])
    counted = {(table, action): n for table, actions in report["tables"].items() for action, n in actions.items()}
    assert {key: n["messages"] for key, n in counted.items()} == messages
    assert {key: n["rows"] for key, n in counted.items()} == rows
    assert report["answers"] == {"Welcome": 1, "Subscribed": len(TOPICS)}
    assert (report["start"], report["end"]) == (recorded.lines[0][0], recorded.lines[-1][0])
    assert (report["gaps"], report["undecodable"], report["stale"]) == ([], [], {})
    tops = {book["symbol"]: [book["best_bid"][0], book["best_ask"][0]] for book in report["books"]}
    assert tops == {symbol: recorded.top(symbol) for symbol in ("XBTUSD", "ETHUSD")}


@pytest.mark.parametrize("name", ["bitmex-2021-07-22.ws.gz", "bitmex-2021-07-22.ndjson.gz"])
def test_replay_tells_what_is_in_a_real_recording(name):
    path = DATA / "captures" / name
    if not path.exists():
        pytest.skip(f"no recording at {path}: set BITMEX_STREAMS_DATA to where the captures are")
    report = json.loads(run("replay", "--json", path)[0])
    expected = json.loads((path.parent / "bitmex-2021-07-22.expected.json").read_text())
    counted = {
        table: {action: [n["messages"], n["rows"]] for action, n in actions.items()}
        for table, actions in report["tables"].items()
    }
    assert counted == expected["messages"]
    keys = ("bids", "asks", "best_bid", "best_ask")
    tops = {book["symbol"]: [book[key] for key in keys] for book in report["books"]}
    assert tops == {symbol: [book[key] for key in keys] for symbol, book in expected["books"].items()}


def test_replay_prints_tables_that_fit_whatever_they_are_piped_into(recorded, recording):
    out, _ = run("replay", recording)
    assert f"{len(recorded.messages):,} messages in" in out
    assert re.search(r"orderBookL2_25 +update +[\d,]+ +[\d,]+", out)
    bid, ask = (f"{price:,.2f}" for price in recorded.top("ETHUSD"))
    assert re.search(rf"ETHUSD .* {re.escape(bid)} +{re.escape(ask)} ", out), (bid, ask, out)
    assert "…" not in out


def test_replay_tells_gaps_and_what_could_not_be_decoded(tmp_path):
    made = Recorded()
    made.go_on(2)
    made.disconnect()
    made.go_on(3)
    made.connect()
    made.go_on(1)
    made.lines.append((made.simulation.now, '{"table":"trade","action":"insert","data":7}'))
    path = tmp_path / "gap.ndjson"
    path.write_bytes(made.bytes())
    out, _ = run("replay", path)
    assert re.search(r"disconnected at 2026-01-01T00:00:0[12]\S+Z, for 3\.\d+ s", out), out
    assert f"gap.ndjson, line {len(made.lines)}: cannot be decoded" in out
    assert "stale at the end: " in out
    report = json.loads(run("replay", "--json", path)[0])
    assert [gap["end"] - gap["start"] for gap in report["gaps"]] == [pytest.approx(3 * SECOND, abs=0.3 * SECOND)]
    assert list(report["stale"]) == ["trade:XBTUSD"]


def test_replay_of_a_damaged_recording_tells_what_was_good_and_then_what_is_wrong(recorded, recording, tmp_path):
    damaged = tmp_path / "damaged.gz"
    damaged.write_bytes(recording.read_bytes()[:-2000])
    out, err = run("replay", "--json", damaged, code=1)
    counted = json.loads(out)["tables"]["orderBookL2"]["update"]["messages"]
    assert 0 < counted <= sum(message.get("action") == "update" for message in recorded.messages)
    assert re.fullmatch(rf"bitmex-streams: {re.escape(str(damaged))}.* line \d+.*truncated.*\n", err), err


def test_replay_of_several_files_goes_as_far_as_they_are_there(recorded, recording, tmp_path):
    lines = recorded.bytes().splitlines(keepends=True)
    first, second = tmp_path / "1.ndjson", tmp_path / "2.ndjson.gz"
    first.write_bytes(b"".join(lines[:100]))
    second.write_bytes(gzip.compress(b"".join(lines[100:])))
    assert run("replay", "--json", first, second) == run("replay", "--json", recording)
    out, err = run("replay", "--json", first, tmp_path / "3", second, code=1)
    assert json.loads(out)["end"] == recorded.lines[99][0]
    assert err == f"bitmex-streams: {tmp_path / '3'} cannot be read: No such file or directory\n"


def test_replay_shows_a_progress_bar_on_a_terminal_and_takes_it_away(recording):
    with Terminal("replay", recording) as terminal:
        assert terminal.end() == 0
    before, _, after = terminal.shown.partition(" messages in ")
    assert "a.ndjson.gz" in before and "kB" in before
    assert "order books" in after and "a.ndjson.gz" not in after


# --- watch, in a pipe ---


def test_watch_in_a_pipe_gives_each_change_as_a_line_of_json_in_order(recorded, recording):
    out, err = run("watch", "--replay", recording)
    assert err == ""
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["table"] for line in lines] == [m["table"] for m in recorded.messages if "table" in m]
    assert [line["received"] for line in lines] == sorted(line["received"] for line in lines)
    last = {line["symbol"]: line for line in lines if "best_bid" in line}
    assert {symbol: [line["best_bid"][0], line["best_ask"][0]] for symbol, line in last.items()} == {
        symbol: recorded.top(symbol) for symbol in ("XBTUSD", "ETHUSD")
    }
    assert set(last["XBTUSD"]) == {"table", "symbol", "best_bid", "best_ask", "stale", "timestamp", "received"}
    trades = [row for line in lines if line["table"] == "trade" for row in line["rows"]]
    assert trades == [row for m in recorded.messages if m.get("table") == "trade" for row in m["data"]]


def test_watch_narrows_a_recording_to_the_topics_given(recording):
    def watched(*topics):
        lines = map(json.loads, run("watch", "--replay", recording, *topics)[0].splitlines())
        return {(line["table"], line["symbol"] if "symbol" in line else line["rows"][0]["symbol"]) for line in lines}

    assert watched("trade", "orderBookL2_25:ETHUSD") == {("trade", "XBTUSD"), ("orderBookL2_25", "ETHUSD")}
    assert watched("trade:ETHUSD", "instrument") == {("instrument", "ETHUSD")}


def test_watch_tells_when_a_recording_has_nothing_of_the_topics(recording):
    assert run("watch", "--replay", recording, "trade:NOPE") == ("", "bitmex-streams: nothing came of trade:NOPE\n")


def test_watch_marks_what_is_stale_after_a_disconnect(tmp_path):
    made = Recorded()
    made.disconnect()
    path = tmp_path / "lost.ndjson"
    path.write_bytes(made.bytes() + b"\n")
    lines = [json.loads(line) for line in run("watch", "--replay", path)[0].splitlines()]
    assert [line["action"] for line in lines if line["table"] is None] == ["disconnected"]
    assert {line["symbol"] for line in lines if line.get("stale")} == {"XBTUSD", "ETHUSD"}
    assert {line["table"] for line in lines if line.get("action") == "stale"} == {"trade", "instrument"}


def test_watch_of_a_damaged_recording_gives_the_good_lines_and_then_the_error(recorded, recording, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.write_bytes(recorded.bytes() + _archived(START, '{"table":"tra').encode())
    out, err = run("watch", "--replay", damaged, code=1)
    assert out == run("watch", "--replay", recording)[0]
    assert err.startswith(f"bitmex-streams: {damaged}, line {len(recorded.lines) + 1} ")


def test_watch_without_arguments_shows_a_moving_book_of_the_embedded_exchange():
    since = time.monotonic()
    with running("watch") as watching:
        tops = set()
        tables = set()
        while len(tops) < 3 or "trade" not in tables:
            line = json.loads(watching.stdout.readline())
            tables.add(line["table"])
            if line["table"] == "orderBookL2":
                assert line["symbol"] == "XBTUSD" and line["best_bid"] < line["best_ask"] and not line["stale"]
                tops.add((*line["best_bid"], *line["best_ask"]))
    assert time.monotonic() - since < 10


@pytest.mark.parametrize("command", [["watch"], ["exchange"]], ids=" ".join)
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_a_signal_ends_a_command_without_a_word(command, number, code):
    with running(*command) as process:
        assert process.stdout.readline()
        since = time.monotonic()
        process.send_signal(number)
        _, err = process.communicate(timeout=PATIENCE)
        assert process.returncode == code
        assert err == "" or (err.startswith("Until Ctrl-C") and err.count("\n") == 2)
        assert time.monotonic() - since < 5


def test_ctrl_c_ends_a_watch_whose_reader_has_stalled(recording):
    with running("watch", "--replay", recording) as process:  # which makes far more than a pipe holds
        assert process.stdout.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == 130


@pytest.mark.parametrize("count", [0, 3])
def test_a_pipe_that_closes_ends_a_watch_without_a_word(count):
    with running("watch") as process:
        for _ in range(count):
            assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(PATIENCE) == 0


def test_a_pipe_that_closes_ends_a_replay_without_a_word(recording):
    read, write = os.pipe()
    os.close(read)
    command = [*COMMAND, "replay", str(recording)]
    ended = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, "")


# --- exchange, and watch over a network ---


@contextlib.contextmanager
def going_away(*options):
    """An exchange that can be stopped, and started again at the same port: ``(url, stop, start)``."""
    with contextlib.ExitStack() as stack:
        exchanges = [stack.enter_context(running("exchange", *options))]
        url = exchanges[0].stdout.readline().strip()
        port = url.rpartition(":")[2].partition("/")[0]

        def stop():
            exchanges[-1].send_signal(signal.SIGINT)
            assert exchanges[-1].wait(PATIENCE) == 130

        def start():
            exchanges.append(stack.enter_context(running("exchange", "--port", port, *options)))
            assert exchanges[-1].stdout.readline().strip() == url

        yield url, stop, start


def test_watch_waits_for_an_exchange_that_goes_away_and_tells_in_between_what_is_stale():
    with going_away("--symbols", "ETHUSD,SOLUSDT", "--seed", "night", "--rate", "100") as (url, stop, start):
        assert re.fullmatch(r"ws://127\.0\.0\.1:\d+/realtime", url)
        with running("watch", "--network", url, "orderBookL2_25", "trade:ETHUSD") as watching:
            lines = read_lines(watching, lambda lines: len(lines) >= 20)
            seen = {(line["table"], line.get("symbol")) for line in lines}
            assert seen == {("orderBookL2_25", "ETHUSD"), ("orderBookL2_25", "SOLUSDT"), ("trade", None)}
            stop()
            lines = read_lines(watching, lambda lines: stale(lines) == 3)
            assert all(stale([line]) for line in lines[-3:])
            assert (lines[-4]["table"], lines[-4]["action"], lines[-4]["code"]) == (None, "disconnected", 1001)
            start()
            lines = read_lines(watching, lambda lines: len([line for line in lines if "symbol" in line]) >= 10)
            assert (lines[0]["table"], lines[0]["action"]) == (None, "connected")
            assert next(line["action"] for line in lines if line["table"] == "trade") == "partial"
            assert not any(line["stale"] for line in lines if "symbol" in line)
            watching.send_signal(signal.SIGTERM)
            assert watching.wait(PATIENCE) == 143


def stale(lines):
    return sum(bool(line.get("stale")) or line.get("action") == "stale" for line in lines)


def test_watch_on_a_terminal_says_that_it_connects_again_and_goes_on_when_it_has():
    with going_away("--rate", "100") as (url, stop, start), Terminal("watch", "--network", url) as terminal:
        assert terminal.read_until(lambda shown: f"connected to {url}" in shown and "reconnects 0" in shown)
        assert re.search(r"\d messages/s +lag \d+ ms +waiting \d+ +reconnects 0 +resyncs 0", terminal.shown)
        stop()
        assert terminal.read_until(lambda shown: f"disconnected, connecting again: {url}" in shown)
        assert "\x1b[1;31mdisconnected" in terminal.raw  # which is red
        assert terminal.read_until(lambda shown: "XBTUSD  mid" in shown.rpartition("connecting again")[2])
        lost = terminal.shown.rpartition("connecting again")[2]
        assert "STALE" in lost and "stale: orderBookL2:XBTUSD, trade:XBTUSD (" in lost
        start()
        assert terminal.read_until(
            lambda shown: "spread" in between(shown, "reconnects 1") and is_fresh(between(shown, "reconnects 1"))
        )
        os.write(terminal.master, b"\x03")
        assert terminal.end() == 130
    assert is_fresh(last_view(terminal))
    assert f"connected to {url}" in last_view(terminal)


def between(shown, words):
    """What was drawn between the last two of them; "" where there are not two."""
    return shown.split(words)[-2] if shown.count(words) > 1 else ""


def is_fresh(view):
    return "stale" not in view.lower()


def last_view(terminal):
    """What stays when the view is closed; "" where nothing does."""
    return terminal.shown.rpartition("\x1b[?1049l")[2]


def test_what_the_exchange_refuses_is_told_in_its_words():
    with running("exchange", "--symbols", "XBTUSD") as exchange:
        url = exchange.stdout.readline().strip()
        _, err = run("watch", "--network", url, "trade:XBTUSD", "trade:NOSUCH", code=1)
    refusal = "refused to subscribe 'trade:NOSUCH' with status 400: Unknown or expired symbol."
    assert err == f"bitmex-streams: the exchange {refusal}\n"


def test_an_exchange_on_all_addresses_gives_a_url_that_can_be_used():
    options = ["--host", "0.0.0.0", "--symbols", "XBTUSD, ETHUSD", "--speed", "10"]
    with running("exchange", *options) as exchange:
        url = exchange.stdout.readline().strip()
        assert re.fullmatch(r"ws://127\.0\.0\.1:\d+/realtime", url)
        with running("watch", "--network", url, "trade:ETHUSD") as watching:
            assert json.loads(watching.stdout.readline())["table"] == "trade"


def test_the_version_is_told():
    assert re.fullmatch(r"bitmex-streams \d+\.\d+.*\n", run("--version")[0])


def test_a_closed_stdout_gets_a_sentence():
    command = f'exec "{sys.executable}" -m bitmex_streams watch >&-'
    ended = subprocess.run(["sh", "-c", command], cwd=ROOT, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert ended.stderr == "bitmex-streams: there is no standard output to write to: it is closed\n"


def test_a_port_in_use_is_told():
    with running("exchange") as first:
        port = first.stdout.readline().rpartition(":")[2].partition("/")[0]
        out, err = run("exchange", "--port", port, code=1)
        assert out == ""
        assert err == f"bitmex-streams: cannot listen on 127.0.0.1, port {port}: Address already in use\n"


def test_a_refused_connection_is_told_at_once():
    since = time.monotonic()
    _, err = run("watch", "--network", "ws://127.0.0.1:1/realtime", code=1)
    assert err.startswith("bitmex-streams: ") and "ws://127.0.0.1:1/realtime" in err and "refused" in err
    assert time.monotonic() - since < 5


# --- an account ---


ACCOUNT = {"order", "execution", "position", "margin"}


def read_lines(process, until):
    """Lines of JSON, up to the first by which ``until(lines)`` is true."""
    lines = []
    deadline = time.monotonic() + PATIENCE
    while not until(lines):
        assert time.monotonic() < deadline, lines[-20:]
        lines.append(json.loads(process.stdout.readline()))
    return lines


def of(table, lines):
    """What is said of the account in lines of a table; the others hold rows as they were sent."""
    return [line for line in lines if line["table"] == table and "action" not in line]


@contextlib.contextmanager
def an_exchange(*options):
    with running("exchange", *options) as exchange:
        yield exchange, exchange.stdout.readline().strip()


def test_watch_shows_the_demo_account_of_the_embedded_exchange_without_being_asked():
    mainnet = {"BITMEX_API_KEY": "key-of-mainnet", "BITMEX_API_SECRET": "secret-of-mainnet"}  # is of no use here
    with running("watch", env=mainnet) as watching:
        lines = read_lines(watching, lambda lines: {line["table"] for line in lines} >= {*ACCOUNT, "trade"})
    assert all("action" not in line for line in lines if line["table"] in ACCOUNT)
    order, fill, position, margin = (of(table, lines)[0] for table in ("order", "execution", "position", "margin"))
    assert order["status"] == "New" and order["open"] and order["size"] == order["leaves"] and not order["stale"]
    assert order["client_order_id"] in ("XBTUSD-bid", "XBTUSD-ask")
    assert fill["size"] > 0 and fill["price"] > 0 and fill["currency"] in ("XBt", "USDt")
    assert position["net"] == position["realized"] + position["unrealized"] and not position["stale"]
    assert 0 < margin["available_margin"] < margin["wallet_balance"]
    assert not any("row" in line or "source" in line for line in lines)


def test_watch_with_a_key_shows_the_account_as_its_fills_make_it_and_then_stale():
    with an_exchange("--symbols", "XBTUSD", "--rate", "200", "--speed", "4") as (exchange, url):
        key, secret = DEMO["BITMEX_API_KEY"], {"BITMEX_API_SECRET": f" {DEMO_API_SECRET}\n"}
        with running("watch", "--network", url, "trade:XBTUSD", "--api-key", key, env=secret) as watching:
            lines = read_lines(watching, lambda lines: len(of("execution", lines)) >= 20)
            lines += read_lines(watching, lambda lines: len(of("position", lines)) >= 1)
            signed = [fill["size"] * (1 if fill["side"] == "Buy" else -1) for fill in of("execution", lines)]
            sizes = [position["size"] for position in of("position", lines)]
            assert sizes[-1] - sizes[0] == sum(signed) and any(signed)
            exchange.send_signal(signal.SIGINT)
            lost = {*ACCOUNT, "trade"}  # and of what the account has: the last that is known
            last = {"position", "margin"}
            read_lines(
                watching,
                lambda lines: lost == {line["table"] for line in lines if line.get("action") == "stale"}
                and last <= {line["table"] for line in lines if line.get("stale")},
            )


def test_the_exchange_tells_how_to_see_its_demo_account():
    with an_exchange("--rate", "100") as (exchange, url):
        assert exchange.stderr.readline().startswith("Until Ctrl-C")
        words = shlex.split(exchange.stderr.readline())
        env = dict(word.split("=") for word in words[:2])
        assert env == DEMO and words[2:] == ["bitmex-streams", "watch", "--network", url]
        with running(*words[3:], env=env) as watching:
            read_lines(watching, lambda lines: {line["table"] for line in lines} >= {*ACCOUNT, "orderBookL2"})


def test_on_an_exchange_that_stands_still_the_demo_account_does_not_trade():
    with an_exchange("--rate", "0") as (_, url), running("watch", "--network", url, env=DEMO) as watching:
        lines = read_lines(watching, lambda lines: len(of("margin", lines)) == 2)
    assert {line["table"] for line in lines} == {"orderBookL2", "trade", "margin"}


def test_private_topics_that_are_named_are_shown_as_other_tables_are_and_narrow_what_is_followed():
    with running("watch", "order:ETHUSD", "wallet") as watching:
        lines = read_lines(watching, lambda lines: len(of("order", lines)) >= 6 and of("execution", lines))
    assert {line["symbol"] for line in of("order", lines)} == {"ETHUSD"}
    rows = [row for line in lines if line["table"] == "order" and "action" in line for row in line["rows"]]
    assert rows and {row["symbol"] for row in rows} == {"ETHUSD"} and all("orderID" in row for row in rows)
    [wallet] = [line for line in lines if line["table"] == "wallet"]
    assert wallet["action"] == "partial" and {row["currency"] for row in wallet["rows"]} == {"XBt", "USDt"}


@pytest.mark.parametrize("env", [{}, DEMO, {"BITMEX_API_KEY": "of-no-account"}], ids=["no key", "a key", "half a key"])
def test_who_names_public_topics_sees_these_alone_whatever_keys_are_in_the_environment(env):
    with an_exchange("--rate", "100") as (_, url):
        for where in ([], ["--network", url]) if env == DEMO else (["--network", url],):
            with running("watch", *where, "trade", env=env) as watching:
                lines = read_lines(watching, lambda lines: len(lines) >= 10)
            assert {line["table"] for line in lines} == {"trade"}
        with Terminal("watch", "--network", url, "trade", env=env) as terminal:
            assert terminal.read_until(lambda shown: "MinusTick" in shown)
            assert "positions" not in terminal.shown


def test_a_private_topic_signs_in_with_the_key_of_the_environment():
    with an_exchange("--rate", "0") as (_, url), running("watch", "--network", url, "wallet", env=DEMO) as watching:
        lines = read_lines(watching, lambda lines: {"wallet", "margin"} <= {line["table"] for line in lines})
    [wallet] = [line for line in lines if line["table"] == "wallet"]
    assert {row["currency"] for row in wallet["rows"]} == {"XBt", "USDt"}


def test_a_recording_is_watched_whatever_keys_are_in_the_environment(recording):
    assert run("watch", "--replay", recording, env={"BITMEX_API_KEY": "k"}) == run("watch", "--replay", recording)


@pytest.mark.parametrize(
    ("key", "secret", "words"),
    [
        (DEMO_API_KEY, "not-the-secret-of-it", "Signature not valid"),
        ("no-such-key", DEMO_API_SECRET, "Invalid API Key"),
    ],
)
def test_a_key_that_is_refused_is_told_in_the_words_of_the_exchange_without_the_secret(key, secret, words):
    with an_exchange("--rate", "0") as (_, url):
        out, err = run("watch", "--network", url, "--api-key", key, env={"BITMEX_API_SECRET": secret}, code=1)
    assert out == ""
    assert err.startswith("bitmex-streams: ") and url in err and words in err and err.count("\n") == 1
    assert secret not in err


def test_of_a_key_that_is_refused_a_terminal_shows_the_error_alone():
    env = {"BITMEX_API_KEY": "no-such-key", "BITMEX_API_SECRET": DEMO_API_SECRET}
    with an_exchange("--rate", "0") as (_, url), Terminal("watch", "--network", url, env=env) as terminal:
        assert terminal.end() == 1
    last = last_view(terminal)
    assert re.fullmatch(r"(\x1b\S*|\s)*bitmex-streams: .*Invalid API Key.*\s*", last), last


def test_no_secret_is_in_any_output():
    for where in ([], ["--json"]):
        with an_exchange("--rate", "100") as (_, url):
            with Terminal("watch", "--network", url, *where, env=DEMO) as terminal:
                assert terminal.read_until(lambda shown: "margin" in shown and "fee" in shown)
                terminal.process.terminate()
                assert terminal.end() == 143
        assert DEMO_API_SECRET not in terminal.raw and DEMO_API_KEY not in terminal.raw
    for secret in ("with spaces in", "with-ümlaut"):
        options = ["--network", "testnet", "--api-key", "k"]
        out, err = run("watch", *options, env={"BITMEX_API_SECRET": secret}, code=2)
        assert out == "" and "api_secret must be a text of printable ASCII" in err and secret not in err


def test_a_secret_is_asked_for_on_a_terminal_and_not_shown():
    with an_exchange("--rate", "100") as (_, url):
        with Terminal("watch", "--network", url, "--api-key", DEMO_API_KEY) as terminal:
            assert terminal.read_until(lambda shown: "API secret" in shown)
            os.write(terminal.master, f"{DEMO_API_SECRET}\n".encode())
            assert terminal.read_until(lambda shown: "positions" in shown and "XBTUSD" in shown)
            os.write(terminal.master, b"\x03")
            assert terminal.end() == 130
        assert DEMO_API_SECRET not in terminal.raw


def test_sigterm_at_the_prompt_leaves_a_terminal_that_shows_what_is_typed():
    def echoes():
        return bool(termios.tcgetattr(terminal.master)[3] & termios.ECHO)

    with Terminal("watch", "--network", "ws://127.0.0.1:1/realtime", "--api-key", "k") as terminal:
        side = os.open(terminal.name, os.O_RDWR | os.O_NOCTTY)  # or its settings would be gone with the command
        assert terminal.read_until(lambda shown: "API secret" in shown)
        assert not echoes()
        terminal.process.terminate()
        assert terminal.process.wait(PATIENCE) == 143
        assert echoes()
        os.close(side)


@pytest.mark.parametrize(
    ("typed", "code", "words"), [(b"\x03", 130, ""), (b"\x04", 2, "no secret was"), (b"\n", 2, "no secret was")]
)
def test_whoever_gives_no_secret_is_let_go(typed, code, words):
    with Terminal("watch", "--network", "ws://127.0.0.1:1/realtime", "--api-key", "k") as terminal:
        assert terminal.read_until(lambda shown: "API secret" in shown)
        os.write(terminal.master, typed)
        assert terminal.end() == code
    assert words in terminal.shown and "Traceback" not in terminal.shown


# --- wrong arguments ---


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["watch", "orderbook:XBTUSD"], "there is no table 'orderbook': did you mean orderBookL2:XBTUSD?"),
        (["watch", "trade:xbtusd"], "the embedded exchange has no 'xbtusd': it lists XBTUSD, ETHUSD, XBTUSDT, SOLUSDT"),
        (["watch", "Trade"], "did you mean trade?"),
        (["watch", "zzz:XBTUSD"], "there is no table 'zzz': there are affiliate, announcement,"),
        (["watch", "--network", "testnet", "zzz"], "there is no table 'zzz': there are announcement, chat,"),
        (["watch", "trade:", "chat"], "'trade:' is not a topic"),
        (["watch", "--network", "testnet", "margin"], "margin is a table of an account: give --api-key, or set"),
        (["watch", "--api-key", "k"], "the embedded exchange, which has an account of its own, takes no key"),
        (["watch", "--api-key", "k", "--replay", "x"], "a recording takes no key"),
        (["watch", "--api-key", "k", "--network", "moonnet"], "'moonnet' is no network"),
        (["watch", "--api-key", " ", "--network", "testnet"], "it is empty: leave it out to see no account"),
        (["watch", "--api-key", "k", "--network", "testnet"], "its secret is missing: set BITMEX_API_SECRET"),
        (["watch", "--network", "moonnet"], "'moonnet' is no network: say 'mainnet' or 'testnet'"),
        (["watch", "--network", "https://example.com"], "'https://example.com' is not a websocket URL"),
        (["watch", "--network", "testnet", "--replay", "x"], "give one of --network and --replay"),
        (["watch", "--speed", "2"], "only a recording has a speed"),
        (["watch", "--replay", "x", "--speed", "0"], "speed is a positive number"),
        (["exchange", "--symbols", "XBTUSD,DOGE"], "DOGE; the exchange lists XBTUSD"),
        (["exchange", "--port", "70000"], "65535"),
        (["exchange", "--rate", "-1"], "must be a number of events a second"),
        (["replay"], "Missing argument 'FILE...'"),
        (["trade"], "No such command 'trade'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_wrong_argument_gets_a_sentence(arguments, sentence, monkeypatch, capsys):
    """In this process: to start twenty of them takes half a minute."""
    monkeypatch.setattr(sys, "argv", ["bitmex-streams", *arguments])
    for name in DEMO:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err


def test_without_arguments_the_commands_are_listed():
    ended = subprocess.run(COMMAND, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert all(command in ended.stdout + ended.stderr for command in ("watch", "exchange", "replay"))


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra_one_sentence_names_it(missing):
    code = f"import sys; sys.modules[{missing!r}] = None; from bitmex_streams.__main__ import main; main()"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1 and 'pip install "bitmex_streams[cli]"' in ended.stderr


# --- watch, on a terminal ---


def mids(shown):
    return set(re.findall(r"mid ([\d,.]+)", shown))


def test_watch_on_a_terminal_shows_a_ladder_that_moves_and_leaves_the_terminal_as_it_was():
    with Terminal("watch") as terminal:
        assert terminal.read_until(lambda shown: len(mids(shown)) >= 3)
        os.write(terminal.master, b"\x03")
        assert terminal.end() == 130
    shown = terminal.shown
    assert "connected to ws://127.0.0.1:" in shown and "messages/s" in shown
    assert "spread" in shown and "trade" in shown and "MinusTick" in shown
    assert "Traceback" not in shown and "^C" in shown
    assert shown.rindex("\x1b[?1049l") > shown.rindex("\x1b[?1049h")  # the alternate screen was left
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor is back
    assert len(mids(last_view(terminal))) == 1  # the last view stays, as it was
    assert "STALE" not in last_view(terminal) and "connected to ws://" in last_view(terminal)


def test_watch_on_a_terminal_paces_a_recording_and_ends_with_it(recorded, recording):
    with Terminal("watch", "--replay", recording, "--speed", "5") as terminal:
        since = time.monotonic()
        assert terminal.end() == 0
        assert 1.5 < time.monotonic() - since < 10
    last = terminal.shown[terminal.shown.rindex("\x1b[?1049l"):]
    bid, ask = recorded.top("XBTUSD")
    assert f"XBTUSD  mid {(bid + ask) / 2:,}" in last
    assert "ETHUSD  mid" in last and "trade" in last and "instrument" in last


def test_watch_on_a_narrow_terminal_gives_each_book_a_line(recording):
    with Terminal("watch", "--replay", recording, "--speed", "100", columns=60, lines=20) as terminal:
        assert terminal.end() == 0
    last = terminal.shown[terminal.shown.rindex("\x1b[?1049l"):]
    assert "order books" in last and "spread" not in last and "…" not in last.partition("order books")[2]


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (100, 40), (160, 50)])
def test_watch_on_a_terminal_shows_the_account_beside_the_book(columns, lines):
    with Terminal("watch", columns=columns, lines=lines) as terminal:
        number = r"[\d,]+\.\d+"
        rows = [
            rf"XBTUSD +-?[\d,]+ .*[+-]?{number} XBT",  # a position
            rf"XBT +({number} +)+{number} ",  # a margin
            rf"XBTUSD +(Buy|Sell) +{number[:-5]}\S* +500 +\d+ ",  # an order
            r"\d\d:\d\d:\d\d +\w+ +(Buy|Sell) +[\d,]+ +[\d,.]+",  # a fill
        ]
        assert terminal.read_until(lambda shown: all(re.search(row, shown) for row in rows))
        terminal.process.terminate()
        assert terminal.end() == 143
    last = terminal.shown[terminal.shown.rindex("\x1b[?1049l"):]
    assert all(name in last for name in ("positions", "margin", "orders", "fills"))
    account = last.partition("XBTUSD  mid")[2].partition("\ntrade")[0]
    assert "…" not in account
    assert account.count("\n") <= lines - 4


def test_what_is_stale_of_an_account_is_told_and_the_columns_keep_their_names():
    with an_exchange("--rate", "100") as (exchange, url):
        with Terminal("watch", "--network", url, env=DEMO, columns=80, lines=24) as terminal:
            assert terminal.read_until(lambda shown: "positions" in shown and "fills" in shown and " bids " in shown)
            exchange.send_signal(signal.SIGINT)
            stale = "STALE positions, margin, orders, fills"
            assert terminal.read_until(lambda shown: stale in shown)
            terminal.process.terminate()
            assert terminal.end() == 143
    assert stale in last_view(terminal) and "disconnected, connecting again" in last_view(terminal)
    for heads in (r"positions( \d/4)? +size +P&L", r"margin( 1/2)? +wallet ", r"orders \S+ +side +price"):
        assert re.search(heads, last_view(terminal)), heads


def test_private_tables_that_are_named_can_be_read_at_80_columns():
    with Terminal("watch", "order:XBTUSD", "wallet", "margin", columns=80, lines=40) as terminal:
        rows = [
            r"New +XBTUSD +(Buy|Sell) +[\d,.]+ +500 +\d+ ",  # with what is left of it
            r"USDT( +[\d,]+\.\d{6}){2} +0\.000000 ",  # a wallet
            r"XBT( +\d+\.\d{8}){4} ",  # margin: more than the account's view tells
        ]
        assert terminal.read_until(lambda shown: all(re.search(row, shown) for row in rows))
        closed = r"(Canceled|Filled) +XBTUSD +(Buy|Sell) +[\d,.]+ +500 +0 "
        assert terminal.read_until(lambda shown: re.search(closed, shown))
        os.write(terminal.master, b"\x03")
        assert terminal.end() == 130
    assert "…" not in last_view(terminal).partition("messages/s")[2]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_an_encoding_without_a_character_is_no_reason_to_fail(encoding, recording, tmp_path):
    row = {"channelID": 1, "date": "2026-01-01T00:00:00.000Z", "id": 1, "user": "ツ", "message": "日本語 é"}
    text = json.dumps({"table": "chat", "action": "partial", "keys": ["id"], "data": [row]}, ensure_ascii=False)
    path = tmp_path / "chat.ndjson"
    path.write_text(_archived(START, text), encoding="utf-8")
    env = {"PYTHONIOENCODING": encoding}
    with Terminal("watch", "--replay", path, env=env) as terminal:
        assert terminal.end() == 0
    assert "Traceback" not in terminal.shown and "chat" in last_view(terminal) and "?" in last_view(terminal)
    out, err = run("watch", "--replay", path, env=env)  # JSON is UTF-8, whatever the terminal is
    assert err == "" and json.loads(out)["rows"] == [row]
    assert run("replay", "--json", recording, env=env) == run("replay", "--json", recording)


def test_watch_without_a_book_shows_the_newest_rows():
    with Terminal("watch", "quote:XBTUSD", "chat") as terminal:
        assert terminal.read_until(lambda shown: "bidSize" in shown and "chat: no rows" in shown)
        terminal.process.terminate()
        assert terminal.end() == 143
    assert "mid" not in terminal.shown


def test_watch_tells_how_many_rows_do_not_fit():
    with Terminal("watch", "instrument", "chat", lines=10) as terminal:
        assert terminal.read_until(lambda shown: "... 3 more" in shown and "chat: no rows" in shown)


def test_an_error_is_told_below_the_last_view(recorded, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.write_bytes(recorded.bytes() + b"{")
    with Terminal("watch", "--replay", damaged, "--speed", "50") as terminal:
        assert terminal.end() == 1
    last = terminal.shown[terminal.shown.rindex("\x1b[?1049l"):]
    assert "XBTUSD  mid" in last
    assert re.search(rf"bitmex-streams: \S+damaged, line {len(recorded.lines) + 1} ", last)
