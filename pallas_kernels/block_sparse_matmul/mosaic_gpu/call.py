"""The static facts of one product: with the arrays' shapes, all that a compiled kernel depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pallas_kernels.block_sparse_matmul.epilogue import Activation
from pallas_kernels.block_sparse_matmul.mosaic_gpu.tiling import Tiling
from pallas_kernels.formats import BlockShape


@dataclass(frozen=True)
class Call:
    """One product, hashable: two layers with equal facts and equal array sizes share one compiled kernel.

    Attributes:
        tokens: rows of ``x``, a multiple of the tile's rows.
        shape: ``(d_in, d_out)`` of the matrix.
        block_shape: ``(block_in, block_out)``.
        dtype: name of the operands' and the output's dtype.
        activation: after the bias.
        tiling: how the work is cut.
        ctas: thread blocks of a persistent grid.
        interpret: parameters of the interpreter, or none to run on the device.
    """

    tokens: int
    shape: tuple[int, int]
    block_shape: BlockShape
    dtype: str
    activation: Activation | None
    tiling: Tiling
    ctas: int
    interpret: Any = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of blocks."""
        return self.shape[0] // self.block_shape[0], self.shape[1] // self.block_shape[1]

    @property
    def row_tiles(self) -> int:
        """Tiles of tokens."""
        return self.tokens // self.tiling.rows

    @property
    def interpreted(self) -> bool:
        """Whether the kernel runs in the interpreter."""
        return self.interpret is not None

    @property
    def kernel_options(self) -> dict[str, Any]:
        """For `plgpu.kernel`, which in some versions takes no ``interpret=None``."""
        return {} if self.interpret is None else {"interpret": self.interpret}
