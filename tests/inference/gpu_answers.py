"""The largest error of a packed model's bfloat16 answers on the default device, over the largest answer.

    python -m tests.inference.gpu_answers IMPLEMENTATION

`tests/test_gpu.py` runs it where there is a GPU: fused attention and the kernels inside a compiled model.
"""

import sys

import numpy as np

from mlprune_jax.inference.runtime import Served, compile_model
from tests.inference.conftest import CONFIG, batch, masked, plain_logits


def main(implementation):
    model, inputs = masked(), batch(4, 16)
    served = Served(CONFIG, model.params, model.masks, "classification")
    options = {"dtype": "bfloat16", "implementation": implementation}
    found = compile_model(served, batch_sizes=[4], lengths=[16], **options).logits(*inputs)
    wanted = plain_logits(CONFIG, model.params, "classification", inputs)
    print(float(np.abs(found - wanted).max() / np.abs(wanted).max()))


if __name__ == "__main__":
    main(*sys.argv[1:])
