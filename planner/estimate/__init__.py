"""Predictions for stated deployments: latency and throughput of one replica under a closed loop, without planning."""

from planner.estimate.explain import Part, Phase, explain_point
from planner.estimate.points import COLUMNS, Deployment, Point, deployment_of, is_mixture
from planner.estimate.predict import Prediction, predict_point, predict_rows
from planner.estimate.protocol import CLIENTS, Client, Protocol, client_note, protocol_of
from planner.estimate.replica import Latency, simulate_point

__all__ = [
    "CLIENTS",
    "COLUMNS",
    "Client",
    "Deployment",
    "Latency",
    "Part",
    "Phase",
    "Point",
    "Prediction",
    "Protocol",
    "client_note",
    "deployment_of",
    "explain_point",
    "is_mixture",
    "predict_point",
    "predict_rows",
    "protocol_of",
    "simulate_point",
]
