"""Block-sparse formats and kernels for JAX, usable without ``mlprune_jax``."""

from pallas_kernels.block_sparse_matmul import (
    IMPLEMENTATIONS,
    Choice,
    CostTable,
    Implementation,
    block_sparse_matmul,
    choose,
    choose_for,
    load_table,
)
from pallas_kernels.errors import KernelError
from pallas_kernels.formats import (
    BLOCK_SIDES,
    BlockSparse,
    Pattern,
    block_mask,
    concat_columns,
    density,
    from_dense,
    from_parts,
    pad_blocks,
    to_dense,
)

__all__ = [
    "BLOCK_SIDES",
    "IMPLEMENTATIONS",
    "BlockSparse",
    "Choice",
    "CostTable",
    "Implementation",
    "KernelError",
    "Pattern",
    "block_mask",
    "block_sparse_matmul",
    "choose",
    "choose_for",
    "concat_columns",
    "density",
    "from_dense",
    "from_parts",
    "load_table",
    "pad_blocks",
    "to_dense",
]
