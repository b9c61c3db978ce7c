"""The core's own options: what every run has, whichever plugins it uses.

Types are checked strictly (``structure.py``); bounds are validators; ``doc`` is the sentence shown by ``surogate explain``, by the
schema and in ``docs/options.md``. Keys of plugins are in their own options classes.
"""

from __future__ import annotations

from typing import Any, Literal

from attrs import field, frozen
from surogate_settings.sources import Layout

from surogate_core.offers import between, doc, ge, gt

LAYOUT = Layout(lists=("datasets", "validation_datasets"), tables=("distributed",))
"""Which keys of a configuration hold more keys."""


@frozen(kw_only=True)
class DatasetOptions:
    """Keys that every ``[[datasets]]`` table has; the format named by ``type`` adds its own (``format_options``)."""

    path: str = field(metadata=doc("Local file or directory, or a Hugging Face data set repository."))
    type: str = field(metadata=doc("Format of the rows: the name of an installed data set format."))
    subset: str | None = field(default=None, metadata=doc("Configuration of a Hub data set."))
    split: str = field(default="train", metadata=doc("Split of a Hub data set. A local file is one split."))
    samples: int | None = field(
        default=None, validator=ge(1), metadata=doc("Use this many rows, drawn with `train_seed` (`eval_seed` for validation).")
    )
    weight: float = field(
        default=1.0,
        validator=gt(0),
        metadata=doc("How often an epoch has each piece of the training data: 2 twice, 0.5 a seeded half of them, once."),
    )
    format_options: Any = field(default=None, metadata=doc("Options of the format; not a key.", key=False))


