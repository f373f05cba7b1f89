"""Which family's step a graph is: the one place of this backend that knows them all."""

from framert.runtime.backends.triton import joint_weights, weights
from framert.runtime.backends.triton.forward import FrameModel
from framert.runtime.backends.triton.graph_file import GraphFile
from framert.runtime.backends.triton.joint_forward import JointModel
from framert.runtime.backends.triton.model import Model
from framert.runtime.backends.triton.settings import Settings
from framert.runtime.manifest import ModelSpec


def read_model(file: GraphFile, model: ModelSpec, settings: Settings) -> Model:
    """Return the step of a denoiser's graph with its weights on the device.

    Raises: BackendError if it is no graph whose step is here, or is already quantized.
    """
    how = (settings.precision, settings.device, settings.impl)
    if joint_weights.is_joint(file):
        return JointModel(joint_weights.read(file, model.depth, model.heads, *how), settings)
    return FrameModel(weights.read(file, model.depth, *how), model, settings)
