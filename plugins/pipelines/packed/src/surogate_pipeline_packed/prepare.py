"""The data phase: read, encode, cut, hold out; with every row and token in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from surogate_core.config import CoreOptions, DatasetOptions
from surogate_core.errors import DataError
from surogate_core.offers import Offer
from surogate_pipeline_packed.cache import Entry
from surogate_pipeline_packed.corpus import Corpus, hold_out
from surogate_pipeline_packed.images.sight import Sight
from surogate_pipeline_packed.keys import Fixed, parts_of
from surogate_pipeline_packed.ledger import Ledger
from surogate_pipeline_packed.place import Gathered
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.read import Source, open_source
from surogate_pipeline_packed.settle import settled
from surogate_pipeline_packed.store import Store
from surogate_pipeline_packed.templates import apply_template
from surogate_pipeline_packed.tokenise import Job
from surogate_pipeline_packed.weights import weighted


@frozen
class Prepared:
    """What the data phase gives. ``fingerprint`` covers everything that changes what is trained on: tokens, weights, pieces."""

    train: Corpus
    validation: Corpus | None
    ledger: Ledger
    fingerprint: str


@frozen
class Work:
    """What the data phase works with: the options, how to find a format's offer, the tokenizer, and where notices go. ``cache`` is
    the directory where encoded rows are kept, None to keep none; ``live`` lets progress be shown on stderr; ``sight`` is how the
    model sees images, None for one that takes none."""

    core: CoreOptions
    own: Options
    format: Callable[[str], Offer]
    tokenizer: Any
    report: Callable[[str], None]
    cache: Path | None = None
    live: bool = False
    sight: Sight | None = None


def prepare(work: Work) -> Prepared:
    """Read and encode all data sets. The tokenizer gets the chat template that the run trains with, so that what is saved beside
    the weights serves what was trained.

    Raises DataError: no data set, nothing in one, too many unusable rows, a kind of sample without a trained token.
    """
    core = work.core
    apply_template(work.own.template, work.tokenizer, work.own.response_prefix)
    processor = work.sight.processor if work.sight is not None else None
    fixed = Fixed.of(work.tokenizer, core, work.own, processor) if work.cache is not None else None
    ledger = Ledger()
    train, files = _side(core.datasets, "datasets", core.train_seed, work, fixed, ledger)
    held: Corpus | None
    if core.validation_datasets:
        held, _ = _side(core.validation_datasets, "validation_datasets", core.eval_seed, work, fixed, ledger)
    else:
        train, held = hold_out(train, work.own.validation_split_ratio, core.train_seed)
    # After holding out: a copy of a piece that validates must not be trained on.
    train, told = weighted(train, files, [options.weight for options in core.datasets or ()], core.train_seed)
    for name, line in told.items():
        ledger.weighted[name] = line
        work.report(f"{name}: weight {line['weight']:g}: {line['pieces']:,} pieces, {line['placed']:,} an epoch")
    return Prepared(train, held, ledger, train.fingerprint())


def _side(
    datasets: Sequence[DatasetOptions] | None, key: str, seed: int, work: Work, fixed: Fixed | None, ledger: Ledger
) -> tuple[Corpus, list[int]]:
    """The samples of one side, and the index of the first file of each data set."""
    if not datasets:
        raise DataError("no data set is configured", key, f'add a table [[{key}]] with path and type = "text"')
    gathered = Gathered()
    files: list[int] = []
    for index, options in enumerate(datasets):
        where = f"{key}[{index}]"
        source = open_source(options, where, seed, work.own.streaming)
        sight = _sight(work, options)
        job = Job(work.format(options.type), options.format_options, work.core, work.own, work.tokenizer, sight)
        form = job.build()
        final = settled(options, form, source, where, work.report)
        if final is not options:
            options = final
            job = Job(work.format(options.type), options.format_options, work.core, work.own, work.tokenizer, sight)
            form = job.build()
        limit, how = work.core.sequence_len, "split"
        if form.overlong != "split":
            limit, how = work.own.max_length or limit, work.own.truncation_strategy
        counted = Ledger()
        first_file = gathered.open(source.files)
        files.append(first_file)
        store = Store(
            entry=_entry(work, fixed, job, options, source),
            source=source,
            job=job,
            form=form,
            name=f"{where} {options.path}",
            report=work.report,
            live=work.live,
        )
        for part in store.parts():
            gathered.add(part, first_file, limit, how, counted)
        _check(counted, options, where, work.own.max_bad_rows)
        for line in counted.lines():
            work.report(f"{where} {options.path}: {line}")
        ledger.add(counted)
    gathered.check_kinds(key)
    return gathered.corpus(work.sight), files


def _sight(work: Work, options: DatasetOptions) -> Sight | None:
    """How the images of this data set are found: relative paths start from its directory, then from the working directory."""
    if work.sight is None:
        return None
    path = Path(options.path).expanduser()
    here = [path if path.is_dir() else path.parent] if path.exists() else []
    return evolve(work.sight, roots=(*here, Path.cwd()))


def _entry(work: Work, fixed: Fixed | None, job: Job, options: DatasetOptions, source: Source) -> Entry | None:
    """Where the cache keeps what is made of this data set; None without a cache, or when the data have no lasting name."""
    if work.cache is None or fixed is None:
        return None
    parts = parts_of(fixed, job.offer, options, work.tokenizer, source, work.cache / "files", job.sight)
    label = {"path": options.path, "type": options.type, "tokenizer": str(work.tokenizer.name_or_path)}
    if parts is None:
        work.report(f"{options.path}: not kept in the cache: the data are in memory, so that no later run can know them again")
        return None
    return Entry(work.cache, parts, label)


def _check(ledger: Ledger, options: DatasetOptions, where: str, allowed: float) -> None:
    place = f'{where}.path = "{options.path}"'
    if not ledger.rows_read:
        raise DataError("the data set is empty", place, "give a data set with at least one row")
    if ledger.unusable > allowed * ledger.rows_read:
        first = "; ".join(str(bad) for bad in ledger.bad)
        raise DataError(
            f"{ledger.unusable:,} of {ledger.rows_read:,} rows cannot be used, more than max_bad_rows = {allowed:g}: {first}",
            place,
            "mend the rows or the field names, or raise max_bad_rows",
        )
