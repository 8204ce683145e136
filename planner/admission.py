"""Requests that a plan lets in, where its fleet is too small for all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from planner.simulate import Workload

_ADMISSION_SEED = 7_305


def admitted(workload: Workload, served: Mapping[str, float]) -> Workload:
    """The requests that are let in: of each class in `served` that share, drawn; classes without any are gone."""
    if not served:
        return workload
    share = np.array([served.get(name, 1.0) for name in workload.classes])
    draws = np.random.default_rng(_ADMISSION_SEED).random(len(workload))
    kept = workload.select(draws < share[workload.class_index])
    names = tuple(name for name in workload.classes if served.get(name, 1.0) > 0)
    place = np.array([names.index(name) if name in names else -1 for name in workload.classes])
    return replace(kept, classes=names, class_index=place[kept.class_index])
