"""Host-tier offloading on FlexGen's published questions, or on any model and device: one JSON line a question.

    python -m benchmarks.offloading
    python -m benchmarks.offloading --model facebook/opt-66b --device l4 --host-memory 400 --prompt 512 --output 32

Without a model: OPT-30B with batches of 48 x 3 and of any size, and OPT-175B with 32 x 8, on a T4 with 200 GB of host
memory. All seconds are predicted by the planner's own cost model, whose hardware constants are not FlexGen's: compare
the shape of the answer. `tokens_per_s` counts output tokens; no policy of the batches and blocks tried passes `bound`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.published import gap, print_timed, run
from planner.cost.latency import RooflineLatency
from planner.optimize.offloading import BATCHES, BLOCKS, HostFacts, OffloadingPolicy, Workload, best_policy
from specs.architecture import Architecture, load_architecture
from specs.catalog import load_device, load_engine, load_profile
from specs.document import DType
from specs.errors import InputError, NoPlanError
from specs.profile import DeviceFacts, DeviceProfile

GIGA = 1e9
OPT_30B = {  # as published with the weights
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "activation_function": "relu",
    "do_layer_norm_before": True,
    "hidden_size": 7168,
    "word_embed_proj_dim": 7168,
    "ffn_dim": 28672,
    "num_attention_heads": 56,
    "num_hidden_layers": 48,
    "max_position_embeddings": 2048,
    "vocab_size": 50272,
    "torch_dtype": "float16",
}
T4 = {  # NVIDIA T4 datasheet: 16 GB at 320 GB/s, 65 TFLOPS in 16 bit, PCIe Gen3 x16, 70 W; Turing whitepaper: TU104
    "name": "t4",
    "aliases": (),
    "target": "sm_75",
    "memory_bytes": 16_106_127_360,
    "hbm_bytes_per_s": 320.0e9,
    "l2_bytes": 4_194_304,
    "multiprocessors": 40,
    "flops": {DType.FP32: 8.1e12, DType.FP16: 65.0e12},
    "power_w": 70,
    "link_bytes_per_s": 15.75e9,
    "pcie_bytes_per_s": 15.75e9,
    "weight_dtypes": (DType.FP16,),
    "kv_dtypes": (DType.FP16,),
}
HOST_ATTENTION_BYTES_PER_S = 50.0e9  # estimate: half of what eight channels of DDR4 stream


def t4() -> tuple[DeviceFacts, DeviceProfile]:
    """A T4 by its datasheet; efficiencies are those of the L4, borrowed."""
    relative, profile = load_device("l4"), load_profile("l4")
    facts = DeviceFacts.model_validate({**relative.model_dump(), **T4})
    return facts, profile.model_copy(update={"device": "t4", "confidence": "borrowed", "relative_of": "l4"})


def questions(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], Architecture, HostFacts, Workload]]:
    """(what is asked, model, host, workload) with the batches and blocks to try."""
    host = HostFacts(
        memory_bytes=options.host_memory * GIGA,
        disk_bytes=options.disk * GIGA,
        disk_read_bytes_per_s=options.disk_read * GIGA,
        disk_write_bytes_per_s=options.disk_write * GIGA,
        attention_bytes_per_s=options.host_attention * GIGA,
    )
    workload = Workload(options.prompt, options.output)
    if options.model is not None:
        yield (
            {**_asked(options.batch, options.blocks), "published": False},
            load_architecture(options.model),
            host,
            workload,
        )
        return
    opt_30b = load_architecture(OPT_30B, name="facebook/opt-30b")
    yield _asked(48, 3), opt_30b, host, workload
    yield _asked(None, None), opt_30b, host, workload
    yield _asked(32, 8), load_architecture("facebook/opt-175b"), host, workload


def _asked(batch: int | None, blocks: int | None) -> dict[str, Any]:
    return {
        "batches": BATCHES if batch is None else (batch,),
        "blocks": BLOCKS if blocks is None else (blocks,),
        "published": True,
    }


def answer(
    asked: dict[str, Any],
    architecture: Architecture,
    device: tuple[DeviceFacts, DeviceProfile],
    host: HostFacts,
    workload: Workload,
) -> dict[str, Any]:
    """The policy; for a published question also why there is none. Raises `NoPlanError` for any other."""
    about = {
        "model": architecture.name,
        "device": device[0].name,
        "batch": asked["batches"][0] if len(asked["batches"]) == 1 else None,
        "blocks": asked["blocks"][0] if len(asked["blocks"]) == 1 else None,
    }
    try:
        source = RooflineLatency(*device) if device[0].name == "t4" else None  # no table is of its generation
        sizes = {"batches": asked["batches"], "blocks": asked["blocks"]}
        found = best_policy(architecture, *device, load_engine("capstan"), host, workload, latency=source, **sizes)
    except NoPlanError as error:
        if not asked["published"]:
            raise
        return {**about, "status": "infeasible", "why": error.message}
    return {**about, "status": "optimal", **_policy(found)}


def _policy(found: OffloadingPolicy) -> dict[str, Any]:
    values = asdict(found)
    bound = values.pop("bound_tokens_per_s")
    return {
        **values,
        "seconds_of_a_block": found.seconds,
        "bound": bound,
        "gap": gap(found.tokens_per_s, bound),
        "predicted": True,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="catalogue name, or a config.json; none: FlexGen's published questions")
    parser.add_argument("--device", default="t4", help="catalogue name, or t4")
    parser.add_argument("--host-memory", type=float, default=200.0, help="GB")
    parser.add_argument("--disk", type=float, default=0.0, help="GB; 0: none")
    parser.add_argument("--disk-read", type=float, default=2.0, help="GB/s")
    parser.add_argument("--disk-write", type=float, default=1.0, help="GB/s")
    parser.add_argument("--host-attention", type=float, default=HOST_ATTENTION_BYTES_PER_S / GIGA, help="GB/s; 0: none")
    parser.add_argument("--prompt", type=int, default=512, help="tokens")
    parser.add_argument("--output", type=int, default=32, help="tokens")
    parser.add_argument("--batch", type=int, help="sequences; none: the best")
    parser.add_argument("--blocks", type=int, help="batches in a block; none: the best")
    options = parser.parse_args()
    for name in ("batch", "blocks"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise InputError("must be at least 1", field=f"--{name}")
    device = t4() if options.device == "t4" else (load_device(options.device), load_profile(options.device))
    for question in questions(options):
        asked, architecture, host, workload = question
        print_timed(partial(answer, asked, architecture, device, host, workload))


if __name__ == "__main__":
    run(main)
