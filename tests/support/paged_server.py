"""mlx-lm's server with paged caches: python paged_server.py PAGED ARGUMENTS OF mlx_lm.server.

PAGED is 1, or 0 for mlx-lm's own caches. At the end it prints the calls that patch() served.
"""

import sys

from mlx_lm import server

from mlx_flash import patch
from mlx_flash.lm import PagePool

paged = sys.argv.pop(1) == "1"
load = server.ModelProvider._load


def load_paged(provider, *arguments, **options) -> None:
    load(provider, *arguments, **options)
    provider.model.make_cache = PagePool(provider.model, bytes=1 << 24, page=8).caches


if paged:
    server.ModelProvider._load = load_paged
with patch(policy="always") as report:
    try:
        server.main()
    finally:
        print(report, flush=True)
