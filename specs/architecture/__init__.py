"""Model families: from a Hugging Face config to operators, weights and what a sequence keeps in memory."""

from specs.architecture.catalogue import ModelDescription, describe_models, load_architecture, model_names
from specs.architecture.dialect import stated_quantisation
from specs.architecture.layer import Layer
from specs.architecture.mixers import Attention, Indexer, LatentAttention
from specs.architecture.mlps import DenseMLP, MixtureOfExperts
from specs.architecture.model import Architecture, ParameterCount, Quantisation, Rope
from specs.architecture.operators import (
    AllReduce,
    Elementwise,
    Experts,
    IndexScores,
    LatentPagedAttention,
    Linear,
    Operator,
    PagedAttention,
    RecurrentScan,
)
from specs.architecture.recurrent import GatedDeltaNet, Recurrent
from specs.architecture.sharding import expert_slot_bytes, weight_bytes_per_rank, weight_elements_per_rank
from specs.architecture.weights import WeightTensor

__all__ = [
    "AllReduce",
    "Architecture",
    "Attention",
    "DenseMLP",
    "Elementwise",
    "Experts",
    "GatedDeltaNet",
    "IndexScores",
    "Indexer",
    "LatentAttention",
    "LatentPagedAttention",
    "Layer",
    "Linear",
    "MixtureOfExperts",
    "ModelDescription",
    "Operator",
    "PagedAttention",
    "ParameterCount",
    "Quantisation",
    "Recurrent",
    "RecurrentScan",
    "Rope",
    "WeightTensor",
    "describe_models",
    "expert_slot_bytes",
    "load_architecture",
    "model_names",
    "stated_quantisation",
    "weight_bytes_per_rank",
    "weight_elements_per_rank",
]
