"""Which tokens of a too long example stay."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, Int64


def longest_first(text: Int[np.ndarray, " tokens"], most: int, *, left: bool = False) -> Int64[np.ndarray, " kept"]:
    """Which of an example's tokens stay where it has more than ``most``: the longer of two texts is cut first.

    As tokenizers do it; but they give all pieces of the one text with all of the other's besides, which for a pair of
    1000 words each takes megabytes.

    Args:
        text: 0 and 1 where a token is of the first and of the second text, below 0 where it is a marker.
        most: tokens that stay, all markers among them.
        left: texts lose their beginnings for their ends.
    """
    places = [np.flatnonzero(text == which) for which in (0, 1)]
    shorter = int(len(places[1]) < len(places[0]))
    room = most - int((text < 0).sum())
    short = min(len(places[shorter]), room // 2)
    rooms = {shorter: short, 1 - shorter: room - short}
    lost = [places[i][: len(places[i]) - rooms[i]] if left else places[i][rooms[i] :] for i in (0, 1)]
    return np.delete(np.arange(len(text)), np.concatenate(lost))
