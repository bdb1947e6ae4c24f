"""A progress bar on stderr for models that are being fetched."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from agentcache.ports.model_source import Progress, Stage


@contextmanager
def progress_bar(ref: str) -> Iterator[Progress]:
    """Show how far the model `ref` is; nothing without a terminal, or where nothing is to do."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(stderr=True)
    bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
    tasks: dict[Stage, TaskID] = {}
    with ExitStack() as shown:

        def show(done: int, total: int | None, stage: Stage) -> None:
            if not tasks:
                shown.enter_context(bar)
            if stage not in tasks:
                tasks[stage] = bar.add_task(f"{stage} {ref}", total=total)
            bar.update(tasks[stage], completed=done, total=total)

        yield show
