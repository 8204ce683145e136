"""Sampling of one token a row: temperature, top-k, top-p, seeded Gumbel noise, argmax; and its log-probability.

The rule, which the runtime's sampler on the CPU follows too, so that both draw the same tokens (x = logits of a row in
fp32, V of them):
1. logprob of the result is that of the model: x[token] - logsumexp(x). Temperature and truncation do not enter.
2. temperature < 2^-16: the token is argmax x, the lowest id among equals. Nothing else is read.
3. top_k in 1..V-1 keeps every id with x >= the k-th largest value (equals are all kept); 0, or V and more, keeps all.
4. top_p < 1 keeps, of those, every id with x >= t, where t is the largest value such that the weights
   exp((x - max x) / temperature) of the kept ids with x >= t add up to at least top_p * (1 - 2^-17) of the kept ids'
   sum. The slack is above the rounding of the sum, so a share that is met exactly is met however it was added up.
5. u[i] = ((r[i] >> 9) + 0.5) * 2^-23, r[i] the first word of Philox-4x32-10 (Salmon et al., SC'11) with key (seed's low
   32 bits, high 32 bits) and counter (i, position, 0, 0): never 0 or 1, and the same whatever else is in the batch.
6. The token is argmax over the kept ids of (x[i] - max x) / temperature - log(-log u[i]), the lowest id among equals
   (Gumbel-max). 1 / temperature is rounded first, then multiplied.
A row that is -inf throughout gives token 0; NaN or +inf anywhere in a row makes its logprob NaN.

Thresholds are found without sorting: logits are mapped to integers of the same order and the range of integers is
searched four ways at a time, 16 passes over a row that stays in the L2 cache. One program does a whole row; a batch of
one leaves the other multiprocessors idle (simple, and a candidate for splitting).
"""

from __future__ import annotations

from codegen.kernels.base import GeneratedKernel, generate, is_amd, next_power_of_two, pointer
from specs.kernels import KernelSpec

