"""Where requests of the reward server become items of the queue, and are known again when a client sends them a second time.

A request that carries an id is remembered: a retry joins what is still being worked on, or finds what was made, and nothing is computed
twice. When nobody waits for a request any more, those of its items that were not begun leave the queue.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..types import EngineError, InputError
from .batching import Batcher, Ticket
from .guard import Refused
from .intake import Intake
from .limits import Limits
from .telemetry import Telemetry

Items = Callable[[list[Any]], list[Any]]  # from a request's opened pictures to its items


@dataclass(eq=False)
class Entry:
    """A request. `tickets` by the index of the item; one that was dropped is put again when the request comes again."""

    digest: bytes
    count: int
    until: float = 0.0
    waiters: int = 0
    touched: float = 0.0
    tickets: dict[int, Ticket] = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    def missing(self) -> list[int]:
        return [i for i in range(self.count) if i not in self.tickets or self.tickets[i].future.cancelled() or _failed(self.tickets[i])]


def _failed(ticket: Ticket) -> bool:
    """Whether another try may do better."""
    return ticket.future.done() and not ticket.future.cancelled() and isinstance(ticket.future.result(), EngineError)


class Gone(Exception):
    """The client has gone away."""


class Desk:
    """`ask` gives an item's outcome for each item of a request: what the batcher's work gave (a result or an exception), or None where the
    deadline passed. Raises InputError, Full, Refused (409: the id belongs to another request) and Gone."""

    def __init__(self, batcher: Batcher, intake: Intake, limits: Limits, telemetry: Telemetry):
        self.batcher, self.intake, self.limits, self.telemetry = batcher, intake, limits, telemetry
        self.entries: OrderedDict[str, Entry] = OrderedDict()
        self.kept = 0

    async def ask(
        self, id: str | None, body: bytes, images: Sequence[str], count: int, items: Items, seconds: float, gone: asyncio.Future[Any]
    ) -> list[tuple[Any, int | None]]:
        """(outcome, number of its batch) for each of the `count` items. `id` None: not remembered."""
        loop = asyncio.get_running_loop()
        entry = self._entry(id, hashlib.blake2b(body, digest_size=16).digest(), count)
        until = loop.time() + seconds
        entry.until, entry.touched = max(entry.until, until), loop.time()
        for ticket in entry.tickets.values():
            ticket.until = max(ticket.until, until)
        if entry.task is None or (entry.task.done() and entry.missing()):
            entry.task = asyncio.create_task(self._fill(entry, images, items))
        task = entry.task
        entry.waiters += 1
        try:
            await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            entry.waiters -= 1
            if not entry.waiters and not task.done():
                self.telemetry.left.inc(self.batcher.drop(entry.tickets.values()))
                task.cancel()
                entry.task = None
            self._tidy(id, entry)
        if task.done() and not task.cancelled() and (error := task.exception()):
            raise error
        if gone.done() and not task.done():
            raise Gone
        return [self._outcome(entry.tickets.get(i)) for i in range(count)]

    async def _fill(self, entry: Entry, images: Sequence[str], items: Items) -> None:
        """Brings what is missing to the queue and waits for all."""
        missing = entry.missing()
        self.batcher.reserve(len(missing))
        placed = False
        try:
            async with self.intake.pictures(images) as pictures:
                made = items(pictures)
                tickets = self.batcher.put([made[i] for i in missing], entry.until)
                placed = True
                entry.tickets.update(zip(missing, tickets, strict=True))
                await asyncio.wait([ticket.future for ticket in entry.tickets.values()])
        finally:
            if not placed:
                self.batcher.release(len(missing))

    def _entry(self, id: str | None, digest: bytes, count: int) -> Entry:
        if id is None:
            return Entry(digest, count)
        entry = self.entries.get(id)
        if entry is None:
            entry = self.entries[id] = Entry(digest, count)
            self.kept += count
        elif entry.digest != digest:
            raise Refused(409, f"the request id {id} belongs to another request; give every request an id of its own")
        else:
            self.telemetry.joined.inc()
            self.entries.move_to_end(id)
        return entry

    def _tidy(self, id: str | None, entry: Entry) -> None:
        """Forgets a request of which nothing was begun, and the oldest ones beyond the limits."""
        if id is not None and not entry.waiters and (entry.task is None or entry.task.done()) and len(entry.missing()) == entry.count:
            self._forget(id)
        now = asyncio.get_running_loop().time()
        for name in list(self.entries):
            oldest = self.entries[name]
            if self.kept <= self.limits.remembered and now - oldest.touched <= self.limits.remembered_seconds:
                break
            if oldest.waiters:
                break
            self._forget(name)

    def _forget(self, id: str) -> None:
        if entry := self.entries.pop(id, None):
            self.kept -= entry.count

    @staticmethod
    def _outcome(ticket: Ticket | None) -> tuple[Any, int | None]:
        if ticket is None or not ticket.future.done() or ticket.future.cancelled():
            return None, None
        return ticket.future.result(), ticket.batch


def refused_by_all(outcomes: Sequence[tuple[Any, int | None]]) -> InputError | None:
    """What the scorer says of a request of which it can judge nothing."""
    errors = [outcome for outcome, _ in outcomes]
    return errors[0] if errors and all(isinstance(error, InputError) for error in errors) else None
