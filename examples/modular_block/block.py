"""The blocks inside under guidance away from a negative prompt; needs value-sign-flip."""

from vsf.modular import NegativeGuidanceStep


class NegativeGuidance(NegativeGuidanceStep):
    """See `vsf.modular.NegativeGuidanceStep` for its inputs."""
