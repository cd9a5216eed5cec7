"""The Triton kernels, one per file. `kernels.lora_linear` checks arguments and chooses among them."""
