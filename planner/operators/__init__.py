"""Latency of single operators: physical cores with a few parameters times corrections on grids, per device and dtype.

`read_columns` checks a kernel table, `device_model` finds the fit of a device, `predict` gives the seconds of each row.
"""

from planner.operators.calibrate import check_table, fit_device_profile
from planner.operators.lint import Finding, lint
from planner.operators.predict import DeviceModel, device_model, predict
from planner.operators.profile import OperatorProfile, fitted_devices, load_operator_profile
from planner.operators.tables import OperatorTable, read_columns

__all__ = [
    "DeviceModel",
    "Finding",
    "OperatorProfile",
    "OperatorTable",
    "check_table",
    "device_model",
    "fit_device_profile",
    "fitted_devices",
    "lint",
    "load_operator_profile",
    "predict",
    "read_columns",
]
