"""The loop that a user of transformers writes without any trainer."""

from __future__ import annotations

import torch
from common import LORA, TARGETS, Side
from transformers import AutoModelForCausalLM


def main() -> None:
    side = Side()
    model = AutoModelForCausalLM.from_pretrained(side.model, dtype=side.dtype)
    if side.lora:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(target_modules=TARGETS, **LORA))
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=side.lr, weight_decay=0.0)
    for ids, labels, places in zip(*(side.rows[name] for name in ("input_ids", "labels", "position_ids")), strict=True):
        loss = model(input_ids=ids, labels=labels, position_ids=places, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        side.losses.append(loss.item())
        side.step_done()
    side.write()


if __name__ == "__main__":
    main()
