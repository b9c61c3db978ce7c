from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from surogate_model_transformers import blocks as list_blocks
from surogate_model_transformers import fill_slots, list_sites, load_model, load_tokenizer, read_config, run_hidden, skeleton
from surogate_model_transformers.attention import IMPLEMENTATION
from transformers import AutoModelForCausalLM

from surogate_core.errors import ModelError

FAMILIES = ["llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma3", "phi3", "gpt_oss", "qwen3_moe", "mixtral", "gpt2"]


@pytest.fixture
def copied(tiny: Any, tmp_path: Path) -> Path:
    """A llama directory to spoil."""
    return Path(shutil.copytree(tiny("llama")[1], tmp_path / "model"))


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_and_buffers_are_bitwise_transformers_own(family: str, tiny: Any, load: Any) -> None:
    theirs, directory = tiny(family)

    def fill(model: Any) -> None:
        assert all(parameter.is_meta for parameter in model.parameters())
        names = [site.name for site in list_sites(model) if site.kind == "linear"]
        fill_slots(model, dict.fromkeys(names, torch.nn.functional.linear), {})

    ours = load(directory, prepare=fill)
    assert ours.config._attn_implementation == IMPLEMENTATION
    for kind in ("named_parameters", "named_buffers"):
        got, expected = dict(getattr(ours, kind)()), dict(getattr(theirs, kind)())
        assert list(got) == list(expected)
        for name in expected:
            assert torch.equal(got[name], expected[name]), name
    assert not [name for name in vars(ours) if "quant" in name]
    assert "quant" not in ours.config.to_json_string()


def assert_copies_load_alike(theirs: Any, directory: Path, load: Any, place: Path, shard: str) -> None:
    """A single file as it is in ``directory``, a copy in shards of at most ``shard``, and one that is a pickle."""
    theirs.save_pretrained(place / "sharded", max_shard_size=shard)
    assert len(list((place / "sharded").glob("*.safetensors"))) > 2
    (place / "pickled").mkdir()
    shutil.copyfile(directory / "config.json", place / "pickled" / "config.json")
    torch.save(load_file(directory / "model.safetensors"), place / "pickled" / "pytorch_model.bin")
    for copy, expected_notices in ((directory, 0), (place / "sharded", 0), (place / "pickled", 1)):
        notices: list[str] = []
        got = load(copy, notice=notices.append).state_dict()
        assert got.keys() == theirs.state_dict().keys()
        for name, tensor in got.items():
            assert torch.equal(tensor, theirs.state_dict()[name])
        assert len(notices) == expected_notices
        assert all("pytorch_model.bin is a pickle" in notice for notice in notices)


def test_single_sharded_and_pickled_files_load_alike(tiny: Any, load: Any, tmp_path: Path) -> None:
    assert_copies_load_alike(*tiny("qwen3"), load, tmp_path, "20KB")


def test_copies_of_a_real_model_load_alike(shared_data: Path, load: Any, tmp_path: Path) -> None:
    directory = shared_data / "models" / "stories260K"
    theirs = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert_copies_load_alike(theirs, directory, load, tmp_path, "300KB")


class _Surprise:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("surprise"),))


def test_pickled_code_is_not_run(copied: Path, load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (copied / "model.safetensors").unlink()
    torch.save({"lm_head.weight": _Surprise()}, copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be read"):
        load(copied)
    assert not Path("surprise").exists()


def test_random_weights_are_transformers_own_for_the_seed(copied: Path, core: Any) -> None:
    from transformers import AutoModelForCausalLM

    (copied / "model.safetensors").unlink()
    options = core(copied, from_scratch=True, train_seed=5)
    before = torch.get_rng_state()
    ours = load_model(read_config(options), options, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    theirs = AutoModelForCausalLM.from_config(read_config(options))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor)
    small = load_model(read_config(options), core(copied, from_scratch=True, train_seed=5, model_dtype="bf16"), device="cpu")
    assert small.lm_head.weight.dtype == torch.bfloat16
    assert torch.equal(small.lm_head.weight, theirs.lm_head.weight.bfloat16())
    assert small.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(
    ("stored", "torch_dtype", "model_dtype", "notices"),
    [
        (torch.float32, None, "bf16", 0),
        (torch.float32, "bfloat16", "fp32", 0),
        (torch.float32, "float16", "bf16", 0),
        (torch.float16, None, "bf16", 1),
        (torch.float16, None, "fp32", 1),
    ],
)
def test_dtypes(stored: torch.dtype, torch_dtype: str | None, model_dtype: str, notices: int, copied: Path, load: Any) -> None:
    weights = {name: tensor.to(stored) for name, tensor in load_file(copied / "model.safetensors").items()}
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    said: list[str] = []
    model = load(copied, notice=said.append, torch_dtype=torch_dtype, model_dtype=model_dtype)
    computed = {"bf16": torch.bfloat16, "fp32": torch.float32}[model_dtype]
    read = computed if torch_dtype is None else getattr(torch, torch_dtype)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name].to(read).to(computed))
    assert model.model.rotary_emb.inv_freq.dtype == torch.float32
    assert len(said) == notices
    assert all("float16" in line for line in said)


