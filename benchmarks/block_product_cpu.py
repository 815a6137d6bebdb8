"""Block-sparse products beside dense ones on the CPU: matrices of BERT-base, whole and halved, and of MiniLM.

    python benchmarks/block_product_cpu.py [--dtypes float32] [--blocks 32 64] [--shapes 768x768] [--adopt]

Random masks; every sparse time is interleaved with the dense time it is compared with, on copies of weights in turn,
of a call alone and of a call on every core at once. The stored file is a cost table
(`pallas_kernels.block_sparse_matmul.costs`), written cell by cell: ``--adopt`` puts it into the package's own for this
CPU, in place of the kinds of product that it has.
A matrix that takes more than 1.25x dense is not measured with more blocks.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from describe import describe

from pallas_kernels.block_sparse_matmul.calibrate import calibrate
from pallas_kernels.block_sparse_matmul.costs import PACKAGED, complete, file_name, load_table, save_table

ROOT = Path(__file__).parents[1]
WHOLE = ((768, 768), (3072, 768), (768, 3072), (768, 2304))  # O, FC2, FC1, QKV
HALVED = ((384, 768), (1536, 768), (768, 1536), (768, 1152))  # after half of the heads and hidden units
SMALL = ((384, 384), (1536, 384), (384, 1536))  # MiniLM's; smaller than what half of BERT-base's rows leave


def sides(text):
    return tuple(map(int, text.split("x")))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "block_product_cpu.json")
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--blocks", nargs="+", type=int, default=[32, 64])
    parser.add_argument("--shapes", nargs="+", type=sides, default=(*WHOLE[:2], *HALVED, *WHOLE[2:], *SMALL))
    parser.add_argument("--tokens", nargs="*", type=int, default=[128, 512], help="of a call alone")
    parser.add_argument("--side-by-side", nargs="*", type=int, default=[512], help="of a call of each core at once")
    parser.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1800)
    parser.add_argument("--adopt", action="store_true")
    args = parser.parse_args()
    table = calibrate(
        args.json,
        args.shapes,
        blocks=[(side, side) for side in args.blocks],
        densities=args.densities,
        tokens=args.tokens,
        side_by_side=args.side_by_side,
        dtypes=args.dtypes,
        rounds=args.rounds,
        seconds_limit=args.seconds,
        details=describe(),
    )
    if args.adopt:
        path = PACKAGED / file_name(table.hardware)
        if path.is_file():  # what was not measured now stays, and the file tells of both
            before = load_table(path)
            told = table.measured | {"others": [before.measured]}
            table = complete(replace(table, measured=told), before)
        save_table(table, path)


if __name__ == "__main__":
    main()
