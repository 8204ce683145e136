"""Traffic as arrays: recorded traces, drawn arrivals and lengths. Same input and seed, same arrays."""

from specs.traffic.arrivals import constant_arrivals, diurnal_arrivals, gamma_arrivals, poisson_arrivals
from specs.traffic.distributions import (
    Histogram,
    draw_fixed,
    draw_histogram,
    draw_lognormal,
    draw_mean,
    draw_uniform,
    lognormal_parameters,
    read_histogram,
)
from specs.traffic.prefixes import PREFIX_UNIT_TOKENS, Chains, Prefixes, Sharing, joined
from specs.traffic.trace import Trace, read_trace

__all__ = [
    "PREFIX_UNIT_TOKENS",
    "Chains",
    "Histogram",
    "Prefixes",
    "Sharing",
    "Trace",
    "constant_arrivals",
    "diurnal_arrivals",
    "draw_fixed",
    "draw_histogram",
    "draw_lognormal",
    "draw_mean",
    "draw_uniform",
    "gamma_arrivals",
    "joined",
    "lognormal_parameters",
    "poisson_arrivals",
    "read_histogram",
    "read_trace",
]
