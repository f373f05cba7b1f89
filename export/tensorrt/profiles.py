"""The sizes that engines are built for: the runtime's rule, by which ONNX Runtime's TensorRT provider builds too."""

from framert.runtime.profiles import (
    MAX_PROFILES,
    Capacity,
    Profile,
    logit_bytes,
    plan_profiles,
    shapes,
    to_json,
)

__all__ = ["MAX_PROFILES", "Capacity", "Profile", "logit_bytes", "plan_profiles", "shapes", "to_json"]
