"""The lazily ordered dict: to whoever looks, a SortedDict."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sortedcontainers import SortedDict

from bitmex_streams.lazy import LazySortedDict

KEYS = st.integers(0, 30)

LOOKS: list[Callable[[Any], Any]] = [
    list,
    len,
    lambda kept: list(reversed(kept)),
    lambda kept: list(kept.items()),
    lambda kept: kept.keys()[:3],
    lambda kept: list(kept.values()[1:]),
    lambda kept: kept.items()[-1] if kept else None,
    lambda kept: kept.peekitem(0) if kept else None,
    lambda kept: kept.bisect(15),
    lambda kept: kept.bisect_left(15),
    lambda kept: kept.bisect_right(15),
    lambda kept: list(kept.irange(5, 20)),
    lambda kept: list(kept.islice(1, 4)),
    lambda kept: kept.index(min(kept)) if kept else None,
    lambda kept: 7 in kept,
    lambda kept: repr(kept).partition("(")[2],
    lambda kept: list(copy.copy(kept).items()),
    lambda kept: list(pickle.loads(pickle.dumps(kept)).items()),
    lambda kept: list((kept | {15: "or"}).items()),
    lambda kept: list(dict(kept)),
    lambda kept: kept._check(),
]
CHANGES: list[Callable[[Any, int], Any]] = [
    lambda kept, key: kept.__setitem__(key, key * 2),
    lambda kept, key: kept.pop(key, None),
    lambda kept, key: kept.__delitem__(key) if key in kept else None,
    lambda kept, key: kept.setdefault(key, "default"),
    lambda kept, key: kept.update({key: 1, key + 1: 2}),
    lambda kept, key: kept.update((number, number) for number in range(key, key + 20)),
    lambda kept, key: kept.popitem(0) if kept else None,
    lambda kept, key: kept.popitem() if kept else None,
    lambda kept, key: kept.clear() if key == 0 else None,
]


def insert(kept: Any, key: int) -> None:
    if key not in kept:
        kept.insert(key, "inserted") if isinstance(kept, LazySortedDict) else kept.__setitem__(key, "inserted")


def remove(kept: Any, key: int) -> Any:
    if key in kept:
        return kept.remove(key) if isinstance(kept, LazySortedDict) else kept.pop(key)


# Mostly what is lazy, so that much has changed when somebody looks.
STEPS = st.one_of(
    st.tuples(st.sampled_from([insert, remove]), KEYS),
    st.tuples(st.sampled_from([insert, remove]), KEYS),
    st.tuples(st.sampled_from(CHANGES), KEYS),
    st.sampled_from(LOOKS).map(lambda look: (lambda kept, _: look(kept), 0)),
)


@given(st.sets(KEYS), st.lists(STEPS, max_size=40))
def test_whoever_looks_sees_a_sorted_dict(begin: set[int], steps: list[tuple[Callable[[Any, int], Any], int]]) -> None:
    lazy, model = LazySortedDict.fromkeys(begin, "begin"), SortedDict.fromkeys(begin, "begin")
    for step, key in steps:
        assert step(lazy, key) == step(model, key)
    for look in LOOKS:
        assert look(lazy) == look(model)


def test_to_remove_what_is_not_there_is_an_error_and_changes_nothing() -> None:
    lazy = LazySortedDict({1: "one"})
    with pytest.raises(KeyError):
        lazy.remove(2)
    assert list(lazy.items()) == [(1, "one")]


def test_what_comes_and_goes_between_two_looks_never_reaches_the_order() -> None:
    lazy = LazySortedDict({1: "one", 5: "five"})
    lazy.insert(3, "three")
    lazy.remove(3)
    lazy.remove(5)
    lazy.insert(5, "again")
    assert not lazy._fresh and not lazy._gone
    assert list(lazy.items()) == [(1, "one"), (5, "again")]


def test_it_takes_no_key_function() -> None:
    with pytest.raises(TypeError, match="no key function"):
        LazySortedDict(lambda key: -key)


def in_a_thread(look: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(look).result()


def test_who_looks_from_another_thread_sees_the_same_and_changes_nothing() -> None:
    lazy = LazySortedDict.fromkeys(range(0, 30, 2), "begin")
    lazy.insert(7, "fresh")
    lazy.remove(4)
    seen = [in_a_thread(lambda look=look: look(lazy)) for look in LOOKS]  # type: ignore[misc]
    assert (lazy._fresh, lazy._gone) == ({7}, {4})
    assert seen == [look(lazy) for look in LOOKS]
    assert not lazy._fresh and not lazy._gone
