"""Finding plugins and asking them.

Entry points are loaded one by one by our own code, because pluggy's loader drops the second of two distributions with one entry
name and lets one broken import hide all other plugins. A plugin that cannot be used is kept as :class:`Broken` with its reason.
Hook implementations are also called one by one, so that an error can say whose it is.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import re
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from typing import Any

import attrs
import pluggy
from attrs import field, frozen

from surogate_core import hookspecs
from surogate_core.config.catalogue import KINDS as CONFIGURED
from surogate_core.config.options import CoreOptions, DatasetOptions
from surogate_core.errors import PluginError, Problem, SurogateError
from surogate_core.offers import Offer, Owner, normal_name

KINDS = (*CONFIGURED, "commands")
HOOKS = tuple(name for name, value in vars(hookspecs).items() if hasattr(value, "surogate_spec"))


@frozen
class Plugin:
    """A plugin that loaded. ``name`` is its entry-point name; ``offers`` are (kind, offer) pairs."""

    name: str
    owner: Owner
    offers: tuple[tuple[str, Offer], ...]


@frozen
class Broken:
    """A plugin that did not load, and why; the others go on without it."""

    name: str
    owner: Owner
    error: str


@contextlib.contextmanager
def attributed(owner: Owner, hook: str) -> Iterator[None]:
    """Errors that pass through carry the note "raised by plugin X 0.1.0 in hook Y"."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by plugin {owner} in hook {hook}")
        raise


@frozen
class Host:
    """The loaded plugins and their offers. Made by :func:`load_host`; never changes afterwards."""

    plugins: tuple[Plugin, ...]
    broken: tuple[Broken, ...]
    collisions: tuple[Problem, ...]
    _manager: pluggy.PluginManager = field(repr=False)
    _owners: dict[str, Owner] = field(repr=False)

    def offers(self, kind: str) -> dict[str, Offer]:
        """Name → offer of one kind ("recipes", "datasets", ...)."""
        return {offer.name: offer for plugin in self.plugins for of_kind, offer in plugin.offers if of_kind == kind}

    def offer(self, kind: str, name: str) -> Offer:
        """The offer called ``name``. Raises PluginError naming the nearest installed one."""
        offers = self.offers(kind)
        if (wanted := normal_name(name)) in offers:
            return offers[wanted]
        near = difflib.get_close_matches(wanted, offers, n=3)
        raise PluginError(
            f"no installed plugin offers {name!r} among the {kind}",
            where=f"installed: {', '.join(sorted(offers)) or 'none'}",
            how=f"did you mean {' or '.join(near)}?" if near else "install the plugin that brings it",
        )

    def implementations(self, hook: str) -> list[tuple[str, Owner, Callable[..., Any]]]:
        """(plugin name, owner, function that takes the hook's arguments by name), in order of distribution names."""
        found = []
        for implementation in getattr(self._manager.hook, hook).get_hookimpls():
            wanted = implementation.argnames

            def call(function: Any = implementation.function, wanted: Any = wanted, **arguments: Any) -> Any:
                return function(**{name: arguments[name] for name in wanted})

            found.append((implementation.plugin_name, self._owners[implementation.plugin_name], call))
        return sorted(found, key=lambda entry: entry[0])

    def ask(self, hook: str, **arguments: Any) -> list[tuple[Owner, Any]]:
        """Ask every plugin; an error stops everything and names its plugin."""
        answers = []
        for _, owner, call in self.implementations(hook):
            with attributed(owner, hook):
                answers.append((owner, call(**arguments)))
        return answers

    def blame(self, error: Exception) -> None:
        """Add the note of :func:`attributed` to an error of a run, where it has none, with the plugin whose code is innermost in
        the traceback. Errors that surogate raises on purpose speak for themselves."""
        if isinstance(error, SurogateError) or any("raised by plugin" in note for note in getattr(error, "__notes__", ())):
            return
        owners: dict[str, set[Owner]] = defaultdict(set)
        for plugin in self.plugins:
            for _, offer in plugin.offers:
                owners[offer.build.partition(":")[0].partition(".")[0]].add(plugin.owner)
        for frame, _ in reversed(list(traceback.walk_tb(error.__traceback__))):
            module = str(frame.f_globals.get("__name__", ""))
            if len(of := owners.get(module.partition(".")[0], set())) == 1:
                error.add_note(f"raised by plugin {next(iter(of))} in {module}.{frame.f_code.co_qualname}")
                return

    def lock(self) -> dict[str, str]:
        """Distribution → version of every loaded plugin and of the core: goes into each checkpoint."""
        return {owner.distribution: owner.version for owner in sorted(self._owners.values(), key=str)}