def test_source_overrides_the_model_and_from_scratch(tiny: Any, load: Any) -> None:
    theirs, directory = tiny("llama")
    ours = load(directory, source=directory, from_scratch=True)
    assert torch.equal(ours.lm_head.weight, theirs.lm_head.weight)


@pytest.mark.parametrize("fault", ["missing", "not part of this model", "of another shape"])
def test_weights_that_do_not_fit_are_named(fault: str, copied: Path, load: Any) -> None:
    weights, name = load_file(copied / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    if fault == "missing":
        del weights[name]
    elif fault == "of another shape":
        weights[name] = torch.zeros(3, 3)
    else:
        name = "model.layers.1.mlp.extra.weight"
        weights[name] = torch.zeros(3, 3)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"{fault}: {name}"):
        load(copied)


def test_a_damaged_file_is_said(copied: Path, load: Any) -> None:
    whole = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="the weights cannot be read"):
        load(copied)


def test_dynamic_frequencies_do_not_depend_on_what_came_before(tiny: Any, load: Any) -> None:
    model = load(tiny("llama")[1], rope_scaling="dynamic", max_model_len=256, sequence_len=128)
    rotary = model.model.rotary_emb
    before = rotary.inv_freq.clone()
    for length in (200, 8):
        rotary(torch.zeros(1), torch.arange(length)[None])
        assert torch.equal(rotary.inv_freq, before)


def spoil(copied: Path, **changes: Any) -> None:
    path = copied / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in {**raw, **changes}.items() if value is not None}))


def test_no_such_directory(core: Any) -> None:
    with pytest.raises(ModelError, match="no model directory") as caught:
        read_config(core("./nowhere"))
    assert caught.value.problems[0].where == "model"
    assert caught.value.exit_code == 2


def test_no_such_repository(core: Any) -> None:
    with pytest.raises(ModelError, match="no such Hugging Face repository"):
        read_config(core("nobody-here/nothing-there", revision="v1"))


