"""Joules of a step and what follows from them: watts, grams of CO2, and the longer steps under a power cap.

A device at work draws

    watts = idle + (limit - idle) x min(1, active + compute x FLOPs / s / peak + memory x bytes / s / bandwidth)

with three shares per device (`PowerProfile`). Below the limit a step's joules are linear in its seconds, FLOPs and
bytes, so those of its operators add up; `dynamic_joules` is the part that does not depend on time. Only devices are
counted: hosts, switches and cooling are not, beyond what the `pue` of `grams_co2` adds.

FLOPs, bytes and seconds are arrays that broadcast against each other.
"""

from __future__ import annotations

import numpy as np

from planner.cost.roofline import Floats, peak_flops
from specs.document import DType
from specs.errors import InputError
from specs.profile import DeviceFacts, PowerProfile

JOULES_PER_KWH = 3.6e6


def step_joules(
    flops: Floats | float,
    moved_bytes: Floats | float,
    seconds: Floats | float,
    device: DeviceFacts,
    power: PowerProfile,
    dtype: DType = DType.BF16,
    power_cap_w: float | None = None,
) -> Floats:
    """Joules of one device in a step of `seconds` with so many FLOPs (in `dtype`) and bytes of its own memory.

    Never below idle watts x seconds, never above limit (or cap) x seconds. Under a cap, `seconds` are those that the
    step takes under it (`capped_seconds`). FLOPs in several types: add up `dynamic_joules`, then `bounded_joules`.
    """
    dynamic = dynamic_joules(flops, moved_bytes, device, power, dtype)
    return bounded_joules(dynamic, seconds, device, power, power_cap_w)


def dynamic_joules(
    flops: Floats | float,
    moved_bytes: Floats | float,
    device: DeviceFacts,
    power: PowerProfile,
    dtype: DType = DType.BF16,
) -> Floats:
    """Joules of the arithmetic and the memory traffic alone, whatever time they take. Adds up over operators.

    Full rate draws the same watts in every type: an FP8 operation costs half a BF16 one where its peak is double.
    Raises `InputError` where the device does not compute in `dtype`.
    """
    range_w = device.power_w - device.idle_power_w
    compute_s = np.asarray(flops, dtype=float) / peak_flops(dtype, device)
    memory_s = np.asarray(moved_bytes, dtype=float) / device.hbm_bytes_per_s
    joules: Floats = range_w * (power.compute_share * compute_s + power.memory_share * memory_s)
    return joules


def bounded_joules(
    dynamic: Floats | float,
    seconds: Floats | float,
    device: DeviceFacts,
    power: PowerProfile,
    power_cap_w: float | None = None,
) -> Floats:
    """`dynamic` joules and those of running at all for `seconds`, at most the limit (or a lower cap) x seconds."""
    elapsed = np.asarray(seconds, dtype=float)
    joules: Floats = np.minimum(
        active_w(device, power) * elapsed + dynamic, limit_w(device, power, power_cap_w) * elapsed
    )
    return joules


def capped_seconds(
    dynamic: Floats | float,
    seconds: Floats | float,
    device: DeviceFacts,
    power: PowerProfile,
    power_cap_w: float | None = None,
) -> Floats:
    """Seconds of a step under a cap, which takes `seconds` at the device's own limit and `dynamic` joules.

    The same dynamic joules at no more than (cap - active) watts. A slower clock runs at a lower voltage and spends
    less per operation, so this is the slow, hence careful, end. No cap, or one above the need, changes nothing.
    Raises `InputError` for a cap that leaves nothing to work with.
    """
    elapsed = np.asarray(seconds, dtype=float)
    running, limit = active_w(device, power), limit_w(device, power, power_cap_w)
    spent = np.minimum(dynamic, (device.power_w - running) * elapsed)
    longer: Floats = np.maximum(elapsed, spent / (limit - running))
    return longer


def active_w(device: DeviceFacts, power: PowerProfile) -> float:
    """Watts of a device that runs kernels which neither compute nor move anything (clocks up, waiting)."""
    return device.idle_power_w + (device.power_w - device.idle_power_w) * power.active_share


def limit_w(device: DeviceFacts, power: PowerProfile, power_cap_w: float | None = None) -> float:
    """The device's limit, or the cap where one is stated and lower; `InputError` where the cap stops all work."""
    limit = device.power_w if power_cap_w is None else min(device.power_w, power_cap_w)
    running = active_w(device, power)
    if limit <= running:
        raise InputError(
            f"{device.name} draws about {running:.0f} W before it computes anything; a cap of {limit:g} W stops it",
            field="power_cap",
            expected=f"above {running:.0f} W, at most {device.power_w:g} W",
        )
    return limit


def idle_joules(seconds: Floats | float, device: DeviceFacts) -> Floats:
    """Joules of a device that runs nothing for `seconds`."""
    joules: Floats = device.idle_power_w * np.asarray(seconds, dtype=float)
    return joules


def mean_power_w(busy_joules: float, busy_s: float, horizon_s: float, device: DeviceFacts) -> float:
    """Mean watts of one device over `horizon_s`: `busy_s` in steps of `busy_joules` together, idle for the rest."""
    if not 0.0 <= busy_s <= horizon_s * (1 + 1e-9) or horizon_s <= 0.0:
        raise ValueError(f"busy for {busy_s} s of {horizon_s} s")
    return (busy_joules + device.idle_power_w * max(horizon_s - busy_s, 0.0)) / horizon_s


def grams_co2(joules: Floats | float, intensity_g_per_kwh: float, pue: float = 1.0) -> Floats:
    """Grams of CO2 of so many joules of devices. `pue`: watts into the building per watt of equipment, at least 1."""
    if pue < 1.0:
        raise ValueError(f"power usage effectiveness {pue} is below 1")
    grams: Floats = np.asarray(joules, dtype=float) * (pue * intensity_g_per_kwh / JOULES_PER_KWH)
    return grams


def grams_co2_per_million_tokens(
    power_w: float, tokens_per_s: float, intensity_g_per_kwh: float, pue: float = 1.0
) -> float | None:
    """Grams of CO2 per million tokens of devices that draw `power_w` together; None where no tokens are made."""
    if tokens_per_s <= 0.0:
        return None
    return float(grams_co2(power_w / tokens_per_s * 1e6, intensity_g_per_kwh, pue))
