from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import Result

from surogate_core import __version__
from surogate_core.cli.main import COMMANDS
from surogate_core.host import Host
from surogate_core.offers import Offer

HEAVY = ("torch", "transformers", "datasets", "numpy", "ruamel", "rich", "pandas", "tokenizers", "safetensors")


@click.command()
def greet() -> None:
    """A command of a plugin."""
    click.echo("hello from a plugin")


def commands() -> list[Offer]:
    return [
        Offer("say_hello", None, build="a_plugin_of_this_test:greet", summary="Say hello."),
        Offer("broken_one", None, build="no_such_module:command", summary="Cannot be imported."),
        Offer("run", None, build="no_such_module:command", summary="Would hide a command of the core."),
    ]


def python(*words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    what = ["-c", code] if code else ["-m", "surogate_core"]
    return subprocess.run([sys.executable, *what, *words], capture_output=True, text=True, check=False)


def test_help_lists_every_command_with_its_summary(surogate: Callable[..., Result]) -> None:
    done = surogate("--help")
    assert done.exit_code == 0
    for name, (_, summary) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert summary in done.stdout
    assert "_SUROGATE_COMPLETE=bash_source surogate" in done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_has_help(surogate: Callable[..., Result], name: str) -> None:
    done = surogate(name, "--help")
    assert done.exit_code == 0
    assert f"Usage: surogate {name}" in done.stdout
    assert len(done.stdout.splitlines()) > 5


def test_commands_of_plugins_are_loaded_when_used(
    surogate: Callable[..., Result], use: Callable[[Host], None], with_hooks: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("a_plugin_of_this_test")
    module.greet = greet  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    use(with_hooks(register_commands=commands))
    done = surogate("--help")
    assert "Commands of plugins" in done.stdout
    assert "say-hello" in done.stdout
    assert "Cannot be imported." in done.stdout
    assert "Would hide" not in done.stdout
    assert surogate("say-hello").stdout == surogate("say_hello").stdout == "hello from a plugin\n"
    broken = surogate("broken-one")
    assert broken.exit_code == 2
    assert "error: broken_one: ModuleNotFoundError" in broken.stderr
    assert "surogate-stand-in 3.1" in broken.stderr
    assert 'did you mean "say-hello"?' in surogate("say-helo").stderr


@pytest.mark.parametrize(("word", "near"), [("validte", "validate"), ("rn", "run"), ("vlidate", "validate"), ("plugin", "plugins")])
def test_an_unknown_command_suggests_the_nearest(surogate: Callable[..., Result], word: str, near: str) -> None:
    done = surogate(word)
    assert done.exit_code == 2
    assert f'there is no command "{word}": did you mean "{near}"?' in done.stderr


def test_wrong_use_of_a_command(surogate: Callable[..., Result]) -> None:
    done = surogate("run")
    assert done.exit_code == 2
    assert "Missing argument 'CONFIG'" in done.stderr
    assert surogate("plugins", "--nonsense").exit_code == 2


def test_version(surogate: Callable[..., Result]) -> None:
    assert surogate("--version").stdout == f"surogate {__version__}\n"


def test_the_module_is_the_same_program(tmp_path: Path) -> None:
    assert "Usage: surogate" in python("--help").stdout
    done = python("validate", str(tmp_path / "none.toml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: there is no file {tmp_path / 'none.toml'}\n  where: working directory")


@pytest.mark.parametrize("words", [["--help"], ["plugins"], ["validate", "CONFIG"], ["run", "--help"]])
def test_nothing_heavy_is_imported(config: Path, words: list[str]) -> None:
    """validate runs into missing plugins where none is installed, which is also before anything heavy."""
    code = (
        "import sys\nfrom surogate_core.cli.main import main\n"
        f"try: main({[str(config) if word == 'CONFIG' else word for word in words]!r})\n"
        f"except SystemExit as e: assert e.code in (0, 2), e\nfound = set({HEAVY!r}) & set(sys.modules)\nassert not found, found"
    )
    done = python(code=code)
    assert done.returncode == 0, done.stderr


def test_start_up_is_near_that_of_importing_rich(config: Path, tmp_path: Path) -> None:
    """Processor time, best of several, so that a busy machine does not decide; on an idle one it is the time on the clock.
    Compiled modules are kept, as they are for everyone but a test run that asks for none."""
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path / "pyc")}

    def best(*words: str) -> float:
        times = []
        for _ in range(6):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *words], capture_output=True, check=False, env=env)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    base = best("-c", "import rich")
    for words in (["--help"], ["plugins"], ["validate", str(config)]):
        assert best("-m", "surogate_core", *words) - base < 0.25, words


def test_completion_knows_the_commands() -> None:
    env = {**os.environ, "_SUROGATE_COMPLETE": "bash_complete", "COMP_WORDS": "surogate pl", "COMP_CWORD": "1"}
    done = subprocess.run([sys.executable, "-m", "surogate_core"], capture_output=True, text=True, env=env, check=False)
    assert done.stdout.splitlines() == ["plain,plugins", "plain,plan"]