def test_no_config(core: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        read_config(core(tmp_path))


def test_no_weights(copied: Path, core: Any) -> None:
    (copied / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="has no weights") as caught:
        read_config(core(copied))
    assert "from_scratch" in caught.value.problems[0].how
    assert read_config(core(copied, from_scratch=True)).model_type == "llama"


def test_unknown_architecture(copied: Path, core: Any) -> None:
    spoil(copied, model_type="lama")
    with pytest.raises(ModelError, match="'lama'") as caught:
        read_config(core(copied))
    assert "'llama'" in caught.value.problems[0].how
    spoil(copied, auto_map={"AutoConfig": "code.Config"})
    with pytest.raises(ModelError, match="trust_remote_code"):
        read_config(core(copied))


def test_no_language_model(copied: Path, core: Any) -> None:
    spoil(copied, model_type="vit")
    options = core(copied)
    with pytest.raises(ModelError, match="next token"):
        skeleton(read_config(options), options)


def test_model_type(copied: Path, core: Any) -> None:
    assert read_config(core(copied, model_type="ll")).model_type == "llama"
    with pytest.raises(ModelError, match=r"'qwen3'.*'llama'"):
        read_config(core(copied, model_type="qwen3"))
    spoil(copied, model_type=None, architectures=None)
    with pytest.raises(ModelError, match="names no model_type"):
        read_config(core(copied))
    assert read_config(core(copied, model_type="llama")).hidden_size == 32


def test_quantised_checkpoints_are_refused(copied: Path, core: Any) -> None:
    spoil(copied, quantization_config={"quant_method": "fp8"})
    with pytest.raises(ModelError, match="quantised already"):
        read_config(core(copied))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sequence_len": 65}, "sequence_len is 65, the model's context length is 64"),
        ({"sequence_len": 33, "max_model_len": 32}, "context length is 32"),
        ({"max_model_len": 65}, "max_model_len is 65"),
        ({"rope_scaling": "yarn"}, "needs max_model_len"),
        ({"rope_scaling": "yarn", "max_model_len": 32, "sequence_len": 8}, "below the model's own 64"),
        ({"rope_scaling": "yarn", "max_model_len": 128, "sequence_len": 129}, "context length is 128"),
        ({"rope_scaling": "jarn", "max_model_len": 128}, "'jarn' is unknown"),
        ({"rope_scaling": "{nonsense", "max_model_len": 128}, "not valid JSON"),
    ],
)
def test_context_lengths_that_cannot_be(changes: dict[str, Any], said: str, tiny: Any, core: Any) -> None:
    with pytest.raises(ModelError, match=said):
        read_config(core(tiny("llama")[1], **changes))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_scaling": "linear"}, {"rope_type": "linear", "factor": 2.0}),
        ({"rope_scaling": "dynamic"}, {"rope_type": "dynamic", "factor": 2.0}),
        ({"rope_scaling": "yarn"}, {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}),
        (
            {"rope_scaling": '{"type": "linear", "factor": 4.0, "rope_theta": 5.0}'},
            {"rope_type": "linear", "factor": 4.0, "rope_theta": 5.0},
        ),
    ],
)
def test_rope_scaling_as_transformers_wants_it(changes: dict[str, Any], expected: dict[str, Any], tiny: Any, core: Any) -> None:
    config = read_config(core(tiny("llama")[1], max_model_len=128, sequence_len=128, **changes))
    assert config.rope_parameters == {"rope_theta": 10000.0, **expected}
    assert config.max_position_embeddings == (64 if changes["rope_scaling"] == "dynamic" else 128)


def test_models_without_rotary_positions_cannot_be_scaled(tiny: Any, core: Any) -> None:
    with pytest.raises(ModelError, match="no rotary positions"):
        read_config(core(tiny("gpt2")[1], rope_scaling="yarn", max_model_len=128))


def test_no_tokenizer(tiny: Any, core: Any) -> None:
    with pytest.raises(ModelError, match="the tokenizer cannot be loaded"):
        load_tokenizer(core(tiny("llama")[1]))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "phi3", "gpt_oss", "qwen3_moe", "gpt2"])
def test_projections_that_start_at_zero_make_each_block_the_identity(family: str, tiny: Any, load: Any, packed: Any) -> None:
    """transformers' own hidden states: what goes into the first block comes out of the last. Other weights are as without it."""
    directory = tiny(family)[1]
    plain = load(directory, from_scratch=True, model_dtype="fp32")
    model = load(directory, from_scratch=True, model_dtype="fp32", init_projections_to_zero=True)
    run_hidden(model, packed([[9, 12], [20]]))  # the first call also looks how the model behaves
    states = []
    for layer in list_blocks(model)[1]:
        layer.register_forward_pre_hook(lambda module, args: states.append(args[0]))
        layer.register_forward_hook(lambda module, args, out: states.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        run_hidden(model, packed([[9, 12], [20]]))
    assert len(states) >= 4
    assert all(torch.equal(states[0], state) for state in states)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, plain.state_dict()[name])}
    assert changed
    assert all(not model.state_dict()[name].any() for name in changed)


def test_projections_of_weights_that_are_read_stay() -> None:
    from surogate_core.config import load as load_config
    from surogate_core.errors import ConfigError
    from surogate_core.host import load_host

    data = [{"path": "owner/name", "type": "text"}]
    with pytest.raises(ConfigError, match="would overwrite weights"):
        load_config({"model": "owner/model", "datasets": data, "init_projections_to_zero": True}, load_host())
