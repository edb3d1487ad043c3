"""One answer at a time, the others in the order in which they were asked for."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

MOST_WAITING = 64


class BusyError(Exception):
    """Too many wait already, or nobody works any more."""


class Job:
    """Something to be done, which can be called off while it waits or is under way.

    Args:
        run: does it, and asks `is_cancelled` now and then; it may never be called if the job was called off before.
    """

    def __init__(self, run: Callable[[Job], None]) -> None:
        self.run = run
        self._cancelled = threading.Event()

    @property
    def is_cancelled(self) -> bool:
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Have it end soon, or not begin; may be said twice, and from any thread."""
        self._cancelled.set()


class Worker:
    """Runs jobs one after the other in a thread of its own, which is always the same.

    Args:
        most_waiting: jobs that may wait at once, without the one that runs.
    """

    def __init__(self, most_waiting: int = MOST_WAITING) -> None:
        self._most_waiting = most_waiting
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="echo-ska answers", daemon=True)
        self._thread.start()

    @property
    def unfinished(self) -> int:
        """Jobs that wait or run, without those that were called off while they waited."""
        with self._changed:
            return sum(not job.is_cancelled for job in self._waiting) + (self._running is not None)

    def submit(self, job: Job) -> None:
        """Have a job done after those that were submitted before.

        Raises:
            BusyError: too many wait already, or the worker is closed.
        """
        with self._changed:
            if self._closed:  # what waits and was called off is still to be told so
                raise BusyError("The server is being stopped.")
            self._waiting = deque(waiting for waiting in self._waiting if not waiting.is_cancelled)
            if len(self._waiting) >= self._most_waiting:
                raise BusyError(f"{self._most_waiting} requests wait already: ask again later.")
            self._waiting.append(job)
            self._changed.notify_all()

    def close(self, timeout: float = 10.0) -> bool:
        """Call everything off; whether the thread ended within `timeout` seconds."""
        with self._changed:
            self._closed = True
            for job in (*self._waiting, self._running):
                if job is not None:
                    job.cancel()
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                self._running = self._waiting.popleft()
            try:
                self._running.run(self._running)
            except BaseException:
                logger.exception("an answer failed")
            with self._changed:
                self._running = None
