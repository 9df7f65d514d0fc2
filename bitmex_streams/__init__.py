"""The BitMEX realtime feed as Slurry pipelines you can tap at any stage: live, recorded or simulated.

The public names. The embedded exchange stands in `bitmex_streams.exchange`, the rows of the tables in
`bitmex_streams.rows`.
"""

try:
    import slurry as _slurry  # noqa: F401
    import slurry_websocket as _slurry_websocket  # noqa: F401
except ImportError as error:
    import sys as _sys

    # On Python 3.13 and later pip cannot install them with the rest: they pin a trio that cannot be imported there.
    raise ImportError(
        f"bitmex_streams needs {error.name or 'slurry'}, which could not be imported ({error}). Install it with:\n"
        f"    {_sys.executable} -m pip install --no-deps slurry slurry-websocket",
        name=error.name,
    ) from error

from .client import BitMEXWebsocket, open_bitmex_websocket
from .errors import (
    AuthenticationError,
    BitMEXStreamsError,
    BitMEXWebsocketApiError,
    ConnectionClosed,
    ConnectionFailed,
    DecodeError,
    ListenerTooSlow,
    ProcessDied,
    RecordingError,
    SubscriptionError,
)
from .inventory import Contract, Inventory
from .messages import (
    Action,
    Authenticated,
    Bar,
    BookUpdate,
    CancelAllAfter,
    Change,
    Connected,
    Disconnected,
    ErrorMessage,
    Fill,
    FillsMissing,
    Help,
    Level,
    MarginState,
    OrderState,
    Pong,
    Position,
    RawMessage,
    Row,
    StateLost,
    Subscribed,
    TableMessage,
    TableUpdate,
    Ticker,
    Unsubscribed,
    Welcome,
    conflated,
    is_mark,
    is_partial,
    stream_key,
)
from .operator import Batches, Operator, Source
from .orderbook import BookSnapshot, OrderBook
from .pipeline import Pipeline, PipelineStatistics, TapSummary
from .reconnect import Reconnect
from .sections import (
    Bars,
    BookGrouping,
    Connection,
    ConnectionStatistics,
    Decoder,
    Fills,
    Margin,
    OrderBookMerger,
    Orders,
    Positions,
    Replay,
    SymbolFilter,
    TableApplier,
    TableFilter,
    Throttle,
    Tickers,
)
from .storage import Storage
from .tap import Tap, TapStatistics

__version__ = "0.1.0"

__all__ = [
    "Action",
    "Authenticated",
    "AuthenticationError",
    "Bar",
    "Bars",
    "Batches",
    "BitMEXStreamsError",
    "BitMEXWebsocket",
    "BitMEXWebsocketApiError",
    "BookGrouping",
    "BookSnapshot",
    "BookUpdate",
    "CancelAllAfter",
    "Change",
    "Connected",
    "Connection",
    "ConnectionClosed",
    "ConnectionFailed",
    "ConnectionStatistics",
    "Contract",
    "DecodeError",
    "Decoder",
    "Disconnected",
    "ErrorMessage",
    "Fill",
    "Fills",
    "FillsMissing",
    "Help",
    "Inventory",
    "Level",
    "ListenerTooSlow",
    "Margin",
    "MarginState",
    "Operator",
    "OrderBook",
    "OrderBookMerger",
    "OrderState",
    "Orders",
    "Pipeline",
    "PipelineStatistics",
    "Pong",
    "Position",
    "Positions",
    "ProcessDied",
    "RawMessage",
    "Reconnect",
    "RecordingError",
    "Replay",
    "Row",
    "Source",
    "StateLost",
    "Storage",
    "Subscribed",
    "SubscriptionError",
    "SymbolFilter",
    "TableApplier",
    "TableFilter",
    "TableMessage",
    "TableUpdate",
    "Tap",
    "TapStatistics",
    "TapSummary",
    "Throttle",
    "Ticker",
    "Tickers",
    "Unsubscribed",
    "Welcome",
    "conflated",
    "is_mark",
    "is_partial",
    "open_bitmex_websocket",
    "stream_key",
]
