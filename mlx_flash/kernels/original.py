"""The rows of metal-flash-attention's 12 tables (Philip Turner, MIT), tuned on M1 Max and M4 with its own kernels.

`use_backend(name, family, table="original")` runs the kernels of this package with them, to compare on a Mac. On M1 and
M2 these kernels would need more registers than a thread has with most of them. NVIDIA GPUs use them where tensor cores
have no row.
"""

from ..problem.kinds import BACKWARD_KEY_VALUE, BACKWARD_QUERY, FORWARD
from .config import FULL, MIXED, TileConfig


def rows(*lines):
    return tuple(TileConfig(*line[:4], tuple(line[4].split()), *line[5:]) for line in lines)


#    max  par-  tra-  head  cached in
#    head allel versal      registers
ORIGINAL = {
    (FORWARD, MIXED, "apple7"): rows(
        ( 96, 32, 128, 32, "Q O"),
        (128, 32, 128, 32, "Q"),
        (384, 32, 128, 32, ""),
    ),
    (FORWARD, MIXED, "apple9"): rows(
        ( 32, 16, 128, 16, "Q O"),
        ( 96, 16, 128, 32, "Q O"),
        (160, 16, 128, 32, "O"),
        (224, 16, 128, 32, "Q"),
        (384, 16, 128, 32, ""),
    ),
    (FORWARD, FULL, "apple7"): rows(
        ( 24, 32,  64, 24, "Q O"),
        ( 32, 32,  64, 32, "O"),
        ( 56, 32,  32, 56, "O"),
        (384, 32,  80, 16, ""),
    ),
    (FORWARD, FULL, "apple9"): rows(
        (  8, 16, 128, 16, "Q O"),
        ( 16, 16,  64, 16, "Q O"),
        ( 48, 16,  32,  8, "Q O"),
        (192, 16,  64, 16, "O"),
        (384, 16, 128, 16, ""),
    ),
    (BACKWARD_QUERY, MIXED, "apple7"): rows(
        ( 32, 32,  64, 32, "Q dQ"),
        ( 96, 32,  64, 32, "dQ"),
        (384, 32,  64, 32, ""),
    ),
    (BACKWARD_QUERY, MIXED, "apple9"): rows(
        ( 80, 16,  64,  8, "Q dO dQ"),
        (192, 16,  64, 32, "Q dQ"),
        (384, 16, 128, 32, ""),
    ),
    (BACKWARD_QUERY, FULL, "apple7"): rows(
        ( 16, 32,  64, 16, "Q dQ"),
        ( 32, 32,  64, 32, "dQ"),
        ( 56, 32,  64, 24, "dQ"),
        (384, 32,  80, 16, ""),
    ),
    (BACKWARD_QUERY, FULL, "apple9"): rows(
        ( 16, 16,  64,  8, "Q dO dQ"),
        ( 32, 16,  64, 16, "Q dQ"),
        (192, 16,  64, 32, "Q dQ"),
        (384, 16, 128, 16, ""),
    ),
    (BACKWARD_KEY_VALUE, MIXED, "apple7"): rows(
        ( 16, 32,  64, 16, "V dV dK"),
        ( 32, 32,  64, 32, "dV dK"),
        ( 56, 32,  80, 32, "dV"),
        ( 96, 32,  64, 32, "dV"),
        (384, 32,  64, 32, ""),
    ),
    (BACKWARD_KEY_VALUE, MIXED, "apple9"): rows(
        ( 56, 16,  64,  8, "K V dV dK"),
        ( 80, 16,  32, 16, "V dV dK"),
        (144, 16, 128, 16, "dV dK"),
        (224, 16, 128, 16, "dV"),
        (384, 16, 128, 32, ""),
    ),
    (BACKWARD_KEY_VALUE, FULL, "apple7"): rows(
        ( 16, 32,  32, 16, "V dV dK"),
        ( 24, 32,  64, 24, "dV dK"),
        ( 56, 32,  80, 16, "dV"),
        (384, 32,  80, 16, ""),
    ),
    (BACKWARD_KEY_VALUE, FULL, "apple9"): rows(
        ( 16, 16,  64,  8, "K V dV dK"),
        ( 32, 16,  32, 16, "K V dV dK"),
        ( 64, 16,  32, 16, "V dV dK"),
        (128, 16, 128, 16, "dV dK"),
        (160, 16, 128, 16, "dV"),
        (384, 16, 128, 16, ""),
    ),
}  # fmt: skip
