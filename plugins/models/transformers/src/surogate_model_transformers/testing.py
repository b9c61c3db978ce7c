"""For the tests of plugins: a tiny model with a tokenizer, in a directory; the bytes that tensors hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


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
    shape = {
        "vocab_size": 264,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    config = transformers.AutoConfig.for_model(model_type, **{**shape, **changes})
    byte_tokenizer(directory)
    config.architectures = [transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[model_type]]
    if not weights:
        config.save_pretrained(directory)
        return directory
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(directory)
    return directory


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
