"""Data sets that the datasets library reads: what save_to_disk wrote, directories with a data set card, the Hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from surogate_core.config.options import DatasetOptions
from surogate_core.errors import DataError
from surogate_pipeline_packed.files import Raw, Reader, of_dataset
from surogate_pipeline_packed.jsontext import columns

SAVED = ("dataset_dict.json", "state.json")  # what save_to_disk leaves in a directory
CONFIGS = re.compile(r"\A---\s*\n(?:.*\n)*?configs:(?:.*\n)*?---\s*$", re.MULTILINE)


def has_card(directory: Path) -> bool:
    """Whether a card says which files are which subset and split."""
    card = directory / "README.md"
    return card.is_file() and bool(CONFIGS.match(card.read_text(encoding="utf-8", errors="replace")))


def saved(path: Path, options: DatasetOptions, where: str) -> Reader:
    """A directory that save_to_disk wrote: one data set, or one for each split."""
    from datasets import DatasetDict, load_from_disk

    if options.subset is not None:
        raise DataError("a saved data set has no subsets", f"{where}, subset {options.subset!r}", "remove subset")
    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # the library's, Arrow's and the file system's errors
        raise DataError(f"the saved data set cannot be read: {first_line(error)}", where, "write it again") from error
    if isinstance(dataset, DatasetDict):
        if options.split not in dataset:
            raise DataError(f'there is no split "{options.split}"', where, f"use one of {', '.join(dataset)}")
        dataset = dataset[options.split]
    return of_dataset(path.name, dataset)


def carded(path: Path, options: DatasetOptions, where: str, streaming: bool = False) -> Reader:
    """A directory with a data set card, as a repository of the Hub is when it is cloned."""
    try:
        return _read(path.name, str(path.resolve()), options, where, streaming)
    except Exception as error:  # as above
        raise DataError(
            f"the directory cannot be read as its card (README.md) says: {type(error).__name__}: {first_line(error)}",
            f"{where}, subset {options.subset!r}, split {options.split!r}",
            "check subset and split against the card, and the files that it names",
        ) from error


def hub(options: DatasetOptions, where: str, streaming: bool = False) -> Reader:
    """A data set of the Hub, or of the library's cache."""
    from huggingface_hub.constants import is_offline_mode

    try:
        return _read(options.path, options.path, options, where, streaming)
    except Exception as error:  # the library raises its own, the Hub's and the network's errors
        raise DataError(
            f"neither a local path nor a data set of the Hub that can be read: {type(error).__name__}: {first_line(error)}",
            f"{where}, subset {options.subset!r}, split {options.split!r}",
            "HF_HUB_OFFLINE is set: unset it, or fetch the data set into the cache first"
            if is_offline_mode()
            else "check path, subset, split and the network; private data sets need HF_TOKEN",
        ) from error


def _read(name: str, path: str, options: DatasetOptions, where: str, streaming: bool) -> Reader:
    from datasets import load_dataset, load_dataset_builder

    if not streaming:
        return of_dataset(name, load_dataset(path, name=options.subset, split=options.split))
    builder = load_dataset_builder(path, name=options.subset)
    rows = builder.as_streaming_dataset(split=options.split)

    def raw() -> Iterator[Raw]:
        number = 0
        try:
            for number, row in enumerate(rows, 1):
                yield number, row
        except Exception as error:  # as in hub()
            what = f"the data set cannot be read further: {type(error).__name__}: {first_line(error)}"
            raise DataError(what, f"{where}, after row {number}", "check the network and the files, and start again") from error

    files = [Path(file) for file in (builder.config.data_files or {}).get(options.split, ())]
    here = files if all(file.is_file() for file in files) else []
    # The library's names of this state of the data: the revision of a repository, the times of change of files.
    state = f"{path} {options.split} {builder.config_id} {builder.hash}"
    return Reader(name, raw, columns, lambda: sum(1 for _ in raw()), (*here, state), countable=False)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]
