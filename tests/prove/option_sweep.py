"""Does every option have a test that fails when nothing reads it any more?

    python tests/prove/option_sweep.py --results docs/proof/options.json

For each key of every installed options class: the tests whose files name the key are run with a class whose attribute always gives
the key's default, whatever the configuration said, as if its readers were deleted. The test that fails first is kept; a key
without one is listed under "survived". Child processes are changed too: a ``sitecustomize`` module does it (:data:`CHANGE`).

Results are kept after each key, and a sweep that is started again goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import attrs

from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.host import load_host

ROOT = Path(__file__).resolve().parents[2]
CHANGE = """
import os, sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder

MODULE, CLASS, KEY = os.environ["SUROGATE_UNREAD"].split(" ")


class Unread(Loader):
    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        self.loader.exec_module(module)
        import attrs
        cls = getattr(module, CLASS)
        if CLASS == "Reading":
            typed = cls.typed
            cls.typed = lambda self, key, path: key.default if key.name == KEY else typed(self, key, path)
            return
        field = attrs.fields_dict(cls)[KEY]
        value = field.default.factory() if isinstance(field.default, attrs.Factory) else field.default

        def given(self, value):  # bounds still hold
            if field.validator:
                field.validator(self, field, value)

        setattr(cls, KEY, property(lambda self: value, given))


class Finder(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == MODULE:
            spec = PathFinder.find_spec(name, path)
            spec.loader = Unread(spec.loader)
            return spec


sys.meta_path.insert(0, Finder())
"""


READ_BY_CONFIG = {"apply_recommended_values"}
"""Keys that the configuration itself reads while it is made, before there is an object with attributes: what it reads is changed
instead, and their tests are those of the configuration."""


def keys() -> list[tuple[type, str]]:
    """(class, key) of every option that has a default: one without cannot be left unread."""
    offers = [offer for plugin in load_host().plugins for _, offer in plugin.offers]
    ours = [offer.options for offer in offers if offer.options and offer.owner.distribution.startswith("surogate-")]
    return [
        (cls, field.name)
        for cls in dict.fromkeys([CoreOptions, DatasetOptions, *ours])
        for field in attrs.fields(cls)
        if field.default is not attrs.NOTHING and field.metadata.get("key", True)
    ]


def tests_naming(key: str) -> list[str]:
    """Test files with the key in them, the smallest first and the slow ones last; none of packaging and of the sweeps."""
    files = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("plugins/*/*/tests/test_*.py")]
    word = re.compile(rf"\b{key}\b")
    named = [path for path in files if not {"packaging", "prove"} & set(path.parts) and word.search(path.read_text("utf-8"))]
    # tests of the configuration itself look at the classes, not at who reads them
    readers = [path for path in named if key in READ_BY_CONFIG or not path.is_relative_to(ROOT / "tests" / "config")]
    return [str(path) for path in sorted(readers, key=lambda path: (path.name == "test_real_model.py", path.stat().st_size))]


def first_failure(cls: type, key: str) -> str | None:
    files = tests_naming(key)
    if not files:
        return None
    changed = "surogate_core.config.resolve Reading" if key in READ_BY_CONFIG else f"{cls.__module__} {cls.__qualname__}"
    with tempfile.TemporaryDirectory() as place:
        Path(place, "sitecustomize.py").write_text(CHANGE)
        environment = {
            **os.environ,
            "PYTHONPATH": place,
            "SUROGATE_UNREAD": f"{changed} {key}",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-rfE", *files]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return found[1] if found else f"pytest ended with {done.returncode}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--only", nargs="*", help="Keys to try, instead of all.")
    given = parser.parse_args()
    results: dict[str, Any] = json.loads(given.results.read_text()) if given.results.exists() else {"failed": {}, "survived": []}
    for cls, key in keys():
        name = f"{cls.__module__}.{cls.__qualname__}.{key}"
        if given.only is not None and key not in given.only:
            continue
        if given.only is None and (name in results["failed"] or name in results["survived"]):
            continue
        failed = first_failure(cls, key)
        results["survived"] = sorted({*results["survived"], name} - ({name} if failed else set()))
        results["failed"] = dict(sorted({**results["failed"], **({name: failed} if failed else {})}.items()))
        if not failed:
            results["failed"].pop(name, None)
        print(f"{name}: {failed or 'SURVIVED'}", flush=True)
        given.results.parent.mkdir(parents=True, exist_ok=True)
        given.results.write_text(json.dumps(results, indent=1) + "\n")
    print(f"{len(results['failed'])} options have a test that fails without their reader, {len(results['survived'])} have none")
    return 1 if results["survived"] else 0


if __name__ == "__main__":
    sys.exit(main())
