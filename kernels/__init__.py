"""Batched LoRA kernels for vLLM (Triton). Importing this package loads neither torch nor triton.

`kernels` is also the import name of a Hugging Face package that transformers probes for. Three rules
keep the two apart, and tests/test_architecture.py asserts them: this file cannot raise, the version
below is never in the window that transformers accepts, and that package is no dependency of ours.
"""

__version__ = "0.0.0"
