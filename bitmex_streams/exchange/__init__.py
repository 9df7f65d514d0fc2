"""An exchange of our own that speaks BitMEX's realtime protocol: matching engines, an order flow that drives them, and
a server.

`open_exchange` serves it over a websocket on loopback; `Simulation` is the same without the network.
"""

from .accounts import Account, Accounts, OrderRefused
from .instruments import INSTRUMENTS, Instrument
from .market import BookState, Fill, LevelChange, Market, MarketEvent, MatchingEngine, Order
from .server import DEFAULT_SYMBOLS, Exchange, Session, open_exchange
from .simulation import Simulation

__all__ = [
    "DEFAULT_SYMBOLS",
    "INSTRUMENTS",
    "Account",
    "Accounts",
    "BookState",
    "Exchange",
    "Fill",
    "Instrument",
    "LevelChange",
    "Market",
    "MarketEvent",
    "MatchingEngine",
    "Order",
    "OrderRefused",
    "Session",
    "Simulation",
    "open_exchange",
]
