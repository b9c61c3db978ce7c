"""TRL's SFTTrainer on rows that are tokenised and packed already."""

from __future__ import annotations

from typing import Any

import torch
from common import LORA, TARGETS, Side
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer


class Watch(TrainerCallback):
    def __init__(self, side: Side):
        self.side = side

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.side.step_done()

    def on_log(self, *_: Any, logs: dict[str, Any], **__: Any) -> None:
        if "loss" in logs:
            self.side.losses.append(float(logs["loss"]))


def main() -> None:
    side = Side()
    columns = ("input_ids", "labels", "position_ids")
    steps, batch, length = side.rows["input_ids"].shape
    data = Dataset.from_dict({name: side.rows[name].reshape(-1, length).numpy() for name in columns})
    peft_config = None
    if side.lora:
        from peft import LoraConfig

        peft_config = LoraConfig(target_modules=TARGETS, **LORA)
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(side.model, dtype=side.dtype),
        args=SFTConfig(
            output_dir=str(side.output),
            use_cpu=True,
            bf16=False,  # the weights are bfloat16 themselves where that is asked for; autocast on top of it costs time
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=1,
            max_steps=steps,
            learning_rate=side.lr,
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=0.0,
            gradient_checkpointing=False,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=data,
        data_collator=lambda rows: {name: torch.tensor([row[name] for row in rows]) for name in columns},
        processing_class=AutoTokenizer.from_pretrained(side.model),
        peft_config=peft_config,
        callbacks=[Watch(side)],
    )
    trainer.train()
    side.write()


if __name__ == "__main__":
    main()
