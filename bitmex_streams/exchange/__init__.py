"""An exchange of our own that speaks BitMEX's realtime protocol: matching engines, an order flow that drives them, and
a server.

`open_exchange` serves it over a websocket on loopback; `Simulation` is the same without the network.
"""

from .accounts import Account, Accounts, OrderRefused
from .demo import DEMO_API_KEY, DEMO_API_SECRET, DemoTrader, open_demo_account
from .faults import Faults
from .instruments import INSTRUMENTS, Instrument
from .market import BookState, LevelChange, Market, MarketEvent, Match, MatchingEngine, Order
from .server import DEFAULT_SYMBOLS, Exchange, Session, open_exchange
from .simulation import Simulation

__all__ = [
    "DEFAULT_SYMBOLS",
    "DEMO_API_KEY",
    "DEMO_API_SECRET",
    "INSTRUMENTS",
    "Account",
    "Accounts",
    "BookState",
    "DemoTrader",
    "Exchange",
    "Faults",
    "Instrument",
    "LevelChange",
    "Market",
    "MarketEvent",
    "Match",
    "MatchingEngine",
    "Order",
    "OrderRefused",
    "Session",
    "Simulation",
    "open_demo_account",
    "open_exchange",
]
