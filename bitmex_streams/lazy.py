"""`LazySortedDict`: a SortedDict that puts its keys in order when somebody looks at the order."""

from __future__ import annotations

import weakref
from threading import get_ident
from typing import Any

from sortedcontainers import SortedDict, SortedList

__all__ = ["LazySortedDict"]


class LazySortedDict(SortedDict):
    """A SortedDict (without a key function) in which adding and removing keys costs what it costs in a dict.

    Everything that shows the order brings it up to date first: it costs the keys that have come or gone since. A key
    that came and went in between costs nothing. So it suits those that change much more often than they are iterated.

    Only the thread that has made it may change it, which to look does. Whoever looks from another gets the keys as they
    are at that moment, put in order for him.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._key is not None:
            raise TypeError("a LazySortedDict has no key function")
        keys = self._list
        keys.__class__ = _LazyKeys
        self._fresh = keys.fresh = set()
        self._gone = keys.gone = set()
        keys.keeper, keys.kept = get_ident(), weakref.ref(self)
        for name, method in list(vars(self).items()):  # those of the list that a SortedDict has at hand
            if getattr(method, "__self__", None) is keys:
                setattr(self, name, getattr(keys, method.__name__))

    def insert(self, key: Any, value: Any) -> None:
        """Add a key that is not there: ``self[key] = value`` in a third of the time."""
        dict.__setitem__(self, key, value)
        if key in self._gone:
            self._gone.remove(key)
        else:
            self._fresh.add(key)

    def remove(self, key: Any) -> Any:
        """Remove a key that is there (else KeyError): ``self.pop(key)`` in a third of the time."""
        value: Any = dict.pop(self, key)
        if key in self._fresh:
            self._fresh.remove(key)
        else:
            self._gone.add(key)
        return value


class _LazyKeys(SortedList):
    """Keys in their order, but for those that are ``fresh``, and with those that are ``gone``."""

    fresh: set[Any]
    gone: set[Any]
    keeper: int  # the thread
    kept: weakref.ref[LazySortedDict]

    def add(self, value: Any) -> None:
        if value in self.gone:
            self.gone.remove(value)
        else:
            self.fresh.add(value)

    def remove(self, value: Any) -> None:
        if value in self.fresh:
            self.fresh.remove(value)
        else:
            self.gone.add(value)

    def settle(self) -> None:
        """Bring the order up to date."""
        fresh, gone = self.fresh, self.gone
        if 4 * (len(fresh) + len(gone)) > self._len:  # then to sort is cheaper
            kept = [key for key in SortedList.__iter__(self) if key not in gone]
            kept.extend(fresh)
            SortedList.clear(self)
            SortedList.update(self, kept)
        else:
            for key in gone:
                SortedList.remove(self, key)
            for key in fresh:
                SortedList.add(self, key)
        fresh.clear()
        gone.clear()


def _settled(name: str) -> Any:
    method = getattr(SortedList, name)

    def settled(self: _LazyKeys, *args: Any, **kwargs: Any) -> Any:
        if self.fresh or self.gone:
            if get_ident() != self.keeper and (kept := self.kept()) is not None:
                return method(SortedList(dict.__iter__(kept)), *args, **kwargs)
            self.settle()
        return method(self, *args, **kwargs)

    settled.__name__ = name
    return settled


READING = (
    "__contains__", "__delitem__", "__getitem__", "__iter__", "__len__", "__repr__", "__reversed__", "_check", "_reset",
    "bisect_left", "bisect_right", "clear", "count", "index", "irange", "islice", "pop", "update",
)  # fmt: skip
"""All that reads the order, or changes many keys at once."""

for _name in READING:
    setattr(_LazyKeys, _name, _settled(_name))