def load_host(extra: Iterable[tuple[str, Any, Owner]] = (), *, discover: bool = True, strict: bool = True) -> Host:
    """Load the installed plugins, and ``extra`` ones given as (name, module, owner).

    ``discover=False`` leaves the installed ones out (tests). ``strict`` raises PluginError on collisions; commands that only list
    plugins pass False and show ``host.collisions``.
    """
    manager = pluggy.PluginManager("surogate")
    manager.add_hookspecs(hookspecs)
    plugins: list[Plugin] = []
    broken: list[Broken] = []
    owners: dict[str, Owner] = {"surogate": Owner("surogate", _version())}
    for name, load, owner in [*(_installed() if discover else ()), *_given(extra)]:
        # two distributions may use one entry name: both are loaded, under different names for pluggy
        key = name if name not in owners else f"{name} ({owner.distribution})"
        try:
            module = load()
            _check_hooks(module)
            manager.register(module, key)
            owners[key] = owner
            plugins.append(Plugin(name, owner, _ask_offers(manager, module, owner)))
        except Exception as error:
            with contextlib.suppress(Exception):
                manager.unregister(name=key)
            owners.pop(key, None)
            broken.append(Broken(name, owner, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__))
    collisions = _collisions(plugins)
    if strict and collisions:
        raise PluginError(collisions)
    return Host(tuple(plugins), tuple(broken), tuple(collisions), manager, owners)


def _version() -> str:
    try:
        return metadata.version("surogate")
    except metadata.PackageNotFoundError:  # a source tree that is on the path but not installed
        from surogate_core import __version__

        return __version__


def _given(extra: Iterable[tuple[str, Any, Owner]]) -> Iterator[tuple[str, Callable[[], Any], Owner]]:
    for name, module, owner in extra:
        yield name, functools.partial(_same, module), owner


def _same(module: Any) -> Any:
    return module


def _installed() -> Iterator[tuple[str, Callable[[], Any], Owner]]:
    """(entry name, loader, owner) of every distribution with an entry point in ``surogate.vN``, each distribution once."""
    seen: dict[tuple[str, str], set[str]] = defaultdict(set)
    found = []
    for distribution in metadata.distributions():
        points = [point for point in distribution.entry_points if re.fullmatch(r"surogate\.v\d+", point.group)]
        if not points:
            continue
        owner = Owner(distribution.metadata["Name"], distribution.version)
        groups = {point.group for point in points}
        for point in points:
            if point.group in seen[owner.distribution, point.name]:
                continue  # one distribution seen twice on the path: the first wins, as for imports
            seen[owner.distribution, point.name].add(point.group)
            if point.group == hookspecs.GROUP:
                found.append((point.name, point.load, owner))
            elif hookspecs.GROUP not in groups:
                found.append((point.name, _refuse(f"made for {point.group}, this is {hookspecs.GROUP}"), owner))
    yield from sorted(found, key=lambda entry: (entry[2].distribution, entry[0]))


def _refuse(reason: str) -> Callable[[], Any]:
    def load() -> Any:
        raise PluginError(reason)

    return load


def _check_hooks(module: Any) -> None:
    for name, value in inspect.getmembers(module):
        if getattr(value, "surogate_impl", None) is not None and name not in HOOKS:
            near = difflib.get_close_matches(name, HOOKS, n=1)
            raise PluginError(f"unknown hook {name!r}" + (f", the nearest is {near[0]!r}" if near else ""))


def _ask_offers(manager: pluggy.PluginManager, module: Any, owner: Owner) -> tuple[tuple[str, Offer], ...]:
    offers = []
    for kind in KINDS:
        register = getattr(module, f"register_{kind}", None)
        if register is None or getattr(register, "surogate_impl", None) is None:
            continue
        for offer in register():
            if not isinstance(offer, Offer):
                raise PluginError(f"register_{kind} returned {offer!r}, not an Offer")
            own = attrs.fields_dict(offer.options) if offer.options else {}
            if (offer.key or kind == "quantizers") and (offer.key not in own or own[offer.key].default is not False):
                raise PluginError(f"offer {offer.name!r}: key = {offer.key!r} is no option of its own that is false by default")
            offers.append((kind, attrs.evolve(offer, name=normal_name(offer.name), owner=owner)))
    return tuple(offers)


def _collisions(plugins: list[Plugin]) -> list[Problem]:
    """Two offers of one name, two options classes with one key, an option that hides a key of the core."""
    problems = []
    names: dict[tuple[str, str], Offer] = {}
    core = Owner("surogate", _version())
    keys: dict[str, tuple[type, Owner]] = {attribute.name: (CoreOptions, core) for attribute in attrs.fields(CoreOptions)}
    table = {attribute.name for attribute in attrs.fields(DatasetOptions)}
    for plugin in plugins:
        for kind, offer in plugin.offers:
            if (other := names.setdefault((kind, offer.name), offer)) is not offer:
                problems.append(_collision(f"two plugins offer {offer.name!r} among the {kind}", other.owner, offer.owner))
            if offer.options is None:
                continue
            for attribute in attrs.fields(offer.options):
                if kind == "datasets":
                    if attribute.name in table:
                        problems.append(_collision(f"key {attribute.name!r} of a data set", Owner("surogate", ""), offer.owner))
                    continue
                options, owner = keys.setdefault(attribute.name, (offer.options, offer.owner))
                if options is not offer.options:
                    problems.append(_collision(f"two owners of the key {attribute.name!r}", owner, offer.owner))
    return problems


def _collision(what: str, first: Owner, second: Owner) -> Problem:
    one, two = sorted([str(first).strip(), str(second).strip()])
    return Problem(what, where=f"{one} and {two}", how=f"uninstall one of them: pip uninstall {second.distribution}")