TEMPLATE = '''VOCAB_SIZE = tl.constexpr({{ vocab_size }})
LEAST_TEMPERATURE = tl.constexpr(2.0**-16)  # greedy below it
TOP_P_SLACK = tl.constexpr(2.0**-17)  # above the rounding of a sum of probabilities


@triton.jit
def ordered(values):
    """Integers in the order of the floats; both zeros are one."""
    bits = tl.where(values == 0.0, 0.0, values).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def masses(row, most, scale, floor, first, second, third, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """How many logits (COUNT), or how much exp(scale * (x - most)), of those at or above `floor` reach each
    threshold."""
    columns = tl.arange(0, BLOCK)
    above_first = tl.zeros([BLOCK], tl.float32)
    above_second = tl.zeros([BLOCK], tl.float32)
    above_third = tl.zeros([BLOCK], tl.float32)
    for start in range(0, VOCAB_SIZE, BLOCK):
        inside = start + columns < VOCAB_SIZE
        values = tl.load(row + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        keys = ordered(values).to(tl.int64)
        if COUNT:
            weights = inside.to(tl.float32)
        else:
            weights = tl.where(inside & (keys >= floor), tl.exp((values - most) * scale), 0.0)
        above_first += tl.where(keys >= first, weights, 0.0)
        above_second += tl.where(keys >= second, weights, 0.0)
        above_third += tl.where(keys >= third, weights, 0.0)
    return tl.sum(above_first, axis=0), tl.sum(above_second, axis=0), tl.sum(above_third, axis=0)


@triton.jit
def threshold(row, most, scale, floor, low, high, share, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The largest integer in [low, high] that a mass of `share` reaches: a count, or a share of what stands above
    `low`."""
    needed = share
    if not COUNT:
        whole, _, _ = masses(row, most, scale, floor, low, low, low, COUNT, BLOCK)
        needed = share * (1.0 - TOP_P_SLACK) * whole
    while low < high:
        step = (high - low + 3) // 4
        first = low + step
        second = tl.minimum(first + step, high)
        third = tl.minimum(second + step, high)
        at_first, at_second, at_third = masses(row, most, scale, floor, first, second, third, COUNT, BLOCK)
        new_high = tl.where(at_first < needed, first - 1, tl.where(at_second < needed, second - 1, third - 1))
        low = tl.where(at_second >= needed, second, tl.where(at_first >= needed, first, low))
        low = tl.where(at_third >= needed, third, low)
        high = tl.where(at_third >= needed, high, new_high)
    return low


{{ decorator }}
def {{ entry }}(
{{ parameters }}):
    sampled = tl.program_id(0)
    row = logits + sampled.to(tl.int64) * VOCAB_SIZE
    columns = tl.arange(0, BLOCK)
    most = -float("inf")
    least = float("inf")
    total = 0.0
    for start in range(0, VOCAB_SIZE, BLOCK):
        inside = start + columns < VOCAB_SIZE
        values = tl.load(row + start + columns, mask=inside, other=-float("inf")).to(tl.float32)
        new_most = tl.maximum(most, tl.max(values, axis=0))
        safe_most = tl.where(new_most > -float("inf"), new_most, 0.0)
        total = total * tl.exp(most - safe_most) + tl.sum(tl.exp(values - safe_most), axis=0)
        least = tl.minimum(least, tl.min(tl.where(inside, values, float("inf")), axis=0))
        most = new_most

    temperature = tl.load(temperatures + sampled)
    drawn = temperature >= LEAST_TEMPERATURE
    scale = tl.div_rn(1.0, tl.where(drawn, temperature, 1.0))  # `/` is off by two units in the last place
    top = tl.where(most > -float("inf"), most, 0.0)
    lowest = ordered(least).to(tl.int64)
    highest = ordered(most).to(tl.int64)
    floor = lowest
    k = tl.load(top_k + sampled)
    if drawn & (k > 0) & (k < VOCAB_SIZE):
        floor = threshold(row, most, scale, floor, lowest, highest, k.to(tl.float32), True, BLOCK)
    p = tl.load(top_p + sampled)
    if drawn & (p < 1.0):
        floor = threshold(row, most, scale, floor, floor, highest, p, False, BLOCK)

    seed = tl.load(seeds + sampled)
    position = tl.load(positions + sampled).to(tl.int32)
    best = -float("inf")
    token = 0
    for start in range(0, VOCAB_SIZE, BLOCK):
        ids = start + columns
        inside = ids < VOCAB_SIZE
        values = tl.load(row + ids, mask=inside, other=-float("inf")).to(tl.float32)
        kept = inside & (ordered(values).to(tl.int64) >= floor)
        counter = tl.zeros([BLOCK], tl.int32)
        word, _, _, _ = tl.philox(seed, ids, counter + position, counter, counter)
        uniform = ((word >> 9).to(tl.float32) + 0.5) * 1.1920928955078125e-07  # 2^-23
        noisy = tl.where(drawn, (values - top) * scale - tl.log(-tl.log(uniform)), values)
        noisy = tl.where(kept, noisy, -float("inf"))
        best_here = tl.max(noisy, axis=0)
        token = tl.where(best_here > best, start + tl.argmax(noisy, axis=0), token)
        best = tl.maximum(best, best_here)

    tl.store(tokens + sampled, token.to(tl.int64))
    tl.store(logprobs + sampled, tl.load(row + token).to(tl.float32) - most - tl.log(total))
'''


def build(spec: KernelSpec) -> GeneratedKernel:
    """Shapes: vocab_size."""
    vocab_size = spec.shapes["vocab_size"]
    return generate(
        spec,
        entry="sample",
        title="One token of each row: temperature, top-k, top-p, seeded Gumbel noise, argmax.",
        formula="""
            token = argmax over kept ids of (x - max x) / temperature - log(-log u), u from Philox(seed; id, position);
            argmax x at temperature 0. top_k keeps the k largest (all equals of the last), top_p of those the fewest
            whose probabilities reach top_p. logprob = x[token] - logsumexp(x).""",
        template=TEMPLATE,
        arguments=[
            pointer("tokens", "i64", "[R]"),
            pointer("logprobs", "fp32", "[R]"),
            pointer("logits", spec.dtype, "[R, vocab_size]"),
            pointer("temperatures", "fp32", "[R]; under 2^-16: greedy"),
            pointer("top_k", "i32", "[R]; 0 = all"),
            pointer("top_p", "fp32", "[R]; 1 = all"),
            pointer("seeds", "i64", "[R], of the request"),
            pointer("positions", "i64", "[R], of the token in the output of its request"),
        ],
        constants={"BLOCK": min(4096, max(16, next_power_of_two(vocab_size)))},
        warps=8 if is_amd(spec.target) else 16,
        stages=1,
        grid="(num_rows,)",
        values={"vocab_size": vocab_size},
    )
