"""Our kernels inside vLLM: entry point, guard, wrappers, true ranks, health."""
