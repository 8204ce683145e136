"""residual + x, then RMSNorm (Zhang and Sennrich, arXiv:1910.07467): one program a row, the row in registers."""

from __future__ import annotations

from codegen.kernels.base import GeneratedKernel, generate, next_power_of_two, pointer, scalar, warps_for
from specs.kernels import KernelSpec

TEMPLATE = """HIDDEN_SIZE = tl.constexpr({{ hidden_size }})


{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    row = tl.program_id(0).to(tl.int64) * HIDDEN_SIZE
    columns = tl.arange(0, BLOCK)
{% if padded %}
    inside = columns < HIDDEN_SIZE
{% endif %}
    values = tl.load(x + row + columns{{ mask }}).to(tl.float32)
{% if residual %}
    values += tl.load(residual + row + columns{{ mask }}).to(tl.float32)
    rounded = values.to(residual.dtype.element_ty)
    tl.store(residual + row + columns, rounded{{ store_mask }})
    values = rounded.to(tl.float32)  # the norm is that of the residual as the next layer reads it
{% endif %}
    mean_square = tl.sum(values * values, axis=0) / HIDDEN_SIZE
    scale = tl.load(weight + columns{{ mask }}).to(tl.float32)
    normed = values * tl.rsqrt(mean_square + epsilon) * scale
    tl.store(out + row + columns, normed.to(out.dtype.element_ty){{ store_mask }})
"""


def build(spec: KernelSpec) -> GeneratedKernel:
    """Shapes: hidden_size; flag: residual."""
    hidden = spec.shapes["hidden_size"]
    residual = spec.flags.get("residual", False)
    block = next_power_of_two(hidden)
    padded = block != hidden
    arguments = [pointer("out", spec.dtype, "[T, hidden_size]"), pointer("x", spec.dtype, "[T, hidden_size]")]
    if residual:
        arguments.append(pointer("residual", spec.dtype, "[T, hidden_size], becomes residual + x"))
    arguments += [pointer("weight", spec.dtype, "[hidden_size]"), scalar("epsilon", "fp32", "")]
    return generate(
        spec,
        entry="add_rms_norm" if residual else "rms_norm",
        title="Add, then RMSNorm." if residual else "RMSNorm.",
        formula=("h = residual + x; residual = h; " if residual else "h = x; ")
        + "out = h / sqrt(mean(h^2) + epsilon) * weight, in fp32.",
        template=TEMPLATE,
        arguments=arguments,
        constants={"BLOCK": block},
        # A row is read once and stays in registers: 16 values a thread keeps a row of 8192 within 16 warps.
        warps=warps_for(block, spec.target, per_thread=16, most=32),
        stages=1,
        grid="(num_tokens,)",
        values={
            "hidden_size": hidden,
            "residual": residual,
            "padded": padded,
            "mask": ", mask=inside, other=0.0" if padded else "",
            "store_mask": ", mask=inside" if padded else "",
        },
    )
