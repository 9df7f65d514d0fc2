"""What a terminal shows of an account: the tables of `AccountView`, on the messages of an exchange."""

from io import StringIO
from random import Random

from rich.console import Console

from bitmex_streams import Disconnected, TableApplier, TableMessage
from bitmex_streams.exchange import Simulation
from bitmex_streams.exchange.demo import open_demo_account
from bitmex_streams.terminal import AccountView, View

START = 1_767_225_600_000_000_000  # 2026-01-01T00:00Z
SYMBOLS = ("XBTUSD", "ETHUSD", "XBTUSDT", "SOLUSDT")
KEYS = {"order": ["orderID"], "position": ["account", "symbol"], "margin": ["account", "currency"], "execution": []}


class Followed:
    """A view, and the sections by which it follows an account."""

    def __init__(self):
        self.view = AccountView()
        self.sections = (TableApplier(), *self.view.sections)

    def take(self, *items):
        for section in self.sections:
            items = [told for item in items for told in section.process(item)]

    def load(self, table, rows):
        self.take(TableMessage(table, "partial", rows, START, "x", keys=KEYS[table], filter={}))

    def draw(self, width=100, height=40, watched=()):
        drawn = Console(width=width, file=StringIO(), force_terminal=False)
        drawn.print(*self.view.draw(width, height, watched), sep="\n")
        return drawn.file.getvalue().splitlines()


def an_account(seconds=60):
    exchange = Simulation(SYMBOLS, seed=1, start_time=START, rate=100, levels=40)
    account = open_demo_account(exchange)
    exchange.advance(seconds)
    return account


def followed(account):
    made = Followed()
    made.load("order", list(account.orders.values()))
    made.load("execution", account.executions[-100:])
    made.load("position", list(account.positions.values()))
    made.load("margin", list(account.margins.values()))
    return made


def row_of(lines, *words):
    [row] = [line for line in lines if line.split()[: len(words)] == list(words)]
    return row.split()[len(words):]


def test_amounts_are_in_the_units_that_people_count_in_to_the_last_digit():
    account = an_account()
    lines = followed(account).draw(140)
    for currency, unit, places in (("XBt", "XBT", 8), ("USDt", "USDT", 6)):
        shown = [round(float(cell.replace(",", "")) * 10**places) for cell in row_of(lines, unit)]
        row = account.margins[currency]
        assert shown == [row["walletBalance"], row["marginBalance"], row["availableMargin"]]
    position = account.positions["XBTUSD"]
    net, unit = row_of(lines, "XBTUSD", f"{position['currentQty']:,}")[-2:]
    assert (round(float(net) * 1e8), unit) == (position["realisedPnl"] + position["unrealisedPnl"], "XBT")


def test_it_never_is_larger_than_its_place_and_says_what_it_left_out():
    account = an_account()
    made = followed(account)
    rng = Random(0)
    for _ in range(200):
        width, height = rng.randint(38, 180), rng.randint(8, 60)
        lines = made.draw(width, height)
        assert len(lines) <= height and not any("…" in line for line in lines), (width, height, lines)
        [title] = [line for line in lines if line.startswith("orders")]
        count = sum(line.split()[0] in SYMBOLS and line.split()[1] in ("Buy", "Sell") for line in lines if line)
        total = len(account.orders)
        assert title.split()[1] == f"{count}/{total}" if count < total else "/" not in title


def test_the_watched_symbols_come_first_and_then_the_open_positions():
    account = an_account()
    made = followed(account)
    for symbol in SYMBOLS:
        lines = made.draw(100, 8, {symbol})
        assert [line.split()[0] for line in lines[1:2]] == [symbol]
        assert lines[-3].split()[0] == symbol or symbol not in {row["symbol"] for row in account.orders.values()}


def test_what_a_narrow_place_has_no_room_for_is_left_out_by_its_rank():
    made = followed(an_account())
    heads = [next(line for line in made.draw(width) if line.startswith("positions")) for width in (140, 76, 60, 40)]
    assert [head.split()[1:] for head in heads] == [
        ["size", "entry", "mark", "unrealized", "realized", "P&L"],
        ["size", "entry", "mark", "unrealized", "P&L"],
        ["size", "entry", "mark", "P&L"],
        ["size", "P&L"],
    ]


def test_an_account_without_anything_says_so():
    made, names = Followed(), ("positions", "margin", "orders", "fills")
    assert list(filter(None, made.draw())) == [f"{name}: not known" for name in names]
    for table in KEYS:
        made.load(table, [])
    assert list(filter(None, made.draw())) == [f"{name}: none" for name in names]


def test_a_lost_connection_makes_all_of_it_stale_which_is_told_above_it_where_all_heads_stay():
    made = followed(an_account())
    before = made.draw(38, 14)
    assert not any("STALE" in line for line in before)
    made.take(Disconnected(START, "x"))
    after = made.draw(38, 14)
    assert after[0] == "STALE positions, margin, orders, fills" and len(after) <= 14
    heads = [line.split()[1:] for line in before if line.startswith(("positions", "margin", "fills"))]
    assert heads == [line.split()[1:] for line in after if line.startswith(("positions", "margin", "fills"))]
    assert all(heads)
    for height in range(8, 14):
        assert len(made.draw(38, height)) <= height


def test_fills_that_may_have_been_missed_are_told():
    account = an_account()
    made = followed(account)
    assert not any("missing" in line for line in made.draw())
    made.take(Disconnected(START, "x"))
    made.load("execution", an_account(200).executions[-100:])  # none of which was known
    assert "some fills may be missing" in made.draw()
    assert not any("STALE" in line and "fills" in line for line in made.draw())


def test_the_newest_orders_come_first_also_where_they_were_not_sent_so():
    rows = list(an_account().orders.values())
    rows = [{**row, "timestamp": f"2026-01-01T00:00:{second:02}.000Z"} for second, row in enumerate(rows)]
    Random(1).shuffle(rows)
    made = Followed()
    made.load("order", rows)
    drawn = Console(width=120, file=StringIO(), force_terminal=False)
    drawn.print(View(None, made.sections[0], ()).draw(120, 40))
    times = [word for word in drawn.file.getvalue().split() if word.startswith("2026-01-01T00:00:")]
    assert len(times) == len(rows) > 5 and times == sorted(times, reverse=True)


def test_a_long_text_is_cut_at_the_end_of_its_line_and_what_is_behind_it_left_out():
    rows = [{"id": n, "user": "trader", "message": "to the moon " * 20, "html": "x"} for n in range(3)]
    tables = TableApplier()
    list(tables.process(TableMessage("chat", "partial", rows, START, "x", keys=["id"], filter={})))
    drawn = Console(width=80, file=StringIO(), force_terminal=False)
    drawn.print(View(None, tables, ()).draw(80, 24))
    lines = [line.rstrip() for line in drawn.file.getvalue().splitlines() if "moon" in line]
    assert len(lines) == 3 and all(len(line) <= 80 and line.split()[1] == "trader" for line in lines)
    assert all(len(line) > 70 and line.endswith("…") for line in lines)
