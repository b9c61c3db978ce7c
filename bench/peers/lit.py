"""LitGPT's own model and ``finetune.full.fit``, on the given rows. Its attention sees across the documents of a row."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from common import Side
from lightning.fabric.loggers.logger import Logger
from litgpt.args import EvalArgs, TrainArgs
from litgpt.config import Config
from litgpt.finetune.full import fit
from litgpt.model import GPT
from litgpt.scripts.convert_hf_checkpoint import copy_weights_qwen_3
from litgpt.utils import instantiate_torch_optimizer
from safetensors.torch import load_file
from torch.utils.data import DataLoader


class Losses(Logger):
    """Takes the losses that ``fit`` logs."""

    name, version = "losses", 0

    def __init__(self, side: Side):
        self.side = side

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.side.losses.append(float(metrics["loss"]))

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        return None


def own_config(path: Path) -> Config:
    """LitGPT's description of the same model."""
    hf = Namespace(**json.loads((path / "config.json").read_text()))
    return Config(
        name="small-qwen3",
        hf_config={"org": "Qwen", "name": "Qwen3-0.6B"},
        block_size=hf.max_position_embeddings,
        vocab_size=hf.vocab_size,
        padded_vocab_size=hf.vocab_size,
        n_layer=hf.num_hidden_layers,
        n_head=hf.num_attention_heads,
        n_embd=hf.hidden_size,
        n_query_groups=hf.num_key_value_heads,
        head_size=hf.head_dim,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=hf.intermediate_size,
        norm_eps=hf.rms_norm_eps,
        rope_base=int(hf.rope_parameters["rope_theta"]),
        norm_qk=True,
    )


def own_weights(path: Path, config: Config) -> dict[str, torch.Tensor]:
    """The checkpoint under LitGPT's names; its own function joins q, k and v, and ties the head."""
    renamed: dict[str, torch.Tensor] = {}
    copy_weights_qwen_3(config, {}, renamed, cast("dict[str, Any]", load_file(path / "model.safetensors")))
    return renamed


def main() -> None:
    side = Side()
    steps, batch, length = side.rows["input_ids"].shape
    fabric = L.Fabric(devices=1, accelerator="cpu", precision=f"{side.precision.removeprefix('fp')}-true", loggers=[Losses(side)])
    config = own_config(side.model)
    with fabric.init_module(empty_init=False):
        model = GPT(config)
    model.load_state_dict(own_weights(side.model, config))
    model.transformer.wte.weight = model.lm_head.weight
    module = fabric.setup(model)
    rule = {"class_path": "torch.optim.AdamW", "init_args": {"lr": side.lr, "weight_decay": 0.0}}
    plain = instantiate_torch_optimizer(rule, module.parameters())
    plain.register_step_post_hook(side.step_done)
    optimizer = fabric.setup_optimizers(plain)
    counts = {"raw": torch.tensor([length]), "raw_plus_prompt_template": torch.tensor([length])}
    flat = {name: side.rows[name].reshape(-1, length) for name in ("input_ids", "labels")}
    data = [{"token_counts": counts, **{name: rows[at] for name, rows in flat.items()}} for at in range(steps * batch)]
    fit(
        fabric=fabric,
        state={
            "model": module,
            "optimizer": optimizer,
            "scheduler": torch.optim.lr_scheduler.ConstantLR(plain, factor=1.0),
            "iter_num": 0,
            "step_count": 0,
        },
        train_dataloader=fabric.setup_dataloaders(DataLoader(data, batch_size=batch)),
        val_dataloader=DataLoader([], batch_size=batch),
        devices=1,
        resume=False,
        checkpoint_dir=side.model,
        out_dir=side.output,
        train=TrainArgs(
            save_interval=None,
            log_interval=1,
            global_batch_size=batch,
            micro_batch_size=batch,
            lr_warmup_steps=0,
            epochs=1,
            max_steps=steps,
            max_seq_length=length,
        ),
        eval=EvalArgs(interval=steps + 1, initial_validation=False, final_validation=False),
        data=cast("Any", None),
    )
    side.write()


if __name__ == "__main__":
    main()
