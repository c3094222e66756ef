"""The judge of demo pictures: which object, which colour, which parts, and how far from the world a picture is.

A small convolutional network reads 64 px pictures. It is trained on renders of the demo world and on broken ones
(blurred, noisy, torn, half erased, blended), where what was destroyed is labelled as not there, so that debris is not
called a wheel and a smear is not called a bike. Quality is a distance to clean renders in the network's features.
The images a diffusion model draws are never used in training.
"""

from .distort import DISTORTIONS, distort
from .network import NONE
from .reading import Oracle, OracleError, Reading, load_oracle
from .training import train_oracle

__all__ = ["DISTORTIONS", "NONE", "Oracle", "OracleError", "Reading", "distort", "load_oracle", "train_oracle"]
