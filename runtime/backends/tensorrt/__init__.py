"""Engines of ``framert build``, run by TensorRT or TensorRT-RTX; cuda-python gives memory, streams and graphs."""
