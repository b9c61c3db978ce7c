"""One data set's parts, in the order of the rows: from its shards where they are whole, encoded and kept where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

from attrs import define, field

from surogate_core.contracts import Format
from surogate_core.errors import DataError
from surogate_pipeline_packed import shard
from surogate_pipeline_packed.cache import Entry
from surogate_pipeline_packed.part import Part, join
from surogate_pipeline_packed.progress import Tell, shown
from surogate_pipeline_packed.read import Source
from surogate_pipeline_packed.tokenise import Job, encode, workers_for


@define
class Counter:
    """Rows that are done."""

    rows: int
    tell: Tell

    def add(self, rows: int) -> None:
        self.rows += rows
        self.tell(self.rows)


@define
class Store:
    """Gives the parts of one data set. ``entry`` is its place in the cache, None where nothing is kept."""

    entry: Entry | None
    source: Source
    job: Job
    form: Format
    name: str
    report: Callable[[str], None]
    live: bool
    states: dict[Path, tuple[int, int]] = field(factory=dict)

    def parts(self) -> Iterator[Part]:
        """All parts, in order. Raises DataError when a file of the data set changes meanwhile."""
        self.states = {path: _state(path) for origin in self.source.origins for path in origin if isinstance(path, Path)}
        with self.entry.locked(self._waiting) if self.entry else nullcontext():
            there = self.entry.shards() if self.entry else {}
            total = self.entry.rows() if self.entry else None
            kept = sum(len(part.rows) for part in there.values())
            if total is not None and kept == total:
                self._say(f"cache hit: {total:,} rows from {self._place()}")
                yield from there.values()
            else:
                yield from self._made(there, kept, total)
        if self.entry:
            self.entry.touch()

    def _made(self, there: dict[int, Part], kept: int, total: int | None) -> Iterator[Part]:
        self._explain(kept, total)
        if self.entry:
            try:
                self.entry.open()
            except OSError as error:
                self._give_up(error)
        row = tokens = 0
        count = self.source.count if self.source.countable else lambda: None
        known = count if total is None else lambda: total
        with shown(self.name, kept, known, self.live) as tell:
            counter = Counter(kept, tell)
            for start, part in [*there.items(), (total, None)]:
                if start is None or start > row:
                    for made in self._encoded(row, start, counter):
                        row, tokens = row + len(made.rows), tokens + len(made.tokens)
                        yield made
                if part is not None and start == row:
                    row, tokens = row + len(part.rows), tokens + len(part.tokens)
                    yield part
        if self.entry:
            try:
                self.entry.finish(row, tokens)
            except OSError as error:
                self._give_up(error)

    def _encoded(self, start: int, stop: int | None, counter: Counter) -> Iterator[Part]:
        """The rows from ``start`` to before ``stop``, a shard a part."""
        waiting: list[Part] = []
        rows = size = 0
        workers = workers_for(self.job.own, self.form, self.source.size)
        for part in encode(self.source.rows(start, stop), self.job, self.form, workers):
            waiting.append(part)
            rows, size = rows + len(part.rows), size + part.size
            counter.add(len(part.rows))
            if shard.full(start, rows, size):
                yield self._kept(start, join(waiting))
                start, rows, size, waiting = start + rows, 0, 0, []
        if waiting:
            yield self._kept(start, join(waiting))
        self._unchanged()

    def _kept(self, start: int, part: Part) -> Part:
        """The part as its shard holds it, or itself where nothing can be kept."""
        self._unchanged()
        if self.entry is None:
            return part
        path = self.entry.path / shard.name(start)
        try:
            shard.write(path, part)
        except OSError as error:
            self._give_up(error)
            return part
        return shard.read(path) or part

    def _unchanged(self) -> None:
        for path, state in self.states.items():
            if _state(path) != state:
                raise DataError("the file changed while it was read", str(path), "start again when nothing writes to it")

    def _give_up(self, error: OSError) -> None:
        assert self.entry is not None
        self._say(f"{self.entry.path} cannot be written ({error.strerror or error}): what is tokenised now is not kept")
        self.entry = None

    def _explain(self, kept: int, total: int | None) -> None:
        if self.entry is None:
            return
        if kept:
            lost = f" of {total:,}; damaged or missing ones are made again" if total is not None else "; it goes on from there"
            self._say(f"cache: {kept:,} rows are in {self._place()}{lost}")
            return
        different = self.entry.nearest()
        why = "these data were never tokenised" if different is None else f"changed: {', '.join(different)}"
        self._say(f"cache miss ({why}); keeping it in {self._place()}")

    def _waiting(self) -> None:
        self._say("another process is tokenising the same; waiting for it")

    def _place(self) -> str:
        assert self.entry is not None
        return str(self.entry.path)

    def _say(self, text: str) -> None:
        self.report(f"{self.name}: {text}")


def _state(path: Path) -> tuple[int, int]:
    known = path.stat()
    return known.st_size, known.st_mtime_ns