@frozen(kw_only=True)
class CoreOptions:
    """Options of the core."""

    # General
    task: Literal["pt", "sft"] | None = field(
        default=None,
        metadata=doc(
            "`pt` trains all weights on text, `sft` fine-tunes. Unset: `pt` if all data sets are text and neither `lora` nor "
            "`adapter` is set."
        ),
    )
    apply_recommended_values: bool = field(
        default=False,
        metadata=doc(
            "For keys that are not set: `max_grad_norm` 1.0, `warmup_ratio` 0.03, `lr_scheduler_type` cosine, and with `lora` "
            "`weight_decay` 0.01. Each change is told."
        ),
    )
    run_name: str | None = field(default=None, metadata=doc("Name of the run. Unset: the model's name and the time of the start."))
    output_dir: str = field(default="output", metadata=doc("Directory for metrics, configuration and checkpoints."))
    checkpoint_dir: str | None = field(default=None, metadata=doc("Directory for checkpoints. Unset: `output_dir`."))
    checkpoint_store: str = field(default="local", metadata=doc("What keeps the checkpoints."))
    resume_from_checkpoint: bool = field(
        default=True, metadata=doc("Continue from the newest complete checkpoint, if there is one.")
    )
    save_steps: int = field(
        default=50, validator=ge(1), metadata=doc("Steps between checkpoints. One is always written at the end.")
    )
    save_total_limit: int = field(
        default=5, validator=ge(1), metadata=doc("Checkpoints to keep; older ones are deleted, the best and the last never.")
    )

    # Model
    model: str = field(metadata=doc("Directory or Hugging Face repository of the model."))
    from_scratch: bool = field(default=False, metadata=doc("Random weights: only the model's config.json and tokenizer are read."))
    sequence_len: int = field(default=1024, validator=ge(2), metadata=doc("Positions of a row, in tokens."))
    model_dtype: Literal["fp32", "bf16"] = field(
        default="bf16", metadata=doc("Precision of weights and activations in the computation.")
    )

    training_loop: str = field(default="standard", metadata=doc("What makes a run of the plan: steps, records, checkpoints."))
    model_backend: str = field(default="transformers", metadata=doc("What reads, runs and writes the model."))

    # Computation
    recipe: str = field(default="bf16", metadata=doc("Precision recipe: the arithmetic of the linear layers."))
    recipe_backend: Literal["auto", "native", "emulated"] = field(
        default="auto",
        metadata=doc("`emulated` runs the recipe's exact arithmetic on any device; the others need the device it is made for."),
    )
    kernels: Literal["auto", "native", "reference"] = field(
        default="auto", metadata=doc("Force every op that has one to its native kernel, or to its definition in plain torch.")
    )
    skip_quant_first_layers: int = field(
        default=0, validator=ge(0), metadata=doc("First decoder layers that the recipe leaves in the model's dtype.")
    )
    skip_quant_last_layers: int = field(
        default=0, validator=ge(0), metadata=doc("Last decoder layers that the recipe leaves in the model's dtype.")
    )
    compile: bool = field(default=False, metadata=doc("Compile each decoder layer with torch.compile; the compiled code is kept."))
    recompute: bool = field(
        default=True, metadata=doc("Recompute activations of each decoder layer in the backward pass: less memory, more time.")
    )
    train_seed: int = field(
        default=1234, validator=ge(0), metadata=doc("Seed of initial weights, dropout, shuffling and sampling.")
    )
    eval_seed: int = field(default=1234, validator=ge(0), metadata=doc("Seed for sampling the validation data."))

    # Optimizer
    optimizer: str = field(default="adamw_8bit", metadata=doc("Update rule."))
    learning_rate: float = field(default=2e-4, validator=gt(0), metadata=doc("Base learning rate."))
    lr_scheduler_type: str = field(default="linear", metadata=doc("Shape of the learning rate's decay."))
    warmup_ratio: float = field(default=0.0, validator=between(0, 1), metadata=doc("Share of the steps for linear warmup from 0."))
    warmup_steps: int = field(
        default=0, validator=ge(0), metadata=doc("Steps of linear warmup; overrides `warmup_ratio` if above 0.")
    )
    cooldown_steps: int = field(
        default=0, validator=ge(0), metadata=doc("Last steps, linear from the rate reached there to the final rate.")
    )
    final_lr_fraction: float = field(
        default=0.0, validator=between(0, 1), metadata=doc("Final learning rate as a fraction of the base rate.")
    )
    master_dtype: Literal["fp32", "bf16"] | None = field(
        default=None,
        metadata=doc(
            "`fp32` keeps float32 masters of bfloat16 weights, 2 more bytes a value, and adds up the gradients of several "
            "micro-batches in float32, 2 more while it does; without them updates are rounded stochastically. An adapter's masters "
            "are its own (`lora_dtype`)."
        ),
    )
    weight_decay: float = field(default=0.1, validator=ge(0), metadata=doc("Decoupled weight decay; not on norms and biases."))
    max_grad_norm: float = field(default=0.0, validator=ge(0), metadata=doc("Clip the gradient's norm to this; 0 is off."))
    adamw_beta1: float = field(default=0.9, validator=between(0, 0.999999), metadata=doc("Decay of AdamW's first moment."))
    adamw_beta2: float = field(default=0.999, validator=between(0, 0.999999), metadata=doc("Decay of AdamW's second moment."))
    adamw_epsilon: float = field(default=1e-8, validator=gt(0), metadata=doc("Added to AdamW's denominator."))

    # Loop
    num_epochs: int = field(default=3, validator=ge(1), metadata=doc("Passes over the training data."))
    max_steps: int = field(default=-1, validator=ge(-1), metadata=doc("Optimizer steps; -1 derives them from `num_epochs`."))
    per_device_train_batch_size: int = field(default=2, validator=ge(1), metadata=doc("Rows of a micro-batch on one device."))
    gradient_accumulation_steps: int = field(default=4, validator=ge(1), metadata=doc("Micro-batches of an optimizer step."))
    eval_steps: int = field(default=100, validator=ge(1), metadata=doc("Steps between evaluations."))

    # Data
    data_pipeline: str = field(default="packed", metadata=doc("What turns the rows of the data sets into batches."))
    datasets: list[DatasetOptions] | None = field(default=None, metadata=doc("Training data: a list of tables."))
    validation_datasets: list[DatasetOptions] | None = field(default=None, metadata=doc("Validation data, like `datasets`."))

    # Adapter
    lora: bool = field(default=True, metadata=doc('Train an adapter and freeze the model. Default false for `task = "pt"`.'))
    adapter: str = field(default="lora", metadata=doc("Kind of adapter."))

    # Logging
    report_to: list[str] | None = field(default=None, metadata=doc("Loggers to report to, beside the console."))
