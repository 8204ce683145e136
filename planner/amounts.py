"""Values of every objective in the words that people use for them."""

from __future__ import annotations


def amount(quantity: str, value: float, noun: str = "GPU") -> str:
    """`value` of an objective's `quantity` with its unit; `noun`: what a device is called."""
    if quantity == "cost":
        return f"${value:,.2f}/h"
    if quantity == "gpus":
        return f"{value:,.4g} {noun}" + ("" if value == 1 else "s")
    if quantity == "energy":
        return f"{value:,.3g} W" if value < 1000 else f"{value / 1000:,.4g} kW"
    if quantity == "carbon":
        return f"{value:,.3g} g CO2/h" if value < 1000 else f"{value / 1000:,.4g} kg CO2/h"
    if quantity == "traffic":
        return f"{value:,.4g} x the traffic"
    if quantity == "throughput":
        return f"{value:,.0f} output tokens/s"
    if quantity == "goodput":
        return f"{value:,.4g} requests/s"
    raise ValueError(f"no objective is called {quantity!r}")
