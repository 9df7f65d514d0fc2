"""The exchange without its network: markets, their order flow, their tables, and the clock that drives them.

Nothing here waits or does I/O. Time moves by `advance_to`; all that is due by then happens in the order of its time.
The same seed, start time and arguments give the same messages, byte by byte, however time is cut into steps.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from random import Random
from time import perf_counter
from typing import TypeAlias

from .accounts import Account, Accounts
from .flow import OrderFlow
from .instruments import INSTRUMENTS
from .market import Market
from .tables import MINUTE, Feed, MarketTables, Tables, previous_funding

__all__ = ["Simulation"]

SECOND = 1_000_000_000
MARK_INTERVAL = 5 * SECOND
WARM_UP_EVENTS = 5000

Due: TypeAlias = tuple[int, int, Callable[[int], int | None]]


class Simulation:
    """Markets that trade by themselves. ``start_time``: ns since the epoch; for the others see `open_exchange`.

    ``markets``: the `Market` of each symbol. ``feed``: who is subscribed to what. ``tables``: what partials are made
    of. ``now``: ns, the time up to which everything has happened. ``accounts``: those who trade, a sequence of
    `Account`; see `open_account`.
    """

    def __init__(
        self,
        symbols: Iterable[str],
        *,
        seed: int | str,
        start_time: int,
        rate: float,
        levels: int | None,
        connections: Callable[[], int] = lambda: 0,
    ) -> None:
        if isinstance(symbols, str):
            raise ValueError(f"symbols is {symbols!r}: it must be a list of symbols, such as ['XBTUSD']")
        symbols = list(dict.fromkeys(symbols))
        unknown = [symbol for symbol in symbols if symbol not in INSTRUMENTS]
        if unknown or not symbols:
            raise ValueError(f"symbols: {', '.join(unknown) or 'none'}; the exchange lists {', '.join(INSTRUMENTS)}")
        if not isinstance(rate, int | float) or not 0 <= rate < math.inf:
            raise ValueError(f"rate is {rate!r}: it must be a number of events a second, 0 for none")
        if levels is not None and (not isinstance(levels, int) or levels < 0):
            raise ValueError(f"levels is {levels!r}: it must be a whole number, and not negative")
        if levels == 0 and rate:
            raise ValueError(f"levels is 0 and rate is {rate}: an empty book has no order flow; say rate=0, too")
        self.feed = Feed()
        self.markets: dict[str, Market] = {}
        self._advancing = False
        self._due: list[Due] = []
        self._number = count()

        # It begins a little earlier, so that the first client finds trades, bars and figures of the day.
        warm_up = MINUTE + start_time % MINUTE
        if rate:
            warm_up = min(warm_up, int(WARM_UP_EVENTS / rate * SECOND))
        self.now = start_time - warm_up

        activity = sum(INSTRUMENTS[symbol].activity for symbol in symbols)
        flows = []
        market_tables: dict[str, MarketTables] = {}
        for symbol in symbols:
            instrument = INSTRUMENTS[symbol]
            market = self.markets[symbol] = Market(instrument, self.time, Random(f"{seed}:{symbol}:ids"))
            flow = OrderFlow(
                market,
                Random(f"{seed}:{symbol}:flow"),
                rate=rate * instrument.activity / activity,
                levels=instrument.levels if levels is None else levels,
            )
            flow.fill_book()
            flows.append(flow)
            market_tables[symbol] = MarketTables(
                market, self.feed, Random(f"{seed}:{symbol}:tables"), self._xbt_price, self.now
            )
        self.tables = Tables(self.feed, market_tables, connections, self.now)
        self.accounts = Accounts(self, Random(f"{seed}:accounts"))

        # At equal times bars close first: a trade on the minute belongs to the next one.
        self.schedule(self.now // MINUTE * MINUTE + MINUTE, self._minute)
        self.schedule(self.now // MARK_INTERVAL * MARK_INTERVAL + MARK_INTERVAL, self._mark)
        if rate:
            for flow in flows:
                self.schedule(flow.next_time(self.now), flow.step)
        self.advance_to(start_time)

    def time(self) -> int:
        """The time (ns) of what happens now."""
        return self.now

    @property
    def next_time(self) -> int:
        """When (ns) the next thing happens by itself."""
        return self._due[0][0]

    def advance_to(self, time: int, seconds: float = math.inf) -> bool:
        """Let everything happen that is due until ``time`` (ns), but work for about ``seconds`` at most; whether it got
        there.

        A time that has passed is no error, and changes nothing.
        """
        due = self._due
        stop = perf_counter() + seconds
        self._advancing = True
        try:
            while due[0][0] <= time:
                self.now, number, happen = heapq.heappop(due)
                again = happen(self.now)
                if again is not None:
                    heapq.heappush(due, (again, number, happen))
                if perf_counter() >= stop:
                    return False
        finally:
            self._advancing = False
        self.now = max(self.now, time)
        return True

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` of the exchange's time pass at once. Synchronous: clients get what came of it when the
        caller next awaits.

        Too many seconds in one step fill a client's queue, which cuts it off: go in smaller steps, and await
        `Exchange.settled` after each.
        """
        if not 0 <= seconds < math.inf:
            raise ValueError(f"cannot advance by {seconds} seconds: time only goes forward, a step at a time")
        self.advance_to(self.now + round(seconds * SECOND))

    def open_account(
        self,
        deposits: Mapping[str, int] | None = None,
        *,
        api_key: str | None = None,
        api_secret: str | None = None,
    ) -> Account:
        """Open an account that can trade, and that clients can sign in to with its key and secret.

        ``deposits``: what it begins with, by currency, in the smallest units (default: one XBT, 100_000_000 XBt, and
        100,000 USDT, 100_000_000_000 USDt). ``api_key``, ``api_secret``: drawn at random, from the seed, where they are
        not given. Raises ValueError for deposits that are no mapping, a currency that nothing is settled in, an amount
        that is not a positive int, and a key or secret that is no text of printable ASCII characters, or is that of
        another account.
        """
        return self.accounts.open(deposits, api_key, api_secret)

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """No time passes within: what is done happens at one moment, with nothing in between."""
        advancing, self._advancing = self._advancing, True
        try:
            yield
        finally:
            self._advancing = advancing

    def schedule(self, time: int, happen: Callable[[int], int | None]) -> Due:
        """Have ``happen`` called at ``time`` (ns), with that time. It returns when it is to be called again, or None.

        At equal times, what was scheduled first comes first. Returns what `unschedule` takes.
        """
        due = time, next(self._number), happen
        heapq.heappush(self._due, due)
        return due

    def unschedule(self, due: Due) -> None:
        """Have something not happen; nothing where it has happened."""
        if due in self._due:
            self._due.remove(due)
            heapq.heapify(self._due)

    def _minute(self, now: int) -> int:
        self.tables.on_minute(now)
        if now == previous_funding(now):
            self.accounts.on_funding(now)
        return now + MINUTE

    def _mark(self, now: int) -> int:
        self.tables.on_mark(now)
        self.accounts.on_mark(now)
        return now + MARK_INTERVAL

    def _xbt_price(self) -> float:
        """What an XBT is worth in dollars, for the notional values of quanto contracts."""
        market = self.markets.get("XBTUSD")
        best = market.engine.best_bid if market is not None else None
        return INSTRUMENTS["XBTUSD"].initial_price if market is None or best is None else market.instrument.price(best)
