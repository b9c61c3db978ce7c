from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from surogate_command_plan import command
from surogate_command_plan.fit import OFFLOADS, Method, cheapest, lines_of, methods, planned, ranked, size_of
from surogate_command_plan.rehearse import rehearse
from surogate_command_plan.tally import HOST, Memory, Peak

from surogate_core.cli.main import main
from surogate_core.config import load
from surogate_core.errors import ConfigError
from surogate_core.host import load_host
from surogate_core.plan import make_plan


def surogate(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def rows_of(table: str) -> dict[str, tuple[float, bool]]:
    """Method → (MB, fits) of the lines of a table."""
    found = re.findall(r"^(\S.*?)  +([\d.]+) (MB|GB)  +(yes|no)", table, re.M)
    return {name: (float(number) * (1000 if unit == "GB" else 1), fits == "yes") for name, number, unit, fits in found}


@pytest.mark.parametrize(
    ("text", "size"), [("24GB", 24e9), ("80 GiB", 80 * 2**30), ("512m", 512e6), ("1.5g", 1.5e9), ("1000", 1000.0)]
)
def test_sizes(text: str, size: float) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "0GB", "many", "24XB", "-3GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--fit"):
        size_of(text)


def test_every_method_is_planned_and_what_is_recommended_can_be_pasted(tiny: Path) -> None:
    done = surogate("plan", "--fit", "24GB", tiny, "--sequence-len", "256", "optimizer=adamw")
    assert done.exit_code == 0, done.output
    table = rows_of(done.stdout)
    names = ["full", "LoRA", "QLoRA, qlora_bnb", "QLoRA, qlora_fp8", "QLoRA, qlora_fp4"]
    assert table.keys() == {*names, *(f"{name}, recompute" for name in names)}
    assert all(fits for _, fits in table.values())
    assert done.stdout.splitlines()[2].startswith("LoRA ")  # of 24 GB up to 48 GB: LoRA
    assert done.stdout.splitlines()[2].endswith("recommended")
    assert tomllib.loads(done.stdout.split("recommended:")[1]) == {"lora": True, "recompute": False}


@pytest.mark.parametrize(
    ("size", "full", "lora", "first"),
    [
        (8e9, 1, 1, "qlora"),
        (24e9, 1, 1, "lora"),
        (80e9, 1, 1, "full"),
        (80e9, 99, 1, "lora"),
        (24e9, 1, 99, "qlora"),
        (8e9, 99, 9, "qlora"),
    ],
)
def test_the_guide(size: float, full: int, lora: int, first: str) -> None:
    """Below 24 GB a quantised base, up to 48 GB LoRA, above that all weights; where that does not fit, what takes less."""

    def method(family: str, gigabytes: int) -> Method:
        return Method(family, family.lower(), {}, Memory({"forward": Peak(gigabytes * 10**9, {})}))

    assert ranked([method("full", full), method("LoRA", lora), method("QLoRA", 1)], size)[0].name == first


def test_what_does_not_fit_is_refused_with_the_cheapest_changes_and_they_do(deep: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    keys = ["sequence_len = 256", "lora = false", 'optimizer = "adamw"', "recompute = false", "per_device_train_batch_size = 4"]
    path.write_text("\n".join([f'model = "{deep}"', *keys]))
    host = load_host()
    whole = rehearse(make_plan(load(path, host, need_data=False), host), "cuda")
    assert whole is not None
    size = f"{0.5 * (whole.total - 6e8) + 6e8}"
    done = surogate("plan", "--fit", size, path)
    assert done.exit_code == 2
    said = re.search(r"does not fit: .* planned.*\n.*\n  how: (.*): [\d.]+ MB", done.stderr)
    assert said is not None, done.stderr
    changes = [change.replace(" ", "") for change in said[1].split(", ")]
    assert changes == ["recompute=true"]
    lower = rehearse(make_plan(load(path, host, [("recompute", "true")], need_data=False), host), "cuda")
    assert lower is not None
    assert lower.total <= float(size)


def test_offloading_is_advised_before_other_weights_are_trained(tiny: Path, tmp_path: Path) -> None:
    """Where all that costs less is not enough; not on a CPU, where the host's memory is the device's."""
    path = tmp_path / "config.toml"
    keys = ["sequence_len = 64", "lora = false", 'optimizer = "adamw_8bit"', "recompute = true", "per_device_train_batch_size = 1"]
    path.write_text("\n".join([f'model = "{tiny}"', *keys]))
    host = load_host()
    chunks = [("lmhead_chunks", 8), ("attn_bwd_chunks", 8)]
    size = (planned(path, host, chunks, "cuda").total + planned(path, host, list(OFFLOADS.items()), "cuda").total) / 2
    advised, peak = cheapest(load(path, host, need_data=False), path, host, [], size, "cuda")
    assert advised.items() >= OFFLOADS.items()
    assert "lora" not in advised
    assert peak == planned(path, host, list(advised.items()), "cuda").total <= size
    advised, _ = cheapest(load(path, host, need_data=False), path, host, [], size, "cpu")
    assert not advised.keys() & OFFLOADS.keys()


def test_a_plan_that_the_device_cannot_hold_is_refused(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, data = tmp_path / "config.toml", tmp_path / "text.txt"
    data.write_text("Some text. " * 50)
    keys = ["lora = false", "sequence_len = 256", "recompute = false", "per_device_train_batch_size = 4"]
    path.write_text("\n".join([f'model = "{tiny}"', *keys, "[[datasets]]", f'path = "{data}"', 'type = "text"']))
    monkeypatch.setattr(command, "memory_of", lambda device: 1e12)
    assert surogate("plan", path).exit_code == 0
    monkeypatch.setattr(command, "memory_of", lambda device: 1e6)
    refused = surogate("plan", path)
    assert refused.exit_code == 2
    assert "the most that a step takes is planned as" in refused.stdout
    assert re.search(r"error: does not fit: [\d.]+ MB planned, 1.*\n  where: memory of the device \(cpu\)\n  how: ", refused.stderr)


def test_a_device_that_is_not_here_is_planned_for(deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offloading, too, which a run on the CPU does not have."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    path, data = tmp_path / "config.toml", tmp_path / "text.txt"
    data.write_text("Some text. " * 50)
    keys = ["lora = false", "sequence_len = 64", "offload_optimizer = true", "offload_grads = true", "zero_level = 2"]
    path.write_text("\n".join([f'model = "{deep}"', *keys, "[[datasets]]", f'path = "{data}"', 'type = "text"']))
    refused = surogate("plan", path)
    assert refused.exit_code == 2
    assert "offload_grads = true needs a GPU" in refused.stderr
    done = surogate("plan", path, "--device", "cuda")
    assert done.exit_code == 0, done.output
    assert "device       cuda" in done.stdout
    assert "no GPU found" not in done.stdout
    lines = {line.split("  ")[1]: line for line in done.stdout.splitlines() if line.startswith("  ")}
    assert "gradients" not in lines
    assert "on the host" in lines


def test_offloading_is_among_the_ways_to_train(deep: Path) -> None:
    host = load_host()
    (way,) = [method for method in methods(host) if "offload" in method.name]
    given = [("sequence_len", 64), *way.keys.items()]
    away = planned({"model": str(deep)}, host, given, "cuda")
    assert away.peak.parts[HOST] > 0
    assert "offload_grads = true" in lines_of(way.keys)
