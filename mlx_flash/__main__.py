"""python -m mlx_flash"""

import sys

from .cli.main import main

sys.exit(main())
