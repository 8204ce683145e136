"""`KernelSpec`: which kernel, for which shapes, types and device; the table of what each family supports; and
`KernelBinary`: what the compiler made of one kernel, which is all that a launcher needs to know.

A kernel family is one fused operator group, made of one or more parts (kernels launched one after another, or
alternatives of one another). The planner names families, codegen renders and compiles their parts, the runtime launches
them; all three ask the same table whether a family supports a spec. `codegen/kernels/__init__.py` lists every part's
arguments and grid.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from specs.document import DType, Frozen
from specs.errors import nearest_names


class KernelFamily(StrEnum):
    """One fused operator group each."""

    ADD_RMS_NORM = "add_rms_norm"  # residual + x, then RMSNorm
    ROPE_KV_WRITE = "rope_kv_write"  # (QK-norm +) rotary embedding of q and k, k and v into the paged cache
    PAGED_ATTENTION = "paged_attention"  # prefill, decode and mixed batches over the paged cache
    SWIGLU = "swiglu"  # silu(gate) * up
    MOE_ROUTE = "moe_route"  # softmax / top-k and the sorted token lists of experts
    GROUPED_GEMM = "grouped_gemm"  # expert products over sorted tokens
    SAMPLE = "sample"  # temperature, top-k, top-p, Gumbel noise, argmax


class KernelSpec(Frozen):
    """Everything a kernel is specialised for. `shapes` holds the family's own sizes by name (hidden_size, head_dim
    ...).

    `part` names one kernel of a family that has several (`Capability.parts`), and is empty for a family of one. The
    generated source depends on everything but `target`, which decides tile sizes and warps only.
    """

    family: KernelFamily
    part: str = ""
    target: str  # sm_90, gfx942
    dtype: DType  # of activations
    kv_dtype: DType | None = None  # None: as `dtype`
    shapes: dict[str, int]
    flags: dict[str, bool] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """A stable identifier, valid as a Python module name: family, part, types, shapes and flags; not the target."""
        kernel = "_".join(text for text in (self.family.value, self.part) if text)
        types = self.dtype.value
        if self.kv_dtype is not None and self.kv_dtype is not self.dtype:
            types += f"_kv_{self.kv_dtype.value}"
        sizes = "_".join(f"{key}{value}" for key, value in sorted(self.shapes.items()))
        flags = "_".join(key for key, value in sorted(self.flags.items()) if value)
        return "__".join(text for text in (kernel, types, sizes, flags) if text)


class Capability(Frozen):
    """What one family can do. `reason_against` explains a refusal in a sentence."""

    family: KernelFamily
    parts: tuple[str, ...] = ("",)
    dtypes: tuple[DType, ...]
    kv_dtypes: tuple[DType, ...] = ()
    required: tuple[str, ...]  # names in `shapes`
    optional: tuple[str, ...] = ()
    part_required: dict[str, tuple[str, ...]] = Field(default_factory=dict)  # further shapes of one part
    flags: tuple[str, ...] = ()
    power_of_two: tuple[str, ...] = ()  # shapes that must be powers of two
    least: dict[str, int] = Field(default_factory=dict)
    most: dict[str, int] = Field(default_factory=dict)

    def reason_against(self, spec: KernelSpec) -> str | None:
        """Why this family cannot make `spec`, or None where it can."""
        if spec.part not in self.parts:
            return f"{self.family} has no part {spec.part!r}; its parts: {', '.join(map(repr, self.parts))}"
        if spec.dtype not in self.dtypes:
            return f"{self.family} has no {spec.dtype} variant"
        if spec.kv_dtype is not None and spec.kv_dtype not in self.kv_dtypes:
            return f"{self.family} reads no {spec.kv_dtype} KV cache"
        return self._reason_against_shapes(spec) or _reason_against_target(spec.target)

    def _reason_against_shapes(self, spec: KernelSpec) -> str | None:
        required = self.required + self.part_required.get(spec.part, ())
        missing = [name for name in required if name not in spec.shapes]
        if missing:
            return f"{self.family} needs the shapes {', '.join(missing)}"
        known = {*required, *self.optional}
        unknown = [
            *(name for name in spec.shapes if name not in known),
            *(f for f in spec.flags if f not in self.flags),
        ]
        if unknown:
            return f"{self.family} knows nothing of {', '.join(unknown)}"
        for name, value in spec.shapes.items():
            if name in self.power_of_two and value & (value - 1):
                return f"{self.family} needs {name} to be a power of two, not {value}"
            if value < self.least.get(name, 1):
                return f"{self.family} supports {name} from {self.least.get(name, 1)} on, not {value}"
            if value > self.most.get(name, value):
                return f"{self.family} supports {name} up to {self.most[name]}, not {value}"
        if "kv_heads" in spec.shapes and spec.shapes["heads"] % spec.shapes["kv_heads"]:
            return f"{self.family} needs heads to be a multiple of kv_heads"
        if spec.shapes.get("experts_per_token", 0) > spec.shapes.get(
            "experts", spec.shapes.get("experts_per_token", 0)
        ):
            return f"{self.family} cannot choose more experts than there are"
        return None


def _reason_against_target(target: str) -> str | None:
    if target in TARGETS:
        return None
    nearest = nearest_names(target, TARGETS, count=1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    return f"{target} is not a target; known: {', '.join(TARGETS)}{hint}"


TARGETS: tuple[str, ...] = (
    "sm_80",
    "sm_86",
    "sm_89",
    "sm_90",
    "sm_100",
    "sm_103",
    "sm_120",
    "gfx942",
    "gfx950",
)
FLOATS: tuple[DType, ...] = (DType.FP32, DType.FP16, DType.BF16)

CAPABILITIES: dict[KernelFamily, Capability] = {
    capability.family: capability
    for capability in (
        Capability(
            family=KernelFamily.ADD_RMS_NORM,
            dtypes=FLOATS,
            required=("hidden_size",),
            flags=("residual",),
            most={"hidden_size": 65536},
        ),
        Capability(
            family=KernelFamily.ROPE_KV_WRITE,
            dtypes=FLOATS,
            kv_dtypes=FLOATS,
            required=("heads", "kv_heads", "head_dim", "block_size"),
            flags=("qk_norm",),
            power_of_two=("head_dim", "block_size"),
            least={"head_dim": 2},
            most={"head_dim": 256},
        ),
        Capability(
            family=KernelFamily.PAGED_ATTENTION,
            parts=("prefill", "decode", "split", "reduce"),
            dtypes=FLOATS,
            kv_dtypes=FLOATS,
            required=("heads", "kv_heads", "head_dim", "block_size"),
            part_required={"split": ("chunk_tokens",), "reduce": ("chunk_tokens",)},
            optional=("window",),
            power_of_two=("head_dim", "block_size", "chunk_tokens"),
            least={"head_dim": 16, "chunk_tokens": 16},  # tl.dot multiplies at least 16 x 16 x 16
            most={"head_dim": 256},
        ),
        Capability(family=KernelFamily.SWIGLU, dtypes=FLOATS, required=("intermediate_size",)),
        Capability(
            family=KernelFamily.MOE_ROUTE,
            parts=("topk", "count", "sort"),
            dtypes=FLOATS,
            required=("experts", "experts_per_token"),
            part_required={"sort": ("block_rows",)},
            flags=("renormalise",),
            power_of_two=("block_rows",),
            most={"experts": 1024, "experts_per_token": 32},
        ),
        Capability(
            family=KernelFamily.GROUPED_GEMM,
            parts=("gate_up", "down", "combine"),
            dtypes=FLOATS,
            required=("experts_per_token", "out_features"),
            part_required={
                "gate_up": ("experts", "in_features", "block_rows"),
                "down": ("experts", "in_features", "block_rows"),
            },
            flags=("swiglu",),
            power_of_two=("block_rows",),
            least={"block_rows": 16},
            most={"block_rows": 128, "experts": 1024, "experts_per_token": 32},
        ),
        Capability(family=KernelFamily.SAMPLE, dtypes=FLOATS, required=("vocab_size",), most={"vocab_size": 1 << 24}),
    )
}


def reason_against(spec: KernelSpec) -> str | None:
    """Why no kernel family supports `spec`, or None."""
    return CAPABILITIES[spec.family].reason_against(spec)


class KernelArgument(Frozen):
    """One argument of a launch, in order. `type` as Triton writes it: `*bf16` a pointer, `i32`, `i64`, `fp32`
    scalars."""

    name: str
    type: str
    meaning: str = ""  # shape and unit

    @property
    def is_pointer(self) -> bool:
        return self.type.startswith("*")


class KernelBinary(Frozen):
    """One kernel compiled for one target: how to launch it, and what it takes. `kernels.json` is a list of these.

    `registers`, `spilled_bytes` are per thread; `occupancy` is the share of a multiprocessor's warps that can be
    resident, computed from registers, shared memory and warps, and `occupancy_limit` names what limits it.
    """

    name: str  # KernelSpec.name
    family: KernelFamily
    part: str = ""
    target: str
    entry: str  # function in the source and symbol in the binary
    arguments: tuple[KernelArgument, ...]
    constants: dict[str, int]  # tile sizes, by name; the grid is computed from them
    warps: PositiveInt
    warp_size: PositiveInt = 32
    stages: PositiveInt
    shared_memory_bytes: NonNegativeInt
    registers: NonNegativeInt
    spilled_bytes: NonNegativeInt
    occupancy: NonNegativeFloat
    occupancy_limit: Literal["registers", "shared memory", "warps", "blocks"]
    triton: str  # version: registers and speed depend on it
    options: dict[str, bool | int | str] = Field(default_factory=dict)
    source_sha256: str
    binary_sha256: str
    source_file: str = ""  # inside the bundle, set by whoever lays the files out
    binary_file: str = ""
