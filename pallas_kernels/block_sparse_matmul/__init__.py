"""``x @ w`` with a block-sparse ``w``, bias, activation and residual fused, by several implementations."""

from pallas_kernels.block_sparse_matmul.api import block_sparse_matmul, choose_for
from pallas_kernels.block_sparse_matmul.choose import Choice, choose
from pallas_kernels.block_sparse_matmul.costs import CostTable, load_table
from pallas_kernels.block_sparse_matmul.implementations import IMPLEMENTATIONS, Implementation

__all__ = [
    "IMPLEMENTATIONS",
    "Choice",
    "CostTable",
    "Implementation",
    "block_sparse_matmul",
    "choose",
    "choose_for",
    "load_table",
]
