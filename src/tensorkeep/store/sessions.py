"""Sessions: what a writer has staged is spared by gc as long as the session is alive."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tensorkeep.errors import TensorkeepError
from tensorkeep.store.context import StoreContext
from tensorkeep.store.journal import new_ulid


@contextmanager
def new_session(context: StoreContext) -> Iterator[str]:
    """Yield the ULID of a session, and end it."""
    session = new_ulid(context.runtime)
    context.catalog.begin_push(session, now=context.runtime.clock.now())
    try:
        yield session
    except BaseException:
        with suppress(TensorkeepError):  # what went wrong first says more; gc knows the dead
            context.catalog.end_push(session)
        raise
    context.catalog.end_push(session)
