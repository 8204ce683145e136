"""The structs of capstan.h, field by field: what they mean is said there."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import CFUNCTYPE, POINTER, Structure, c_double, c_int, c_int64, c_uint8, c_uint64, c_void_p
from typing import Any

import numpy as np

Doubles = POINTER(c_double)
Ints = POINTER(c_int64)
Bytes = POINTER(c_uint8)


class DecodeTable(Structure):
    _fields_ = (("ends", Doubles), ("constant_s", Doubles), ("slope_s", Doubles), ("pieces", c_int64))


class ChunkTable(Structure):
    _fields_ = (
        ("new_tokens", Doubles),
        ("cached_tokens", Doubles),
        ("seconds", Doubles),
        ("first_s", Doubles),
        ("sizes", c_int64),
        ("depths", c_int64),
        ("firsts", c_int64),
    )


class StepTimes(Structure):
    _fields_ = (
        ("tokens_s", Doubles),
        ("sampled_s", Doubles),
        ("passed", Doubles),
        ("sequence_s", c_double),
        ("decode_launch_s", c_double),
        ("decode_context_token_s", c_double),
        ("decode_window_token_s", c_double),
        ("prefill_launch_s", c_double),
        ("prefill_pair_s", c_double),
        ("prefill_window_pair_s", c_double),
        ("prefill_context_token_s", c_double),
        ("prefill_step_s", c_double),
        ("eager_s", c_double),
        ("request_s", c_double),
        ("host_token_s", c_double),
        ("window_tokens", c_int64),
        ("lanes", c_int64),
        ("decode_table", DecodeTable),
        ("decode_window_table", DecodeTable),
        ("chunk_table", ChunkTable),
        ("stages", c_void_p),
    )


class Model(Structure):
    _fields_ = (
        ("times", StepTimes),
        ("holds", Bytes),
        ("output_reserve", c_double),
        ("acceptance", c_double),
        ("draft_s", c_double),
        ("seats", c_int64),
        ("budget", c_int64),
        ("max_model_len", c_int64),
        ("blocks", c_int64),
        ("block_tokens", c_int64),
        ("host_blocks", c_int64),
        ("unit_tokens", c_int64),
        ("policy", c_int64),
        ("order", c_int64),
        ("swaps", c_int64),
        ("batch_wait_steps", c_int64),
        ("max_waiting_tokens", c_int64),
        ("mlfq_quantum_tokens", c_int64),
        ("draft_tokens", c_int64),
    )


class GroupSpec(Structure):
    _fields_ = (
        ("models", Ints),
        ("weights", Doubles),
        ("bytes_per_token", c_double),
        ("replicas", c_int64),
        ("role", c_int64),
        ("unlike", c_int64),
        ("target", c_int64),
        ("link", c_int64),
    )


class LinkSpec(Structure):
    _fields_ = (
        ("bytes_per_s", c_double),
        ("latency_s", c_double),
        ("busy_s", c_double),
        ("moved_bytes", c_double),
        ("transfers", c_int64),
    )


class FaultEvent(Structure):
    _fields_ = (("time_s", c_double), ("group", c_int64), ("replica", c_int64), ("step", c_int64))


class ClassSplit(Structure):
    _fields_ = (("groups", Ints), ("shares", Doubles), ("sent", Ints), ("count", c_int64), ("seen", c_int64))


class Watch(Structure):
    _fields_ = (
        ("requests", Ints),
        ("missed", Bytes),
        ("ttft_s", c_double),
        ("e2e_s", c_double),
        ("tpot_s", c_double),
        ("count", c_int64),
        ("class_index", c_int64),
        ("allowed", c_int64),
        ("misses", c_int64),
        ("ttft_next", c_int64),
        ("e2e_next", c_int64),
    )


Progress = CFUNCTYPE(c_int, c_double)


class Problem(Structure):
    _fields_ = (
        ("class_index", Ints),
        ("arrival_s", Doubles),
        ("prompt_tokens", Ints),
        ("output_tokens", Ints),
        ("tenant_index", Ints),
        ("priority", Ints),
        ("deadline_s", Doubles),
        ("predicted_tokens", Ints),
        ("session", Ints),
        ("after", Ints),
        ("gap_s", Doubles),
        ("prefix_offsets", Ints),
        ("prefix_ids", Ints),
        ("models", POINTER(Model)),
        ("groups", POINTER(GroupSpec)),
        ("links", POINTER(LinkSpec)),
        ("faults", POINTER(FaultEvent)),
        ("splits", POINTER(ClassSplit)),
        ("watches", POINTER(Watch)),
        ("progress", Progress),
        ("horizon_s", c_double),
        ("poll_s", c_double),
        ("seed", c_uint64),
        ("count", c_int64),
        ("tenants", c_int64),
        ("prefix_unit_tokens", c_int64),
        ("group_count", c_int64),
        ("link_count", c_int64),
        ("fault_count", c_int64),
        ("watch_count", c_int64),
        ("refuting", c_int64),
        ("router", c_int64),
        ("max_events", c_int64),
        ("clients", c_int64),
    )


class LaneLoad(Structure):
    _fields_ = (
        ("busy_s", c_double),
        ("running_peak", c_int64),
        ("blocks_peak", c_int64),
        ("preemptions", c_int64),
        ("steps", c_int64),
        ("swaps", c_int64),
        ("moved_tokens", c_int64),
        ("looked_up_tokens", c_int64),
        ("hit_tokens", c_int64),
    )


class Outcome(Structure):
    _fields_ = (
        ("arrival_s", Doubles),
        ("start_s", Doubles),
        ("first_s", Doubles),
        ("finish_s", Doubles),
        ("preemptions", Ints),
        ("cached", Ints),
        ("group_of", Ints),
        ("replica_of", Ints),
        ("decode_group_of", Ints),
        ("decode_replica_of", Ints),
        ("refusal", Ints),
        ("lost", Ints),
        ("loads", POINTER(LaneLoad)),
        ("events", c_int64),
        ("bound_hit", c_int64),
        ("refuted", c_int64),
    )


STRUCTS: tuple[type[Structure], ...] = (
    DecodeTable,
    ChunkTable,
    StepTimes,
    Model,
    GroupSpec,
    LinkSpec,
    FaultEvent,
    ClassSplit,
    Watch,
    Problem,
    LaneLoad,
    Outcome,
)
POLICIES = ("mixed_chunked", "prefill_first", "decode_first")
ORDERS = ("fcfs", "priority", "edf", "sjf", "srpt", "mlfq", "vtc")
ROLES = ("unified", "prefill", "decode")
ROUTERS = ("least_outstanding", "round_robin", "least_kv", "power_of_two", "prefix_aware", "sticky")
NO_MEMORY = 1


class Pins:
    """Arrays whose memory C reads: kept alive as long as this object."""

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def _keep(self, values: Any, dtype: type[Any], pointer: Any) -> Any:
        array = np.ascontiguousarray(values, dtype=dtype)
        self._kept.append(array)
        return array.ctypes.data_as(pointer)

    def doubles(self, values: Any) -> Any:
        return self._keep(values, np.float64, Doubles)

    def ints(self, values: Any) -> Any:
        return self._keep(values, np.int64, Ints)

    def bytes(self, values: Any) -> Any:
        return self._keep(values, np.uint8, Bytes)

    def keep(self, thing: Any) -> None:
        self._kept.append(thing)

    def structs(self, values: Sequence[Structure], kind: Any) -> Any:
        """An array of structs, which keeps alive what they point to only together with this object."""
        array = (kind * max(1, len(values)))(*values)
        self._kept.append(array)
        return array


def declare(library: ctypes.CDLL) -> None:
    """Set argument types, and check that both sides mean the same structs. Raises `OSError` where they do not."""
    library.capstan_sizes.argtypes = [Ints]
    library.capstan_sizes.restype = None
    library.capstan_simulate.argtypes = [POINTER(Problem), POINTER(Outcome)]
    library.capstan_simulate.restype = ctypes.c_int
    sizes = (c_int64 * len(STRUCTS))()
    library.capstan_sizes(sizes)
    if list(sizes) != [ctypes.sizeof(struct) for struct in STRUCTS]:
        raise OSError(f"the compiled simulator has structs of {list(sizes)} bytes, not those of abi.py")
