"""The errors a user can cause, each told in one sentence.

They are ``ValueError``s, so that code which knows nothing of minires can catch them;
the command line prints their text and exits with status 1, without a traceback.
"""


class MiniresError(ValueError):
    """Something that was handed in cannot be used; the text says what and what to do."""


class ImageError(MiniresError):
    """A file or an array that is not a usable image."""


class WeightsError(MiniresError):
    """Weights that cannot be read, or that are not a ResNet-50's."""


class DownloadError(WeightsError):
    """Weights that could not be fetched, or that arrived with the wrong checksum."""
