"""Every error a caller can cause. Each message says what was given, what is allowed and what to do."""


class FramertError(Exception):
    """Base of all errors that framert raises on purpose; the command line turns it into one line and exit code 2."""


class ConfigError(FramertError):
    """An option, keyword or limit has a value that is not allowed."""


class TaskError(FramertError):
    """A task is unknown, or its frames, prompts, masks or cameras do not fit it."""


class ImageError(FramertError):
    """A picture cannot be read, or its size is not allowed."""


class BundleError(FramertError):
    """A bundle is missing, damaged, newer than this version, or made for something else."""


class CheckpointError(FramertError):
    """A checkpoint's folder, configuration or tensors are not what its family needs."""


class CompiledRequestError(FramertError):
    """A compiled request is missing, damaged, newer than this version, or of another bundle."""


class BackendError(FramertError):
    """A backend is unknown, not installed, or cannot run this bundle here."""


class ShapeError(FramertError):
    """An array has the wrong shape, dtype or non-finite values."""


class OutputError(FramertError):
    """A result cannot be written where it was asked for."""


class CancelledError(FramertError):
    """The request was cancelled before it finished."""
