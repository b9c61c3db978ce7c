"""Keys and names of the reference that this installation may not have.

``NOT_BUILT``: keys of the reference whose feature does not exist in this version. The default is accepted, any other value is
refused. ``NOT_BUILT_NAMES``: the same for names of offers. Both shrink to nothing.

``HOMES`` and ``NAME_HOMES``: the distribution that brings a key or a name, for the ``pip install`` line when it is missing. Tests
compare them with the plugins of this repository.
"""

from __future__ import annotations

from typing import Any

NOT_BUILT: dict[str, Any] = {
    "apply_recommended_values": False,
    # precision
    "matmul_dtype": None,
    "gradient_dtype": None,
    "master_dtype": None,
    "recipe_backend": "auto",
    "kernels": "auto",
    "use_fused_rope": False,
    "fp8_amax_history": 16,
    "fp4_backend": "cutlass",
    "fp4_four_over_six": True,
    "no_fp4_hadamard": False,
    "no_fp4_stochastic_rounding": False,
    "skip_quant_first_layers": 0,
    "skip_quant_last_layers": 0,
    # memory
    "lmhead_chunks": 1,
    "attn_bwd_chunks": 1,
    "init_projections_to_zero": False,
    "offload_residual": False,
    "offload_master": False,
    "offload_quants": False,
    "offload_optimizer": False,
    "offload_grads": False,
    "persistent_quants": False,
    "use_zero_copy": False,
    "use_write_combined": False,
    # several devices
    "gpus": 1,
    "use_cuda_graphs": True,
    "zero_level": 1,
    "shard_weights": False,
    "shard_gradients": False,
    "use_all_to_all_reduce": False,
    "memcpy_all_gather": False,
    "memcpy_send_recv": False,
    "sequence_parallel_size": 1,
    "distributed.ray_address": "auto",
    "distributed.num_nodes": 1,
    "distributed.gpus_per_node": 0,
    "distributed.worker_output_dir": None,
    # data
    "multimodal_on_the_fly": None,
    "use_chat_template": True,
    "padding_side": "right",
    "padding_free": False,
    "response_prefix": None,
    "max_pixels": None,
    "norm_bbox": None,
    "agent_template": None,
    # adapters and quantised bases
    "lora_use_dora": False,
    "lora_use_rslora": False,
    "train_router": False,
    "train_modules": None,
    "adapter_path": None,
    "adapter_mode": "merge",
    "merge_adapter": False,
    "qlora_fp4": False,
    "qlora_fp8": False,
    "qlora_bnb": False,
    "qlora_block_size": 128,
    "qlora_bnb_block_size": 64,
    "qlora_bnb_double_quant": True,
    "qlora_four_over_six": True,
    "qlora_selective_expert_dequant": False,
    "qlora_offload_experts": False,
    "router_aux_loss_coef": None,
    "router_z_loss_coef": None,
    # logging and diagnostics
    "log_gpu_util": 100,
    "wandb_project": None,
    "wandb_name": None,
    "aim_experiment": None,
    "aim_repo": None,
    "aim_name": None,
    "debug_time_breakdown": False,
    "debug_memory_breakdown": False,
    "auto_lr_reduction": False,
    "early_stop": False,
    "epoch_adjustment": False,
}

NOT_BUILT_NAMES: dict[str, tuple[str, ...]] = {
    "recipe": ("fp8_hybrid", "nvfp4", "nvfp4_quartet"),
    "adapter": ("prefix", "prompt", "bottleneck"),
    "type": ("auto",),
    "report_to": ("wandb", "aim"),
}

HOMES: dict[str, str] = {
    "lora_rank": "surogate-adapter-lora",
    "lora_alpha": "surogate-adapter-lora",
    "lora_dropout": "surogate-adapter-lora",
    "lora_dtype": "surogate-adapter-lora",
    "lora_target_modules": "surogate-adapter-lora",
    "normuon_momentum": "surogate-optimizer-normuon",
    "normuon_beta2": "surogate-optimizer-normuon",
    "normuon_cautious_wd": "surogate-optimizer-normuon",
    "log_file": "surogate-logger-jsonl",
    "text_field": "surogate-dataset-text",
    "instruction_field": "surogate-dataset-instruction",
    "output_field": "surogate-dataset-instruction",
    "input_field": "surogate-dataset-instruction",
    "system_prompt_type": "surogate-dataset-instruction",
    "system_prompt_field": "surogate-dataset-instruction",
    "system_prompt": "surogate-dataset-instruction",
    "prompt_format": "surogate-dataset-instruction",
    "prompt_format_no_input": "surogate-dataset-instruction",
    "messages_field": "surogate-dataset-conversation",
    "system_field": "surogate-dataset-conversation",
    "tools_field": "surogate-dataset-conversation",
    "message_property_mappings": "surogate-dataset-conversation",
}

NAME_HOMES: dict[tuple[str, str], str] = {
    ("recipe", "bf16"): "surogate-recipe-bf16",
    ("optimizer", "adamw_8bit"): "surogate-optimizer-adamw-8bit",
    ("optimizer", "adamw"): "surogate-optimizer-adamw",
    ("optimizer", "normuon"): "surogate-optimizer-normuon",
    ("adapter", "lora"): "surogate-adapter-lora",
    ("type", "text"): "surogate-dataset-text",
    ("type", "instruction"): "surogate-dataset-instruction",
    ("type", "conversation"): "surogate-dataset-conversation",
    ("report_to", "console"): "surogate-logger-console",
    ("report_to", "jsonl"): "surogate-logger-jsonl",
}
