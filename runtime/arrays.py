"""Names for the array types that cross module borders."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Array = npt.NDArray[np.generic]
