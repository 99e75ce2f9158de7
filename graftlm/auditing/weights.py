"""Relative change of each weight by tuning:

||W_tuned - W_base||_F / ||W_base||_F
"""

from __future__ import annotations

import math

from graftlm.auditing.result import WeightChange
from graftlm.models.pair import ModelPair, check_finite


def weight_changes(pair: ModelPair) -> list[WeightChange]:
    """One entry for each weight that may differ, in the model's order; norms in float32 or better, 0 / 0 is 0.

    Weights are taken one at a time. Of an adapter only the adapted weights are listed: no other can have changed.
    Raises InputError for a tuned weight that is not finite.
    """
    changes = []
    for weight in pair.weights():
        base = weight.base.float() if weight.base.dtype.itemsize < 4 else weight.base
        difference, size = float((weight.tuned.to(base) - base).norm()), float(base.norm())
        if not math.isfinite(difference):
            check_finite([(weight.name, weight.tuned)])
        relative = difference / size if size else float(difference > 0)
        changes.append(WeightChange(group=pair.group(weight.name), module=pair.module(weight.name), relative=relative))
    return changes
