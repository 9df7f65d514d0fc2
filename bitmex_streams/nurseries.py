"""What comes out of nurseries: one error as itself, several as a builtin group, on both generations of trio.

trio 0.21 raises one error as itself and several as its own MultiError, current trio wraps even one in an
ExceptionGroup, and both mix in cancellations. Whoever runs tasks in the background of a context wants none of that to
show.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import trio

from .inbox import OutputClosed

__all__ = ["GROUPS", "background", "one_error", "real_error"]


@contextlib.asynccontextmanager
async def background(
    leave: Callable[[], Awaitable[None]], errors: list[BaseException] | None = None
) -> AsyncIterator[trio.Nursery]:
    """A nursery for the tasks behind a context. When the body has ended, ``leave`` is awaited, then they are
    cancelled.

    What the body raises passes untouched. An error of a task cancels the body and is raised; so is what was put into
    ``errors`` by then. One error comes out as itself, several as an ExceptionGroup, the body's first. A cancellation
    from outside stays one.
    """
    raised: BaseException | None = None
    errors = [] if errors is None else errors
    try:
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except BaseException as error:
                raised = error
            try:
                await leave()
            finally:
                nursery.cancel_scope.cancel()
    except BaseException as error:
        if isinstance(error, GeneratorExit):
            raise
        if (left := real_error(error)) is not None:
            errors.append(left)
    of_body = real_error(raised) if raised is not None and _holds_cancelled(raised) else raised
    if of_body is not None:
        errors = [of_body, *(error for error in errors if error is not of_body)]
    if errors:
        one = one_error(errors)
        context = one.__context__  # not the cancellation that it may come after
        try:
            raise one
        finally:
            one.__context__ = context
    if raised is not None:
        # The body was cancelled, by an error that is nobody's, or from around us: that cancellation strikes again here.
        await trio.lowlevel.checkpoint_if_cancelled()


GROUPS: tuple[type[BaseException], ...] = (BaseExceptionGroup,)
"""The exceptions that hold exceptions."""
if isinstance(multi_error := vars(trio).get("MultiError"), type):  # trio 0.21, which knows no builtin groups
    GROUPS += (multi_error,)


def real_error(error: BaseException, *, output_closed: bool = False) -> BaseException | None:
    """What of an exception is an error: without `trio.Cancelled`, `OutputClosed`, and groups that hold less than two.

    ``output_closed``: whether the section was told that its output is closed; then any BrokenResourceError is that,
    echoed. Returns None where nothing is left, the exception itself where nothing was taken away; trio's MultiError
    becomes a builtin ExceptionGroup.
    """
    if isinstance(error, GROUPS):
        parts: tuple[BaseException, ...] = error.exceptions  # type: ignore[attr-defined]
        real = [left for part in parts if (left := real_error(part, output_closed=output_closed)) is not None]
        if len(real) < 2:
            return real[0] if real else None
        if isinstance(error, BaseExceptionGroup):
            if len(real) == len(parts) and all(map(_is, real, parts)):
                return error
            return error.derive(real).with_traceback(error.__traceback__)
        return BaseExceptionGroup("several errors", real)
    echo = output_closed and isinstance(error, trio.BrokenResourceError)
    return None if echo or isinstance(error, (trio.Cancelled, OutputClosed)) else error


def _holds_cancelled(error: BaseException) -> bool:
    """Whether a cancellation is (somewhere in) ``error``."""
    if isinstance(error, GROUPS):
        return any(map(_holds_cancelled, error.exceptions))  # type: ignore[attr-defined]
    return isinstance(error, trio.Cancelled)


def _is(one: object, other: object) -> bool:
    return one is other


def one_error(errors: list[BaseException]) -> BaseException:
    """One error as itself, several as a builtin (Base)ExceptionGroup."""
    return errors[0] if len(errors) == 1 else BaseExceptionGroup("several sections failed", errors)
