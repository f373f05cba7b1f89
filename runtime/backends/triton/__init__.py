"""The GPU backend: torch for memory and plain products, framert's Triton kernels for everything else in the step."""
