"""Progress bars on standard error, on a terminal only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from tensorkeep.store.reports import Progress


@contextmanager
def progress_bars(stream: TextIO) -> Iterator["Callable[[Progress], None] | None"]:
    """Give a progress callback that draws one bar for each step, or None where the stream is no terminal.

    The callback may be called from any thread. The bars are gone when the block ends, so that only the result stays.
    """
    if not stream.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Bars(*columns, TimeRemainingColumn(), console=Console(file=stream), transient=True) as bars:
        yield _Steps(bars.add_task, bars.update)


class _Steps:
    """The callback: steps become tasks as they appear."""

    def __init__(self, add_task: Callable[..., int], update: Callable[..., None]) -> None:
        self._add_task = add_task
        self._update = update
        self._tasks: dict[str, int] = {}

    def __call__(self, progress: "Progress") -> None:
        task = self._tasks.get(progress.step)
        if task is None:
            task = self._tasks[progress.step] = self._add_task(progress.step, total=None)
        self._update(task, completed=progress.done_bytes, total=progress.total_bytes or None)
