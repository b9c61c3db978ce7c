"""Every hook, every option and every option's owner is documented."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
import surogate_testing
from surogate_loop_standard.observers import OBSERVERS

from surogate_core import hookspecs
from surogate_core.config.known import HOMES, NAME_HOMES, NOT_BUILT, NOT_BUILT_NAMES
from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.host import HOOKS, KINDS, load_host

ROOT = Path(__file__).resolve().parents[1]
HOST = load_host()
OFFERS = [(kind, offer) for plugin in HOST.plugins for kind, offer in plugin.offers]
TREES = ("docs", "plugins", "native", "libraries", "bench", "examples", "changes")
PAGES = [*sorted(ROOT.glob("*.md")), *(page for tree in TREES for page in sorted((ROOT / tree).rglob("*.md")))]
OPTIONS = list(dict.fromkeys([CoreOptions, DatasetOptions, *(offer.options for _, offer in OFFERS if offer.options)]))


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_a_docstring_that_says_who_calls_or_what_a_return_means(name: str) -> None:
    assert len(inspect.getdoc(getattr(hookspecs, name)) or "") > 30


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_has_a_user_among_the_plugins_of_this_repository(name: str) -> None:
    built = [path for path in ROOT.glob("plugins/*/*/src/*/*.py") if name in OBSERVERS and f"def {name}(" in path.read_text()]
    assert HOST.implementations(name) or built, f"hook {name} has no user"


def test_hooks_are_the_three_groups() -> None:
    assert set(HOOKS) == {f"register_{kind}" for kind in KINDS} | set(OBSERVERS) | {"check_config", "check_plan", "data_ready"}


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: f"{options.__module__}.{options.__name__}")
def test_every_option_is_documented(options: type) -> None:
    for field in attrs.fields(options):
        text = field.metadata.get("doc", "")
        assert text, f"{field.name} has no doc"
        assert text.rstrip().endswith("."), f"{field.name}: a sentence ends with a full stop"


@pytest.mark.parametrize(("kind", "offer"), OFFERS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_every_offer_has_a_summary(kind: str, offer: object) -> None:
    assert offer.summary  # type: ignore[attr-defined]


def test_options_page_names_every_key() -> None:
    page = (ROOT / "docs" / "options.md").read_text()
    for options in OPTIONS:
        for field in attrs.fields(options):
            if field.metadata.get("key", True):
                assert f"`{field.name}`" in page, f"docs/options.md lacks {field.name}"


def test_homes_of_keys_and_names_are_those_of_the_plugins() -> None:
    keys = {
        field.name: offer.owner.distribution
        for _, offer in OFFERS
        if offer.options and offer.owner.distribution.startswith("surogate-")
        for field in attrs.fields(offer.options)
    }
    assert keys == HOMES
    selectors = {
        "models": "model_backend",
        "pipelines": "data_pipeline",
        "checkpoints": "checkpoint_store",
        "loops": "training_loop",
        "recipes": "recipe",
        "optimizers": "optimizer",
        "schedules": "lr_scheduler_type",
        "adapters": "adapter",
        "datasets": "type",
        "loggers": "report_to",
    }
    names = {
        (selectors[kind], offer.name): offer.owner.distribution
        for kind, offer in OFFERS
        if kind in selectors and offer.owner.distribution.startswith("surogate-")
    }
    assert names == NAME_HOMES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_targets_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        assert "://" in target or (page.parent / target).exists(), f"{page.name} links to {target}"
    for target in re.findall(r"`make ([a-z-]+)`", prose):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{page.name}: there is no make {target}"
    for package in re.findall(r"`(surogate_[a-z0-9_]+)(?:[./](?!h`)[\w./]+)?`", prose):
        assert importlib.util.find_spec(package), f"{page.name}: there is no package {package}"


def test_there_is_an_example_of_each_check_and_it_passes(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "plugins.md").read_text()
    source = next(block for block in page.split("```py\n")[1:] if "def test_loop" in block).split("```")[0]
    examples: dict[str, Any] = {}
    exec(compile(source, "docs/plugins.md", "exec"), examples)
    named = set(re.findall(r"check\.(check_\w+)\(", source))
    assert named == {check.__name__ for check in surogate_testing.CHECKS.values()}
    for name, example in examples.items():
        if name.startswith("test_"):
            (directory := tmp_path / name).mkdir()
            example(**({"tmp_path": directory} if inspect.signature(example).parameters else {}))


def test_nothing_is_both_built_and_not_built() -> None:
    built = {field.name for options in OPTIONS for field in attrs.fields(options)}
    assert not built & NOT_BUILT.keys()
    for key, names in NOT_BUILT_NAMES.items():
        assert not {(key, name) for name in names} & NAME_HOMES.keys()
