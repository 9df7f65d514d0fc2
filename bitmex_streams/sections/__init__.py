"""The sections: what a pipeline is built of, one file a section or a family of them."""

from .bars import Bars
from .connection import Connection, ConnectionStatistics
from .decoder import Decoder
from .fills import Fills
from .filters import SymbolFilter, TableFilter
from .grouping import BookGrouping
from .margin import Margin
from .orderbook import OrderBookMerger
from .orders import Orders
from .positions import Positions
from .replay import Replay
from .tables import TableApplier
from .throttle import Throttle
from .tickers import Tickers

__all__ = [
    "Bars",
    "BookGrouping",
    "Connection",
    "ConnectionStatistics",
    "Decoder",
    "Fills",
    "Margin",
    "OrderBookMerger",
    "Orders",
    "Positions",
    "Replay",
    "SymbolFilter",
    "TableApplier",
    "TableFilter",
    "Throttle",
    "Tickers",
]
