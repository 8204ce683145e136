"""`GeneratedKernel`, and what every family uses to make one: template filling, type names, tile arithmetic."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from textwrap import dedent

import jinja2

from specs.document import DType
from specs.kernels import KernelArgument, KernelSpec

TRITON_TYPES: dict[DType, str] = {DType.FP32: "fp32", DType.FP16: "fp16", DType.BF16: "bf16"}
TL_TYPES: dict[DType, str] = {DType.FP32: "tl.float32", DType.FP16: "tl.float16", DType.BF16: "tl.bfloat16"}


@dataclass(frozen=True)
class GeneratedKernel:
    """One Triton kernel as text, and how to compile and launch it.

    `source` is the same for all targets; `constants`, `warps` and `stages` are chosen for the spec's target (predicted
    from shapes and hardware limits, not measured). `grid_source` is a Python expression over names of the batch
    (documented in `codegen.kernels`) and `meta`, the mapping of constants.
    """

    spec: KernelSpec
    source: str
    entry: str
    arguments: tuple[KernelArgument, ...]
    constants: dict[str, int]
    warps: int
    stages: int
    grid_source: str

    @property
    def name(self) -> str:
        """`KernelSpec.name`: the key of the `kernels` mapping that a program receives."""
        return self.spec.name

    @property
    def signature(self) -> dict[str, str]:
        """Parameter name -> Triton type, constants last, as `triton.compiler.ASTSource` wants it."""
        types = {argument.name: argument.type for argument in self.arguments}
        return types | dict.fromkeys(self.constants, "constexpr")

    @property
    def source_sha256(self) -> str:
        """Hash of the source text."""
        return hashlib.sha256(self.source.encode()).hexdigest()


@lru_cache(maxsize=64)
def _template(text: str) -> jinja2.Template:
    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
    )
    return environment.from_string(text)


HEADER = '''"""{{ title }}

{{ formula }}

Arguments:
{% for argument in arguments %}
    {{ argument.name }}: {{ [argument.type, argument.meaning] | select | join(" ") }}
{% endfor %}
Grid: {{ grid }}
Tile sizes are the parameters in capitals. Generated for
{{ spec_name }}
"""

import triton
import triton.language as tl
'''


def generate(
    spec: KernelSpec,
    *,
    entry: str,
    title: str,
    formula: str,
    template: str,
    arguments: Sequence[KernelArgument],
    constants: dict[str, int],
    warps: int,
    stages: int,
    grid: str,
    values: dict[str, object] | None = None,
) -> GeneratedKernel:
    """Fill `template` (header and parameter list come from `arguments` and `constants`) and wrap it as a kernel.

    The template reads `parameters` (one per line), `do_not_specialize` (the scalar names, so that a just-in-time start
    compiles once and not again for every batch size) and whatever `values` holds.
    """
    scalars = [argument.name for argument in arguments if not argument.is_pointer]
    parameters = [argument.name for argument in arguments] + [f"{name}: tl.constexpr" for name in constants]
    gap = "\n\n" if template.startswith("{{ decorator }}") else "\n"
    filled = _template(HEADER + gap + template).render(
        title=title,
        formula=dedent(formula).strip(),
        arguments=arguments,
        grid=grid,
        spec_name=spec.name,
        entry=entry,
        decorator="@triton.jit(do_not_specialize=[" + ", ".join(f'"{name}"' for name in scalars) + "])"
        if scalars
        else "@triton.jit",
        parameters="".join(f"    {parameter},\n" for parameter in parameters),
        **(values or {}),
    )
    return GeneratedKernel(spec, filled, entry, tuple(arguments), dict(constants), warps, stages, grid)


def pointer(name: str, dtype: DType | str, meaning: str) -> KernelArgument:
    """A tensor argument; `dtype` is a `DType` or one of Triton's own names (i32, i64)."""
    element = TRITON_TYPES[dtype] if isinstance(dtype, DType) else dtype
    return KernelArgument(name=name, type=f"*{element}", meaning=meaning)


def scalar(name: str, kind: str, meaning: str) -> KernelArgument:
    """A number: `i32`, `i64` or `fp32`."""
    return KernelArgument(name=name, type=kind, meaning=meaning)


def next_power_of_two(value: int) -> int:
    """The least power of two that is at least `value` (>= 1)."""
    return 1 << (value - 1).bit_length()


def is_amd(target: str) -> bool:
    """Whether `target` is one of AMD's (waves of 64, 64 KiB of local memory on gfx942)."""
    return target.startswith("gfx")


def warps_for(elements: int, target: str, *, per_thread: int = 8, most: int = 16) -> int:
    """Warps so that a thread holds about `per_thread` of a row's `elements` (16-byte loads of 16-bit values)."""
    lanes = 64 if is_amd(target) else 32
    return min(
        most if not is_amd(target) else most // 2, max(1, next_power_of_two(-(-elements // (lanes * per_thread))))
    )
