"""For the tests of plugins: a tiny model with a tokenizer, in a directory; the bytes that tensors hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SHAPE = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
}
"""The decoder of a tiny model."""


def byte_tokenizer(directory: Path, chat_template: str | None = CHATML) -> Path:
    """Write a tokenizer with one token a byte, and ``<|endoftext|>`` (pad), ``<|im_start|>``, ``<|im_end|>`` (end): 259 ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", clean_up_tokenization_spaces=False
    )
    fast.chat_template = chat_template
    fast.save_pretrained(directory)
    return directory


def tiny_model(directory: Path, model_type: str = "qwen3", *, weights: bool = True, **changes: Any) -> Path:
    """Write a random model of about 60,000 parameters with a byte tokenizer; ``weights=False`` leaves the weights out."""
    import torch
    import transformers

    directory.mkdir(parents=True, exist_ok=True)
    config = transformers.AutoConfig.for_model(model_type, **{**SHAPE, "tie_word_embeddings": True, **changes})
    byte_tokenizer(directory)
    config.architectures = [transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    if not weights:
        config.save_pretrained(directory)
        return directory
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


def short_run(model: Path, data: Path, directory: Path, **changes: Any) -> dict[str, Any]:
    """The configuration, as a mapping, of four steps of an adapter on a file of texts: fp32, rows of 64 positions, constant rate,
    AdamW without decay, no recomputation, no validation; ``changes`` are more keys, or other values."""
    return {
        "model": str(model),
        "model_dtype": "fp32",
        "output_dir": str(directory / "output"),
        "cache_dir": str(directory / "cache"),
        "sequence_len": 64,
        "gradient_accumulation_steps": 1,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "optimizer": "adamw",
        "weight_decay": 0.0,
        "lora": True,
        "recompute": False,
        "dataloader_num_workers": 0,
        "validation_split_ratio": 0.0,
        "datasets": [{"path": str(data), "type": "text"}],
        **changes,
    }


def held_bytes(mapped: int = -1) -> Any:
    """A context manager with ``now`` and ``peak``: bytes of the living ones among the tensors that operations made inside of it.
    Views of a mapped file of ``mapped`` bytes take no memory."""
    import weakref

    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Held(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.alive: dict[int, tuple[Any, int]] = {}
            self.now = self.peak = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                    self.add(tensor.untyped_storage())
            return out

        def add(self, storage: Any) -> None:
            key, size = storage._cdata, storage.nbytes()
            if key in self.alive or size == mapped:
                return
            self.alive[key] = (weakref.ref(storage, lambda _: self.drop(key)), size)
            self.now += size
            self.peak = max(self.peak, self.now)

        def drop(self, key: int) -> None:
            self.now -= self.alive.pop(key, (None, 0))[1]

    return Held()


SEEING = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Writes images as Qwen's own templates do."""


def tiny_vision_model(directory: Path, model_type: str = "qwen3_vl", *, weights: bool = True, **changes: Any) -> Path:
    """Write a random vision-language model of the Qwen-VL shape, about 100,000 parameters, with a byte tokenizer that has the image
    tokens, and an image processor: patches of 4 × 4 pixels, four of which are one token, images of 64 to 1024 pixels."""
    import json

    import torch
    import transformers

    directory.mkdir(parents=True, exist_ok=True)
    byte_tokenizer(directory, SEEING)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    names = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": names})
    tokenizer.save_pretrained(directory)
    start, end, image, video = tokenizer.convert_tokens_to_ids(names)
    text = {
        **SHAPE,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True},
        **changes,
    }
    sight = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "patch_size": 4,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0],
    }
    ids = {"vision_start_token_id": start, "vision_end_token_id": end, "image_token_id": image, "video_token_id": video}
    config = transformers.AutoConfig.for_model(model_type, text_config=text, vision_config=sight, tie_word_embeddings=True, **ids)
    processor = {
        "image_processor_type": "Qwen2VLImageProcessorFast",
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 64, "longest_edge": 1024},
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(processor))
    family = transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[model_type]
    config.architectures = [family]
    if not weights:
        config.save_pretrained(directory)
        return directory
    with torch.random.fork_rng():
        torch.manual_seed(0)
        getattr(transformers, family)._from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory
