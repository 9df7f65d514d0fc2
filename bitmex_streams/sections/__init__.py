"""The sections: what a pipeline is built of, one file a section or a family of them."""

from .bars import Bars
from .connection import Connection
from .decoder import Decoder
from .filters import SymbolFilter, TableFilter
from .orderbook import OrderBookMerger
from .replay import Replay
from .tables import TableApplier
from .throttle import Throttle

__all__ = [
    "Bars",
    "Connection",
    "Decoder",
    "OrderBookMerger",
    "Replay",
    "SymbolFilter",
    "TableApplier",
    "TableFilter",
    "Throttle",
]
