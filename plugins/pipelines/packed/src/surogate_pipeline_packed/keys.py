"""What a data set's shards depend on: the parts of their key, each by name, so that a miss can say what has changed.

data       BLAKE2b of the whole content of every file. It is remembered by real path, inode, size and both times of change (of which
           the user cannot set one), so that a large file that nobody touched is not read for it again; a file changed less than two
           seconds ago is not remembered, as git does it.
reading    names of the files, the table's own keys, and the seed where rows are drawn
format     its name and all its options; files that an option names count with their content
options    every option of the pipeline but those that are applied to encoded samples (:data:`LATER`), and `sequence_len`
template   text of the chat template, and the day where the template asks for it
tokenizer  everything that it saves of itself
images     where the model takes them: the directories where relative paths start, and the processor's files (in ``tokenizer``). The
           images' own files are not in the key: a shard knows their sizes and times, and is made again where these differ
code       versions of what encodes, and the sources of this pipeline, of the format and of a tokenizer's own class
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import json
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs

from surogate_core.config import CoreOptions, DatasetOptions
from surogate_core.offers import Offer
from surogate_pipeline_packed.images.sight import Sight
from surogate_pipeline_packed.plugin import Options
from surogate_pipeline_packed.read import Source

LATER = {
    "cache_dir",
    "dataloader_num_workers",
    "max_bad_rows",
    "max_length",
    "padding_free",
    "padding_side",
    "sample_packing",
    "template",  # a part of its own
    "truncation_strategy",
    "validation_split_ratio",
}
LIBRARIES = ("surogate", "surogate-pipeline-packed", "transformers", "tokenizers", "jinja2")
UNSTABLE = ("name_or_path", "is_local", "local_files_only", "transformers_version")  # of tokenizer_config.json
RACY_NS = 2_000_000_000

Parts = Mapping[str, Any]


def digest(data: bytes | str) -> str:
    return hashlib.blake2b(data.encode() if isinstance(data, str) else data, digest_size=16).hexdigest()


def key_of(parts: Parts) -> str:
    """The name of the shards that have these parts: 32 hexadecimal digits."""
    return digest(json.dumps(parts, sort_keys=True))


def changed(before: Parts, now: Parts) -> list[str]:
    """Names of the parts that differ; of those with names of their own, which."""
    names: list[str] = []
    for name in now:
        one, other = before.get(name), now[name]
        if one == other:
            continue
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            names += [key for key in {**one, **other} if one.get(key) != other.get(key)]
        else:
            names.append(name)
    return names


@attrs.frozen
class Fixed:
    """The parts that all data sets of a run share. Made once, before anything is encoded: encoding can change a tokenizer's state
    (its padding), and then it would save itself otherwise."""

    tokenizer: str
    template: str
    options: Mapping[str, str]

    @classmethod
    def of(cls, tokenizer: Any, core: CoreOptions, own: Options, processor: Any = None) -> Fixed:
        kept = {item.name: plain(getattr(own, item.name)) for item in attrs.fields(Options) if item.name not in LATER}
        template = json.dumps(tokenizer.chat_template, sort_keys=True)
        day = time.strftime("%Y-%m-%d") if "strftime_now" in template else ""
        options = {**kept, "sequence_len": str(core.sequence_len)}
        return cls(_of_tokenizer(processor or tokenizer), digest(template + day), options)


def parts_of(
    fixed: Fixed, offer: Offer, options: DatasetOptions, tokenizer: Any, source: Source, memory: Path, sight: Sight | None = None
) -> Parts | None:
    """The parts of one data set's key; None where the source cannot say what it reads from. ``memory`` is a directory that
    remembers digests of files."""
    content = [[word if isinstance(word, str) else of_file(word, memory) for word in origin] for origin in source.origins]
    if not content or not all(content):
        return None
    table = {item.name: getattr(options, item.name) for item in attrs.fields(type(options))}
    table = {name: plain(value) for name, value in table.items() if name not in ("path", "type", "format_options")}
    seed = {} if options.samples is None else {"seed": str(source.seed)}
    given = attrs.asdict(options.format_options, recurse=True) if options.format_options is not None else {}
    return {
        "data": digest(json.dumps(content)),
        "files": digest(json.dumps(source.files)),
        "reading": {**table, **seed},
        "type": offer.name,
        "format": {name: plain(value) for name, value in given.items()},
        "options": dict(fixed.options),
        "template": fixed.template,
        "tokenizer": fixed.tokenizer,
        "code": _code(offer, tokenizer),
        **({"images": {"roots": [str(root.resolve()) for root in sight.roots], "pillow": _pillow()}} if sight is not None else {}),
    }


def _pillow() -> str:
    try:
        return metadata.version("pillow")
    except metadata.PackageNotFoundError:
        return ""


def plain(value: Any) -> str:
    """A value of an option as text: itself where it is short, with the content of the files that it names; names can be joined
    with ``+``, as in ``loss_scale``."""
    text = json.dumps(value, sort_keys=True, default=str)
    words = [value, *value.split("+")] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    for word in words:
        path = Path(word).expanduser() if isinstance(word, str) and 0 < len(word) < 1024 and "\0" not in word else None
        if path is not None and path.is_file():
            text += digest(path.read_bytes())
    return text if len(text) <= 80 else digest(text)


def of_file(path: Path, memory: Path) -> str:
    """Digest of a file's content, remembered in ``memory``."""
    known = path.stat()
    state = [known.st_dev, known.st_ino, known.st_size, known.st_mtime_ns, known.st_ctime_ns]
    note = memory / digest(str(path.resolve()))
    try:
        remembered = json.loads(note.read_bytes())
        if remembered["state"] == state:
            return str(remembered["digest"])
    except (OSError, ValueError, KeyError, TypeError):
        pass
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    if time.time_ns() - max(known.st_mtime_ns, known.st_ctime_ns) > RACY_NS:
        try:
            memory.mkdir(parents=True, exist_ok=True)
            aside = note.with_suffix(f".{time.time_ns()}")
            aside.write_text(json.dumps({"path": str(path.resolve()), "state": state, "digest": found}))
            aside.replace(note)
        except OSError:  # it is a memory only
            pass
    return found


