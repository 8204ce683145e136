"""Electrical power of a device, from its busy share."""

from __future__ import annotations

from specs.profile import DeviceFacts


def device_power_w(device: DeviceFacts, utilisation: float, power_cap_w: float | None = None) -> float:
    """Mean watts of one device that is busy `utilisation` (0..1) of the time.

    Linear between the idle power and the limit (the cap, where one is stated and lower). Serving rarely reaches the
    limit while decoding, so this is an upper estimate; host, switches and cooling are not in it.
    """
    limit = device.power_w if power_cap_w is None else min(device.power_w, power_cap_w)
    busy = min(max(utilisation, 0.0), 1.0)
    idle = min(device.idle_power_w, limit)
    return idle + (limit - idle) * busy
