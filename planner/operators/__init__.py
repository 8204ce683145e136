"""Latency of single operators: physical cores with a few parameters times corrections on grids, per device and dtype.

`read_columns` checks a kernel table, `device_model` finds the fit of a device, `predict` gives the seconds of each row.
"""

from planner.operators.lint import Finding, lint
from planner.operators.predict import DeviceModel, borrowed_model, device_model, predict
from planner.operators.profile import OperatorProfile, fitted_devices, load_operator_profile
from planner.operators.tables import OperatorTable, read_columns

__all__ = [
    "DeviceModel",
    "Finding",
    "OperatorProfile",
    "OperatorTable",
    "borrowed_model",
    "device_model",
    "fitted_devices",
    "lint",
    "load_operator_profile",
    "predict",
    "read_columns",
]
