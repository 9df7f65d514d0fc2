"""Inbox: the bounded buffer between tasks."""

import pytest
import trio
import trio.testing

from bitmex_streams.inbox import Inbox, OutputClosed


async def test_all_that_is_there_is_taken_in_one_go_in_order():
    inbox = Inbox(10)
    for item in range(5):
        await inbox.put(item)
    assert list(await inbox.take()) == [0, 1, 2, 3, 4]
    assert len(inbox) == 0


@pytest.mark.parametrize(("limits", "fit"), [((3,), 3), ((100, 30), 3), ((100, 5), 1)])
async def test_put_waits_for_room_in_items_and_in_bytes(limits, fit):
    inbox = Inbox(*limits)

    async def fill():
        for item in range(10):
            await inbox.put(item, size=10)
        inbox.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fill)
        got = []
        with pytest.raises(trio.EndOfChannel):
            while True:
                await trio.testing.wait_all_tasks_blocked()
                assert len(inbox) <= fit
                got += await inbox.take()
        assert got == list(range(10))


async def test_what_ended_it_is_raised_behind_the_items():
    inbox = Inbox(10)
    inbox.put_nowait(1)
    inbox.close(ZeroDivisionError())
    inbox.close()  # only the first counts
    assert list(await inbox.take()) == [1]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await inbox.take()


async def test_a_cancelled_put_put_nothing_and_a_cancelled_take_took_nothing():
    inbox = Inbox(1)
    inbox.put_nowait(0)
    with trio.CancelScope() as scope:
        scope.cancel()
        await inbox.take()
    with trio.CancelScope() as scope:
        scope.cancel()
        await inbox.put(1)
    assert list(await inbox.take()) == [0]
    assert len(inbox) == 0


async def test_once_shut_every_put_is_told_so_also_one_that_waits():
    inbox = Inbox(1)
    inbox.put_nowait(0)

    async def put():
        with pytest.raises(OutputClosed):
            await inbox.put(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(put)
        await trio.testing.wait_all_tasks_blocked()
        assert not inbox.told
        inbox.shut()
    assert inbox.told
    assert isinstance(OutputClosed(), trio.BrokenResourceError)  # what slurry's sections expect
