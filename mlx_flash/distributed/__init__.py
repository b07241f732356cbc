"""Attention over a sequence that several machines share (context parallelism), on mx.distributed."""

from .attention import attention
from .checks import check
from .decoding import decode
from .layout import positions, shard, unshard

__all__ = ["attention", "check", "decode", "positions", "shard", "unshard"]
