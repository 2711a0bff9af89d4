"""Items of many requests, worked on in batches by one thread; a bounded queue with deadlines.

`Batcher` lives in an event loop. An item waits until the thread is free and either `max_batch` items wait or the oldest has waited
`max_wait` seconds. A `Ticket` that nobody wants any more leaves the queue at once, and its place is free.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any


class Full(Exception):
    """No place in the queue; `wait` is the number of seconds after which there may be one."""

    def __init__(self, message: str, wait: float):
        super().__init__(message)
        self.wait = wait


@dataclass(eq=False)
class Ticket:
    """An item's place in the queue. `until` and `queued` are times of the loop; `batch` is the number of the batch it went into."""

    item: Any
    until: float
    queued: float
    future: asyncio.Future[Any]
    batch: int | None = None


class Worker:
    """One thread that does what it is given, in order. A daemon: work that hangs does not keep the process alive."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue[Any] = SimpleQueue()
        threading.Thread(target=self._run, name="scorer", daemon=True).start()

    async def do(self, call: Callable[[], Any]) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self.inbox.put((call, loop, future))
        return await future

    def _run(self) -> None:
        while True:
            call, loop, future = self.inbox.get()
            try:
                result, error = call(), None
            except Exception as caught:
                result, error = None, caught
            try:
                loop.call_soon_threadsafe(_settle, future, result, error)
            except RuntimeError:  # the loop has ended meanwhile
                return


def _settle(future: asyncio.Future[Any], result: Any, error: Exception | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


class Batcher:
    """`work(items)` runs in the worker's thread and gives one result for each item, in order; where it raises, every item gets the
    exception. `observe(size, waited, seconds)` is told of each batch: its size, the seconds that each item waited, the seconds it took."""

    def __init__(
        self,
        work: Callable[[Sequence[Any]], Sequence[Any]],
        worker: Worker,
        *,
        max_batch: int,
        max_wait: float,
        max_waiting: int,
        observe: Callable[[int, list[float], float], None] = lambda size, waited, seconds: None,
    ):
        self.work, self.worker, self.observe = work, worker, observe
        self.max_batch, self.max_wait, self.max_waiting = max_batch, max_wait, max_waiting
        self.queue: deque[Ticket] = deque()
        self.reserved = 0
        self.batches = 0
        self.expired = 0
        self.busy_since: float | None = None
        self.seconds_per_item = 0.0
        self._changed = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Places that are taken: items in the queue, and places reserved for items that are on their way."""
        return len(self.queue) + self.reserved

    @property
    def delay(self) -> float:
        """Seconds after which what waits now may be done, from 1 to 60."""
        return min(60.0, max(1.0, self.waiting * self.seconds_per_item))

    def reserve(self, count: int) -> None:
        """Takes places for items that `put` brings later, or `release` gives up. Raises Full."""
        if self.waiting + count > self.max_waiting:
            raise Full(f"{self.waiting} of {self.max_waiting} places in the queue are taken; ask again later", self.delay)
        self.reserved += count

    def release(self, count: int) -> None:
        self.reserved -= count

    def put(self, items: Iterable[Any], until: float) -> list[Ticket]:
        """Queues items whose places are reserved."""
        loop = asyncio.get_running_loop()
        tickets = [Ticket(item, until, loop.time(), loop.create_future()) for item in items]
        self.reserved -= len(tickets)
        self.queue.extend(tickets)
        self._changed.set()
        return tickets

    def drop(self, tickets: Iterable[Ticket]) -> int:
        """Takes tickets that wait out of the queue and cancels them; those that are being worked on stay. Returns how many left."""
        leaving = {ticket for ticket in tickets if ticket.batch is None and not ticket.future.done()}
        if leaving:
            self.queue = deque(ticket for ticket in self.queue if ticket not in leaving)
        for ticket in leaving:
            ticket.future.cancel()
        return len(leaving)

    async def run(self) -> None:
        """Works until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self._changed.clear()
            if not self.queue:
                await self._changed.wait()
                continue
            left = self.queue[0].queued + self.max_wait - loop.time()
            if len(self.queue) < self.max_batch and left > 0:
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    pass
                else:
                    continue
            if batch := self._take(loop.time()):
                await self._work_on(batch)

    def _take(self, now: float) -> list[Ticket]:
        batch: list[Ticket] = []
        while self.queue and len(batch) < self.max_batch:
            ticket = self.queue.popleft()
            if ticket.until <= now:
                self.expired += 1
                ticket.future.cancel()
            else:
                ticket.batch = self.batches
                batch.append(ticket)
        self.batches += bool(batch)
        return batch

    async def _work_on(self, batch: list[Ticket]) -> None:
        loop, items = asyncio.get_running_loop(), [ticket.item for ticket in batch]
        started, self.busy_since = time.perf_counter(), loop.time()
        waited = [self.busy_since - ticket.queued for ticket in batch]
        try:
            results: Sequence[Any] = await self.worker.do(lambda: self.work(items))
        except Exception as error:
            results = [error] * len(batch)
        finally:
            self.busy_since = None
        seconds = time.perf_counter() - started
        self.seconds_per_item = 0.8 * (self.seconds_per_item or seconds / len(batch)) + 0.2 * seconds / len(batch)
        self.observe(len(batch), waited, seconds)
        for ticket, result in zip(batch, results, strict=True):
            if not ticket.future.done():
                ticket.future.set_result(result)
