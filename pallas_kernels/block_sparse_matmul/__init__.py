"""``x @ w`` with a block-sparse ``w``, bias, activation and residual fused, by several implementations."""

from pallas_kernels.block_sparse_matmul.api import IMPLEMENTATIONS, Implementation, block_sparse_matmul

__all__ = ["IMPLEMENTATIONS", "Implementation", "block_sparse_matmul"]
