"""What comes out of a context with tasks behind it."""

import pytest
import trio

from bitmex_streams.exchange import open_exchange
from bitmex_streams.nurseries import background


async def nothing():
    pass


async def fail(error):
    raise error


async def test_what_the_body_raises_passes_untouched():
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with background(nothing) as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise error
    assert caught.value is error
    assert error.__context__ is None


async def test_one_error_of_a_task_comes_out_as_itself_and_cancels_the_body():
    error = KeyError("theirs")
    with pytest.raises(KeyError) as caught:
        async with background(nothing) as nursery:
            nursery.start_soon(fail, error)
            await trio.sleep_forever()
    assert caught.value is error
    assert error.__context__ is None


async def test_several_errors_come_out_as_a_builtin_group_the_bodys_first():
    with pytest.raises(ExceptionGroup) as caught:
        async with background(nothing) as nursery:
            nursery.start_soon(fail, KeyError())
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError
    assert [type(error) for error in caught.value.exceptions] == [ZeroDivisionError, KeyError]


async def test_leave_is_awaited_while_the_tasks_still_run():
    seen = []

    async def leave():
        await trio.lowlevel.checkpoint()
        seen.append(len(nursery.child_tasks))

    async with background(leave) as nursery:
        nursery.start_soon(trio.sleep_forever)
    assert seen == [1]


async def test_a_cancellation_from_outside_stays_one():
    after = []
    with trio.CancelScope() as scope:
        async with background(nothing) as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
            await trio.lowlevel.checkpoint()
        after.append("reached")
    assert scope.cancelled_caught
    assert not after


async def test_what_is_raised_within_the_embedded_exchanges_context_passes_untouched():
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with open_exchange(rate=0):
            raise error
    assert caught.value is error
