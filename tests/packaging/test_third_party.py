"""A stranger's plugin: written here, outside of the repository, and installed by pip beside surogate's wheels."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from surogate_model_transformers import testing as models_testing

from surogate_core import testing

pytestmark = pytest.mark.xdist_group("wheels")
ROOT = Path(__file__).resolve().parents[2]

PROJECT = """
[build-system]
requires = ["flit_core >=3.11,<5"]
build-backend = "flit_core.buildapi"

[project]
name = "{name}"
version = "2.3"
description = "A recipe by somebody else."
dependencies = ["surogate"]

[project.entry-points."{group}"]
{name} = "{module}"
"""


def recipe_of_the_documentation() -> str:
    """The plugin that docs/plugins.md shows, as it stands there."""
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    return page.split("```python\n", 1)[1].split("```", 1)[0]


def offering(name: str, build: str = "acme_nothing:build") -> str:
    return f"""
        from surogate_core import Offer, hookimpl

        @hookimpl
        def register_recipes():
            return [Offer({name!r}, None, build={build!r}, summary="Nothing.")]
        """


def write_plugin(directory: Path, name: str, source: str, group: str = "surogate.v1") -> Path:
    module, place = name.replace("-", "_"), directory / name
    place.mkdir()
    (place / "pyproject.toml").write_text(PROJECT.format(name=name, module=module, group=group))
    (place / f"{module}.py").write_text(textwrap.dedent(source))
    return place


@pytest.fixture
def environment(everything: Any) -> Any:
    """All of surogate from wheels; what a test installs in addition, it removes again."""
    return everything


@pytest.fixture
def install(environment: Any, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Write a plugin and install it for the time of the test."""
    installed = []

    def write_and_install(name: str, source: str, **more: str) -> None:
        environment.install(write_plugin(tmp_path, name, source, **more))
        installed.append(name)

    yield write_and_install
    if installed:
        environment.remove(*installed)


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., Path]:
    """Write a job of a few steps on a tiny model into a directory of its own; ``recipe`` and ``output`` vary."""
    models_testing.tiny_model(tmp_path / "model")
    rows = [{"text": f"{number} times the quick brown fox jumps over the lazy dog"} for number in range(60)]
    testing.write_rows(tmp_path / "text.jsonl", rows)

    def write(recipe: str, steps: int = 4) -> Path:
        path = tmp_path / f"{recipe}.toml"
        path.write_text(f"""
model = "model"
recipe = "{recipe}"
lora = false
max_steps = {steps}
sequence_len = 64
learning_rate = 1e-3
model_dtype = "fp32"
optimizer = "adamw"
output_dir = "out-{recipe}"

[[datasets]]
path = "text.jsonl"
type = "text"
""")
        return path

    return write


def losses(directory: Path) -> list[float]:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["kind"] == "step"]


