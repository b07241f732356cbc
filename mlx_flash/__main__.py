"""python -m mlx_flash"""

import sys

from .cli import main

sys.exit(main())
