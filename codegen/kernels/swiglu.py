"""silu(gate) * up (Shazeer, arXiv:2002.05202) over the packed output of the gate_up product."""

from __future__ import annotations

from codegen.kernels.base import GeneratedKernel, generate, next_power_of_two, pointer, warps_for
from specs.kernels import KernelSpec

TEMPLATE = """INTERMEDIATE_SIZE = tl.constexpr({{ intermediate_size }})


{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
{% if padded %}
    inside = columns < INTERMEDIATE_SIZE
{% endif %}
    gate_row = gate_up + row * (2 * INTERMEDIATE_SIZE)
    gate = tl.load(gate_row + columns{{ mask }}).to(tl.float32)
    up = tl.load(gate_row + INTERMEDIATE_SIZE + columns{{ mask }}).to(tl.float32)
    product = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out + row * INTERMEDIATE_SIZE + columns, product.to(out.dtype.element_ty){{ store_mask }})
"""


def build(spec: KernelSpec) -> GeneratedKernel:
    """Shapes: intermediate_size."""
    size = spec.shapes["intermediate_size"]
    block = min(1024, next_power_of_two(size))
    padded = size % block != 0
    return generate(
        spec,
        entry="swiglu",
        title="SwiGLU.",
        formula="out = silu(gate) * up, silu(z) = z / (1 + exp(-z)), in fp32.",
        template=TEMPLATE,
        arguments=[
            pointer("out", spec.dtype, "[T, intermediate_size]"),
            pointer("gate_up", spec.dtype, "[T, 2 * intermediate_size]: gate, then up"),
        ],
        # 1024 columns a program: a decode step of one token still spreads a row of 28672 over 28 multiprocessors.
        constants={"BLOCK": block},
        warps=warps_for(block, spec.target),
        stages=1,
        grid=f'(num_tokens, cdiv({size}, meta["BLOCK"]))',
        values={
            "intermediate_size": size,
            "padded": padded,
            "mask": ", mask=inside, other=0.0" if padded else "",
            "store_mask": ", mask=inside" if padded else "",
        },
    )