def _of_tokenizer(tokenizer: Any) -> str:
    with tempfile.TemporaryDirectory() as directory:
        tokenizer.save_pretrained(directory)
        found = {}
        for path in sorted(Path(directory).rglob("*")):
            if path.name == "tokenizer_config.json":
                config = json.loads(path.read_bytes())
                found[path.name] = json.dumps({k: config[k] for k in sorted(config) if k not in (*UNSTABLE, "chat_template")})
            elif path.is_file() and path.suffix != ".jinja":
                found[path.relative_to(directory).as_posix()] = digest(path.read_bytes())
        return digest(json.dumps([type(tokenizer).__qualname__, found]))


def _code(offer: Offer, tokenizer: Any) -> dict[str, str]:
    versions = {name: metadata.version(name) for name in LIBRARIES}
    package = offer.build.partition(":")[0].partition(".")[0]
    sources = {"this pipeline": _sources("surogate_pipeline_packed"), f"format {offer.name}": _sources(package)}
    kind = type(tokenizer)
    if kind.__module__.partition(".")[0] != "transformers":
        sources["the tokenizer's class"] = digest(Path(inspect.getfile(kind)).read_bytes())
    return {**versions, offer.owner.distribution: offer.owner.version, **sources}


def _sources(package: str) -> str:
    """Digest of the Python sources of a package, installed as a copy or editable."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return ""
    places: Iterable[str] = spec.submodule_search_locations or []
    files = [path for place in places for path in sorted(Path(place).rglob("*.py"))] or [Path(str(spec.origin))]
    return digest("".join(f"{path.name}\0{path.read_text('utf-8')}\0" for path in files))
