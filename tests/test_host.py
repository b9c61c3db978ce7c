"""Plugins that load, plugins that do not, and plugins that collide. Entry points come from distributions laid out in a
directory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from attrs import field, frozen

from surogate_core import Offer, doc, hookimpl
from surogate_core.errors import PluginError
from surogate_core.host import load_host
from surogate_core.offers import Owner
from surogate_core.testing import host_with


def install(root: Path, distribution: str, entry: str, source: str, *, group: str = "surogate.v1") -> None:
    """Lay out an installed distribution: a module and its metadata."""
    module = distribution.replace("-", "_")
    (root / f"{module}.py").write_text(source)
    info = root / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry} = {module}\n")


def offering(name: str) -> str:
    return (
        "from surogate_core import Offer, hookimpl\n"
        "@hookimpl\n"
        "def register_recipes():\n"
        f"    return [Offer({name!r}, None, build='nowhere:build', summary='one')]\n"
    )


@pytest.fixture
def site_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("acme_")]:  # left by the test before
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


def test_an_installed_plugin_is_found_with_its_distribution_and_version(site_dir: Path) -> None:
    install(site_dir, "acme-rounded", "acme", offering("acme-rounded"))
    offer = load_host().offers("recipes")["acme_rounded"]
    assert offer.owner == Owner("acme-rounded", "1.0")


def test_two_distributions_with_one_entry_name_are_both_loaded(site_dir: Path) -> None:
    install(site_dir, "acme-one", "same", offering("acme_a"))
    install(site_dir, "acme-two", "same", offering("acme_b"))
    assert {"acme_a", "acme_b"} <= load_host().offers("recipes").keys()


@pytest.mark.parametrize("order", [("acme-one", "acme-two"), ("acme-two", "acme-one")])
def test_two_plugins_with_one_name_are_refused_and_both_named(site_dir: Path, order: tuple[str, str]) -> None:
    for distribution in order:
        install(site_dir, distribution, distribution, offering("acme_same"))
    with pytest.raises(PluginError, match="two plugins offer 'acme_same'") as caught:
        load_host()
    assert caught.value.problems[0].where == "acme-one 1.0 and acme-two 1.0"
    assert "pip uninstall" in caught.value.problems[0].how
    assert load_host(strict=False).collisions == caught.value.problems


def test_a_plugin_whose_import_fails_is_kept_and_the_others_go_on(site_dir: Path) -> None:
    install(site_dir, "acme-broken", "broken", "import a_module_that_is_not_there\n")
    install(site_dir, "acme-good", "good", offering("acme_good"))
    host = load_host()
    assert "acme_good" in host.offers("recipes")
    (broken,) = [entry for entry in host.broken if entry.owner.distribution == "acme-broken"]
    assert broken.error == "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"


def test_an_unknown_hook_names_the_nearest(site_dir: Path) -> None:
    install(site_dir, "acme-typo", "typo", offering("x").replace("register_recipes", "register_recipe"))
    (broken,) = [entry for entry in load_host().broken if entry.owner.distribution == "acme-typo"]
    assert "unknown hook 'register_recipe', the nearest is 'register_recipes'" in broken.error


def test_a_hook_with_an_unknown_argument_is_broken(site_dir: Path) -> None:
    install(
        site_dir,
        "acme-argument",
        "argument",
        "from surogate_core import hookimpl\n@hookimpl\ndef step_finished(run, metrics): ...\n",
    )
    (broken,) = [entry for entry in load_host().broken if entry.owner.distribution == "acme-argument"]
    assert "metrics" in broken.error


def test_a_plugin_for_another_hook_version_is_listed_as_such(site_dir: Path) -> None:
    install(site_dir, "acme-future", "future", offering("x"), group="surogate.v2")
    (broken,) = [entry for entry in load_host().broken if entry.owner.distribution == "acme-future"]
    assert "made for surogate.v2, this is surogate.v1" in broken.error


def test_something_that_is_no_offer_is_broken(site_dir: Path) -> None:
    source = "from surogate_core import hookimpl\n@hookimpl\ndef register_recipes():\n    return ['bf16']\n"
    install(site_dir, "acme-odd", "odd", source)
    (broken,) = [entry for entry in load_host().broken if entry.owner.distribution == "acme-odd"]
    assert "register_recipes returned 'bf16', not an Offer" in broken.error


@frozen(kw_only=True)
class One:
    rounding: int = field(default=1, metadata=doc("One."))


@frozen(kw_only=True)
class Two:
    rounding: int = field(default=2, metadata=doc("Two."))


@frozen(kw_only=True)
class Core:
    learning_rate: float = field(default=2.0, metadata=doc("Not yours."))


def plugin(*offers: Offer) -> object:
    class Module:
        @staticmethod
        @hookimpl
        def register_recipes() -> list[Offer]:
            return list(offers)

    return Module


@pytest.mark.parametrize("key", ["", "acme_on", "acme_bits"])
def test_a_quantizer_without_a_switch_of_its_own_is_broken(key: str) -> None:
    """Nothing else could choose it: the option must exist and be false by default."""

    @frozen(kw_only=True)
    class Options:
        acme_bits: int = field(default=4, metadata=doc("Bits."))

    class Module:
        @staticmethod
        @hookimpl
        def register_quantizers() -> list[Offer]:
            return [Offer("acme", Options, build="acme:build", key=key)]

    host = host_with(Module)
    assert not host.offers("quantizers")
    (broken,) = host.broken
    assert f"offer 'acme': key = '{key}' is no option of its own that is false by default" in broken.error


def test_two_owners_of_one_key_are_refused() -> None:
    first, second = plugin(Offer("a", One, build="x:y")), plugin(Offer("b", Two, build="x:y"))
    with pytest.raises(PluginError, match="two owners of the key 'rounding'"):
        host_with(first, second)


def test_offers_may_share_an_options_class() -> None:
    assert host_with(plugin(Offer("a", One, build="x:y"), Offer("b", One, build="x:y"))).offers("recipes").keys() == {"a", "b"}


def test_a_key_of_the_core_cannot_be_taken() -> None:
    with pytest.raises(PluginError, match="two owners of the key 'learning_rate'"):
        host_with(plugin(Offer("a", Core, build="x:y")))


def test_an_unknown_offer_names_the_nearest() -> None:
    with pytest.raises(PluginError, match="did you mean single"):
        host_with(plugin(Offer("single", None, build="x:y"))).offer("recipes", "singel")


def test_a_build_that_cannot_be_imported_names_its_owner() -> None:
    offer = host_with(plugin(Offer("a", None, build="no_such_module:build"))).offer("recipes", "a")
    with pytest.raises(PluginError, match="No module named 'no_such_module'") as caught:
        offer.load()
    assert caught.value.problems[0].where.startswith("test-0 1.0")


def observer(hook: str, function: object) -> object:
    function.__name__ = hook  # type: ignore[attr-defined]
    return type("Module", (), {hook: staticmethod(hookimpl(function))})  # type: ignore[type-var]


def test_a_check_that_raises_stops_and_is_attributed() -> None:
    def check_config(config: object) -> None:
        raise ValueError("too bad")

    host = host_with(observer("check_config", check_config))
    with pytest.raises(ValueError, match="too bad") as caught:
        host.ask("check_config", config=None)
    assert caught.value.__notes__ == ["raised by plugin test-0 1.0 in hook check_config"]


def test_loading_plugins_imports_no_torch() -> None:
    code = "import sys; from surogate_core.host import load_host; load_host(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
