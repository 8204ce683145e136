"""Given numbers of replicas, places for them: folding where it is optimal, else largest first, and swaps."""

from __future__ import annotations

import numpy as np

SWAPS = 400


def pack(loads: np.ndarray, counts: np.ndarray, devices: int, *, polish: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Given numbers of replicas, ([rows, devices, slots] experts, [rows, devices] loads); `polish` swaps."""
    rows, replicas = len(loads), int(counts[0].sum())
    slots = replicas // devices
    of = np.repeat(np.tile(np.arange(loads.shape[1]), rows), counts.ravel()).reshape(rows, replicas)
    size = np.take_along_axis(loads / counts, of, axis=1)
    order = np.argsort(-size, axis=1, kind="stable")
    of, size = np.take_along_axis(of, order, axis=1), np.take_along_axis(size, order, axis=1)
    slot_of = _fold(replicas, devices) if slots <= 2 else None
    if slot_of is None:
        slot_of = largest_first(size, devices)
    experts, packed = np.empty((2, rows, devices, slots))
    at = np.arange(rows)[:, None], slot_of // slots, slot_of % slots
    experts[at], packed[at] = of, size
    if slots > 2 and polish:
        _swap(experts, packed)
    return experts.astype(np.int64), packed.sum(axis=2)


def _fold(replicas: int, devices: int) -> np.ndarray:
    """Slots for a sorted list: the largest sits with the smallest, the second with the last but one, ..."""
    position = np.arange(replicas)
    if replicas == devices:
        return position
    return np.where(position < devices, 2 * position, 2 * (replicas - 1 - position) + 1)


def largest_first(size: np.ndarray, devices: int) -> np.ndarray:
    """[rows, replicas] slot of each replica: into the least loaded device that has a free slot (LPT)."""
    rows, replicas = size.shape
    slots = replicas // devices
    every = np.arange(rows)
    carried, used = np.zeros((rows, devices)), np.zeros((rows, devices), dtype=np.int64)
    slot_of = np.empty((rows, replicas), dtype=np.int64)
    for position in range(replicas):
        device = np.argmin(carried, axis=1)
        slot_of[:, position] = device * slots + used[every, device]
        carried[every, device] += size[:, position]
        used[every, device] += 1
        full = used[every, device] == slots
        carried[every[full], device[full]] = np.inf
    return slot_of


def _swap(experts: np.ndarray, packed: np.ndarray) -> None:
    """In place: the busiest device of each row swaps a replica with another device while its row's maximum falls."""
    rows, devices, slots = packed.shape
    active = np.arange(rows)
    for _ in range(SWAPS):
        size = packed[active]
        carried = size.sum(axis=2)
        every = np.arange(len(active))
        busiest = np.argmax(carried, axis=1)
        most = carried[every, busiest]
        change = size[every, busiest][:, :, None, None] - size[:, None]  # [rows, slot, device, slot]: what leaves
        after = np.maximum(most[:, None, None, None] - change, carried[:, None, :, None] + change)
        after[every, :, busiest] = np.inf
        best = after.reshape(len(active), -1).argmin(axis=1)
        gained = after.reshape(len(active), -1)[every, best] < most * (1 - 1e-9)
        if not gained.any():
            return
        active, best, busiest = active[gained], best[gained], busiest[gained]
        slot, device, other = np.unravel_index(best, (slots, devices, slots))
        for array in (experts, packed):
            here, there = array[active, busiest, slot].copy(), array[active, device, other].copy()
            array[active, busiest, slot], array[active, device, other] = there, here