def test_the_recipe_of_the_documentation_trains(environment: Any, install: Any, job: Any, tmp_path: Path) -> None:
    source = recipe_of_the_documentation()
    assert len(source.splitlines()) <= 60
    install("acme-recipe-int8", source)
    assert str(ROOT) not in environment.python("-c", "import surogate_core; print(surogate_core.__file__)").stdout
    for run, recipe in ((environment.forked, "bf16"), (environment.surogate, "acme_int8")):
        done = run("run", job(recipe).name, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    plain, theirs = losses(tmp_path / "out-bf16"), losses(tmp_path / "out-acme_int8")
    assert len(theirs) == 4
    assert theirs[0] != plain[0], "the recipe's arithmetic is not the plain one"
    assert theirs[0] == pytest.approx(plain[0], rel=0.02), "eight bits still describe the same model"
    assert theirs[-1] < theirs[0]
    checkpoint = sorted((tmp_path / "out-acme_int8").glob("checkpoint-*"))[-1]
    assert "2.3" in list(find(json.loads((checkpoint / "state.json").read_text()), "acme-recipe-int8"))
    assert "acme-recipe-int8 2.3" in " ".join(environment.surogate("plugins").stdout.split())


def test_its_authors_can_check_it(environment: Any, install: Any) -> None:
    install("acme-recipe-int8", recipe_of_the_documentation())
    page = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    check = page.split("```py\n", 1)[1].split("```", 1)[0]
    done = environment.forked_python(f"{check}\ntest_conforms()")
    assert done.returncode == 0, done.stderr
    done = environment.forked_python(f"{check.replace('bound=0.02', 'bound=0.001')}\ntest_conforms()")
    assert "AssertionError: output: relative error" in done.stderr


def find(value: Any, key: str) -> Iterator[Any]:
    """Every value under ``key`` in nested dicts."""
    if isinstance(value, dict):
        yield from (item for name, item in value.items() if name == key)
        for item in value.values():
            yield from find(item, key)


def test_an_option_of_theirs_is_a_key_of_the_config(environment: Any, install: Any, job: Any, tmp_path: Path) -> None:
    install("acme-recipe-int8", recipe_of_the_documentation())
    path = job("acme_int8", steps=1)
    fine = environment.forked("run", path.name, "--acme-bits", "4", cwd=tmp_path)
    assert fine.returncode == 0, fine.stderr
    wrong = environment.forked("run", path.name, "--acme-bits", "1", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "acme_bits" in wrong.stderr
    assert "acme-recipe-int8" in environment.surogate("explain", path.name, "acme_bits", cwd=tmp_path).stdout


def test_without_it_the_name_is_unknown(environment: Any, job: Any, tmp_path: Path) -> None:
    done = environment.forked("run", job("acme_int8").name, cwd=tmp_path)
    assert done.returncode == 2
    assert "acme_int8" in done.stderr
    assert not (tmp_path / "out-acme_int8").exists()


def test_two_plugins_with_one_name_are_refused_and_both_named(environment: Any, install: Any, job: Any, tmp_path: Path) -> None:
    install("acme-one", offering("acme_same"))
    install("acme-two", offering("acme_same"))
    done = environment.forked("run", job("bf16").name, cwd=tmp_path)
    assert done.returncode == 2
    assert "acme-one 2.3 and acme-two 2.3" in done.stderr
    listed = environment.surogate("plugins")
    assert "acme-one" in listed.stdout
    assert "acme-two" in listed.stdout


@pytest.mark.parametrize(
    ("name", "source", "group", "said"),
    [
        ("acme-missing", "import a_module_that_is_not_there", "surogate.v1", "No module named 'a_module_that_is_not_there'"),
        ("acme-typo", offering("x").replace("register_recipes", "register_recipe"), "surogate.v1", "register_recipes"),
        ("acme-later", offering("x"), "surogate.v2", "surogate.v2"),
    ],
)
def test_a_plugin_that_cannot_be_used_is_shown_and_the_rest_works(
    environment: Any, install: Any, job: Any, tmp_path: Path, name: str, source: str, group: str, said: str
) -> None:
    install(name, source, group=group)
    listed = environment.surogate("plugins")
    assert name in listed.stdout + listed.stderr
    assert said in listed.stdout + listed.stderr
    done = environment.forked("run", job("bf16", steps=1).name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_an_observer_that_raises_is_reported_once_and_training_goes_on(
    environment: Any, install: Any, job: Any, tmp_path: Path
) -> None:
    install(
        "acme-observer",
        """
        from surogate_core import hookimpl

        @hookimpl
        def step_finished(record):
            raise RuntimeError("I do not like this step")
        """,
    )
    done = environment.forked("run", job("bf16").name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "out-bf16")) == 4
    assert (done.stdout + done.stderr).count("I do not like this step") == 1
    assert "acme-observer 2.3" in done.stdout + done.stderr


def test_a_recipe_that_raises_stops_the_run_and_is_named(environment: Any, install: Any, job: Any, tmp_path: Path) -> None:
    source = """
        from surogate_core import Offer, hookimpl

        @hookimpl
        def register_recipes():
            return [Offer("acme_bad", None, build="acme_bad:build", summary="Raises.")]

        class Bad:
            def claim(self, site):
                raise RuntimeError("I cannot decide")

        def build(options, context):
            return Bad()
        """
    install("acme-bad", source)
    done = environment.forked("run", job("acme_bad").name, cwd=tmp_path)
    assert done.returncode == 1
    assert "I cannot decide" in done.stderr
    assert "acme-bad 2.3" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.glob("out-acme_bad/checkpoint-*"))
