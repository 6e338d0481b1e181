"""The progress of a sweep, read from its folder, so that `status` shows the same from any shell as the live table."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jrt_eval.sweep.job import status_of
from jrt_eval.sweep.plan import Job
from jrt_eval.sweep.store import Folder, last_lines

if TYPE_CHECKING:
    from rich.table import Table

# lm-eval's progress bar: `Running generate_until requests:  37%|###   | 412/1102 [00:10<00:20,  3.21it/s]`
_BAR = re.compile(r"Running (\w+) requests:\s+\d+%\|[^|]*\|\s*(\d+)/(\d+) \[[^\]]*?,\s*([\d.]+)(it/s|s/it)")
_PLAIN_EVERY = 60.0  # seconds between lines about jobs that only go on


@dataclass(frozen=True)
class JobView:
    """One line of the table. `share` of the job's prompts answered; `rate` in prompts per second."""

    job: str
    state: str
    done: int
    units: int
    share: float
    rate: float | None
    attempt: int
    batch: str
    seconds: float | None
    error: str
    tokens: int | None


def snapshot(folder: Folder, jobs: Sequence[Job], *, alive: bool = True) -> list[JobView]:
    """The state of every job. alive: whether a sweep is running; if not, jobs with the status `running` were interrupted."""
    views = []
    for job in jobs:
        status = status_of(folder, job)
        done = sum(folder.done(unit, job.commit) for unit in job.units)
        state = str(status["state"])
        if done == len(job.units):
            state = "done"
        elif state == "done":
            state = "waiting"  # its results are from other settings, or gone
        elif state == "running" and not alive:
            state = "interrupted"
        bar = _BAR.findall("\n".join(last_lines(folder.job(job) / "log.txt", 3))) if state == "running" else []
        share, rate = done / len(job.units), None
        if bar:
            _, at, of, speed, unit = bar[-1]
            share = share + (1 - share) * int(at) / max(int(of), 1)
            rate = float(speed) if unit == "it/s" else 1 / max(float(speed), 1e-9)
        began = status.get("started")
        ended = time.time() if state == "running" else status.get("updated")
        views.append(
            JobView(
                job=job.id.rpartition("-")[0],
                state=state,
                done=done,
                units=len(job.units),
                share=share,
                rate=rate,
                attempt=int(status.get("attempt", 0)),
                batch=str(status.get("batch_size", job.batch_size)),
                seconds=ended - began if began and ended else None,
                error=str(status.get("error", "")) if state in ("failed", "stopped") else "",
                tokens=job.tokens,
            )
        )
    return views


def summary(views: Sequence[JobView]) -> str:
    """One line: units done, jobs by state."""
    states = [view.state for view in views]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{sum(v.done for v in views)} of {sum(v.units for v in views)} results; jobs: {counts}"


def lines(views: Sequence[JobView]) -> list[str]:
    """One line per job, for a pipe, a log file, or a terminal without rich."""
    width = max((len(view.job) for view in views), default=0)
    return [_line(view, width) for view in views]


def table(views: Sequence[JobView], title: str, caption: str) -> Table:
    """The same as a table for the terminal."""
    from rich.markup import escape
    from rich.table import Table

    out = Table(title=title, caption=caption, caption_justify="left", expand=False)
    for name, justify in (("job", "left"), ("state", "left"), ("results", "right"), ("progress", "right")):
        out.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("prompts/s", "batch", "try", "time"):
        out.add_column(name, justify="right")
    out.add_column("error", overflow="fold")
    colour = {"done": "green", "failed": "red", "running": "cyan", "stopped": "yellow", "interrupted": "yellow"}
    for view in views:
        style = colour.get(view.state, "dim")
        out.add_row(
            escape(view.job),
            f"[{style}]{view.state}[/]",
            f"{view.done}/{view.units}",
            f"{view.share:.0%}",
            "" if view.rate is None else f"{view.rate:.2f}",
            view.batch,
            str(view.attempt or ""),
            "" if view.seconds is None else clock(view.seconds),
            escape(view.error),
        )
    return out


class LiveStatus:
    """Shows a running sweep: as a live table in a terminal with rich, otherwise as a line for each change."""

    def __init__(self, folder: Folder, jobs: Sequence[Job], title: str) -> None:
        self._folder, self._jobs, self._title = folder, jobs, title
        self._began = time.monotonic()
        self._last = 0.0
        self._said: dict[str, tuple[Any, ...]] = {}
        self._quiet_since = self._began
        self._first_share: dict[str, float] | None = None
        self._reader_gone = False
        self._live: Any = None
        if sys.stdout.isatty():
            try:
                from rich.live import Live
            except ImportError:
                return
            self._live = Live(refresh_per_second=2)

    def __enter__(self) -> LiveStatus:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.tick(last=True)
        if self._live is not None:
            self._live.__exit__(*error)

    def tick(self, last: bool = False) -> None:
        """Update what is shown, at most once a second."""
        now = time.monotonic()
        if now - self._last < 1.0 and not last:
            return
        self._last = now
        views = snapshot(self._folder, self._jobs)
        if self._live is not None:
            self._live.update(table(views, self._title, f"{summary(views)}; {self._time_left(views)}"), refresh=last)
            return
        again = now - self._quiet_since > _PLAIN_EVERY
        width = max(len(view.job) for view in views)
        for view in views:
            said = (view.state, view.done, view.attempt)
            if self._said.get(view.job) != said or (again and view.state == "running"):
                if view.state != "waiting":
                    self._say(_line(view, width))
                    self._quiet_since = now
                self._said[view.job] = said
        if again:
            self._say(f"{summary(views)}; {self._time_left(views)}")

    def _say(self, line: str) -> None:
        """Print, unless the reader is gone (`| head`, a closed terminal), which must not end the jobs."""
        if not self._reader_gone:
            try:
                print(line, flush=True)
            except OSError:
                self._reader_gone = True

    def _time_left(self, views: Sequence[JobView]) -> str:
        """Speed and time left, from the progress since the start. Jobs are weighted by their tokens, if known."""
        if not any(view.state in ("running", "waiting") for view in views):
            return "nothing left to run"
        if self._first_share is None:
            self._first_share = {view.job: view.share for view in views}
        known = all(view.tokens is not None for view in views)
        weight = {view.job: float(view.tokens or 1) if known else 1.0 for view in views}
        gained = sum(weight[v.job] * (v.share - self._first_share[v.job]) for v in views)
        left = sum(weight[v.job] * (1 - v.share) for v in views if v.state != "failed")
        elapsed = time.monotonic() - self._began
        if gained <= 0 or elapsed <= 0:
            return "time left: not known yet"
        speed = f"{gained / elapsed:,.0f} tokens/s (estimated), " if known else ""
        return f"{speed}about {clock(left / gained * elapsed)} left"


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _line(view: JobView, width: int) -> str:
    parts = [f"{view.job:<{width}}  {view.state:<11} {view.done}/{view.units} results"]
    if view.state == "running":
        parts.append(f"{view.share:.0%}")
    if view.rate is not None:
        parts.append(f"{view.rate:.2f} prompts/s")
    if view.attempt:
        parts.append(f"attempt {view.attempt}, batch size {view.batch}")
    if view.seconds is not None:
        parts.append(clock(view.seconds))
    if view.error:
        parts.append(view.error)
    return ", ".join(parts)
