"""From logits to tokens. What a request draws depends on its own logits, seed and position, never on its neighbours.

One rule, two back ends that draw the same tokens: `sample`, here, on the CPU, and `KernelSampler`, which launches the
bundle's sampling kernel. x = a row's logits in fp32 after stop tokens that may not come yet are set to -inf:

1. Temperature under `LEAST_TEMPERATURE`: argmax x, the lowest id among equals. Nothing else is read.
2. top_k in 1 .. V-1 keeps every id with x >= the k-th largest value: ids that tie with the k-th are all kept.
3. top_p < 1 keeps, of those, every id with x >= t, t being the largest value such that the kept ids with x >= t hold
   top_p of the kept ids' probability at this temperature, less a relative `TOP_P_SLACK`, so that a share that is met
   exactly counts as met however the sum was rounded.
4. u[i] = ((r[i] >> 9) + 0.5) * 2^-23, r[i] the first word of Philox-4x32-10 (Salmon et al., SC'11) with the request's
   seed as key and counter (i, position, 0, 0), position = index of the token in the request's output.
5. The token is the kept id with the largest (x[i] - max x) / temperature - log(-log u[i]), the lowest among equals
   (Gumbel-max: exact draws from the truncated distribution).

A request preempted and computed anew draws the same. Log-probabilities are of the model's own distribution.
Arithmetic is fp32 on both sides; sums of probabilities (3) and logarithms (4) may differ in the last bits, so two
candidates within about 1e-6 of each other could be told apart differently: not seen in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from runtime.launch import Launcher
from runtime.request import SampledToken, SamplingParams, TokenLogprob

Floats = NDArray[np.float32]
Ids = NDArray[np.int64]
Words = NDArray[np.uint64]  # 32-bit words in 64 bits, so that a product of two has room

LEAST_TEMPERATURE = 2.0**-16  # below it fp32 cannot hold a logit's difference and the noise in one number
TOP_P_SLACK = 2.0**-17  # above the rounding of a sum over 128 Ki ids in fp32, far below any share that is asked for
# Noise lies in [-2.812, 16.636]: an id further than their distance below the largest cannot be drawn.
REACH = 19.5
WORDS_AT_ONCE = 8192  # four buffers of 2 x 64 KiB stay in the L2 cache: 5.8 ms for 128,256 ids, 10.6 ms at 4096
WORD = np.uint64(0xFFFFFFFF)
MULTIPLIERS = np.array([0xD2511F53, 0xCD9E8D57], dtype=np.uint64).reshape(2, 1, 1)
KEY_STEPS = np.array([0x9E3779B9, 0xBB67AE85], dtype=np.uint64).reshape(2, 1, 1)


@dataclass(frozen=True, slots=True)
class Draw:
    """One row to sample: parameters, seed, how many tokens the request has so far, tokens that may not come yet."""

    params: SamplingParams
    seed: int
    position: int
    forbidden: frozenset[int] = frozenset()


def sample(logits: torch.Tensor, draws: Sequence[Draw]) -> list[SampledToken]:
    """One token for each row of `logits` [rows, vocab] float32; row r belongs to `draws[r]`. Computed on the CPU.

    Raises `FloatingPointError` where a row holds NaN or +inf: a token drawn from it would mean nothing.
    """
    if not draws:
        return []
    table: Floats = logits.detach().float().cpu().numpy()
    chosen: Ids = table.argmax(axis=1)  # the lowest id among equals; the first NaN where there is one
    if not (table[np.arange(len(draws)), chosen] < np.inf).all():
        raise _broken()
    rows: list[int] = []
    candidates: list[tuple[Ids, Floats]] = []
    for row, draw in enumerate(draws):
        values = table[row]
        if draw.forbidden:
            values = values.copy()
            values[_known(draw, len(values))] = -np.inf
            chosen[row] = values.argmax()
        if np.float32(draw.params.temperature) >= LEAST_TEMPERATURE and values[chosen[row]] > -np.inf:
            rows.append(row)
            candidates.append(kept(values, values[chosen[row]], draw.params))
    if rows:
        chosen[rows] = _draw(candidates, [draws[row] for row in rows])
    return _with_logprobs(logits, chosen.tolist(), draws)


class KernelSampler:
    """The same rule as one launch of the sampling kernel (`sample` in a bundle), where the logits are."""

    def __init__(self, launch: Launcher) -> None:
        self._launch = launch

    def __call__(self, logits: torch.Tensor, draws: Sequence[Draw]) -> list[SampledToken]:
        """As `sample`, for logits on the kernel's device; waits for the result."""
        if not draws:
            return []
        rows, vocabulary = logits.shape
        device = logits.device
        masked = [(row, token) for row, draw in enumerate(draws) for token in _known(draw, vocabulary)]
        values = logits.float().contiguous()
        if masked:
            where = torch.tensor(masked, device=device)
            values = values.index_put((where[:, 0], where[:, 1]), torch.tensor(-torch.inf, device=device))
        tokens = torch.empty(rows, dtype=torch.int64, device=device)
        logprobs = torch.empty(rows, dtype=torch.float32, device=device)
        params = [draw.params for draw in draws]
        self._launch(
            (rows,),
            tokens,
            logprobs,
            values,
            torch.tensor([one.temperature for one in params], dtype=torch.float32, device=device),
            torch.tensor([one.top_k if one.top_k < vocabulary else 0 for one in params], dtype=torch.int32).to(device),
            torch.tensor([one.top_p for one in params], dtype=torch.float32, device=device),
            torch.tensor([_signed(draw.seed) for draw in draws], dtype=torch.int64, device=device),
            torch.tensor([draw.position for draw in draws], dtype=torch.int64, device=device),
        )
        # The kernel's log-probability is NaN where the row holds NaN or +inf, and where every token is forbidden.
        if bool(torch.isnan(logprobs).any()) and not bool((logits < torch.inf).all()):
            raise _broken()
        return _with_logprobs(logits, tokens.tolist(), draws)


def kept(values: Floats, most: np.float32, params: SamplingParams) -> tuple[Ids, Floats]:
    """Ids that top-k and top-p keep and that noise can lift to the top, ascending; their logits over temperature, 0 the
    largest. `values` [vocab], `most` the largest of them and finite."""
    scale = np.float32(1.0) / np.float32(params.temperature)
    with np.errstate(over="ignore"):  # -inf: further below than fp32 can say
        scaled: Floats = (values - most) * scale
    ids: Ids = np.flatnonzero(scaled >= -REACH)
    found = values[ids]
    whole = scaled  # what top-p is a share of
    if 0 < params.top_k < len(values):
        if params.top_k <= len(ids):
            cut = np.partition(found, len(found) - params.top_k)[-params.top_k]
            ids, found = ids[found >= cut], found[found >= cut]
            whole = scaled[ids]
        else:  # the k-th is out of reach, but counts
            whole = scaled[values >= np.partition(values, len(values) - params.top_k)[-params.top_k]]
    top_p = np.float32(params.top_p)
    if top_p < 1.0:
        needed = float(top_p) * (1.0 - TOP_P_SLACK) * float(np.exp(whole).sum(dtype=np.float64))
        descending = np.sort(found)[::-1]
        reached = np.cumsum(np.exp((descending - most) * scale), dtype=np.float64)
        last = int(np.searchsorted(reached, needed))
        if last < len(descending):  # else the share is reached out of reach
            ids = ids[found >= descending[last]]
    return ids, scaled[ids]


def _draw(candidates: Sequence[tuple[Ids, Floats]], draws: Sequence[Draw]) -> list[int]:
    """The winner of each row's candidates; as many rows at once as fit `WORDS_AT_ONCE`, padded to the longest."""
    tokens: list[int] = []
    at_once = max(1, WORDS_AT_ONCE // max(len(ids) for ids, _ in candidates))
    for start in range(0, len(draws), at_once):
        part = candidates[start : start + at_once]
        width = max(len(ids) for ids, _ in part)
        counters = np.zeros((len(part), width), dtype=np.uint64)
        scores = np.full((len(part), width), -np.inf, dtype=np.float32)
        for row, (ids, scaled) in enumerate(part):
            counters[row, : len(ids)] = ids
            scores[row, : len(ids)] = scaled
        scores += gumbel(counters, draws[start : start + at_once])
        winners = scores.argmax(axis=1)
        tokens += [int(ids[winner]) for (ids, _), winner in zip(part, winners, strict=True)]
    return tokens


def gumbel(ids: Words, draws: Sequence[Draw]) -> Floats:
    """-log(-log u) of `ids` [rows, n]; seed and position of a row are those of its draw."""
    uniform = ((philox(ids, draws) >> np.uint64(9)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
    noise: Floats = -np.log(-np.log(uniform))
    return noise


def philox(ids: Words, draws: Sequence[Draw]) -> Words:
    """First word of Philox-4x32-10 for counter (id, position, 0, 0) and key (seed's low half, high half). [rows, n]."""
    seeds = np.array([draw.seed & (1 << 64) - 1 for draw in draws], dtype=np.uint64).reshape(-1, 1)
    keys = np.stack((seeds & WORD, seeds >> np.uint64(32)))  # [2, rows, 1]
    positions = np.array([draw.position & 0xFFFFFFFF for draw in draws], dtype=np.uint64).reshape(-1, 1)
    words = np.empty_like(ids)
    columns = max(1, WORDS_AT_ONCE // len(ids))
    for start in range(0, ids.shape[1], columns):
        words[:, start : start + columns] = _rounds(ids[:, start : start + columns], positions, keys)
    return words


def _rounds(ids: Words, positions: Words, keys: Words) -> Words:
    """Ten rounds, in place. A round turns words (0, 1, 2, 3) into (high of product 2 ^ 1 ^ key 0, low of product 2,
    high of product 0 ^ 3 ^ key 1, low of product 0). Words 0 and 2 change places: they are left where they are, and the
    other operands are read in reverse instead, which costs nothing."""
    even = np.stack((ids, np.zeros_like(ids)))  # words 0 and 2
    odd = np.zeros_like(even)  # words 1 and 3
    odd[0] = positions
    products = np.empty_like(even)
    for number in range(10):
        order = slice(None, None, 1 if number % 2 == 0 else -1)
        key = (keys + np.uint64(number) * KEY_STEPS) & WORD
        np.multiply(even, MULTIPLIERS[order], out=products)
        np.right_shift(products, np.uint64(32), out=even)
        even ^= odd[::-1]
        even ^= key[::-1][order]
        np.bitwise_and(products, WORD, out=odd)
    words: Words = even[0]  # ten is even: word 0 is back in its place
    return words


def _known(draw: Draw, vocabulary: int) -> list[int]:
    return [token for token in draw.forbidden if token < vocabulary]


def _signed(seed: int) -> int:
    """The same 64 bits as a signed number."""
    return (seed + (1 << 63)) % (1 << 64) - (1 << 63)


def _broken() -> FloatingPointError:
    return FloatingPointError("the model computed NaN or infinite logits")


def _with_logprobs(logits: torch.Tensor, chosen: list[int], draws: Sequence[Draw]) -> list[SampledToken]:
    scored = _logprobs(logits, chosen, draws)
    return [scored.get(row, SampledToken(token)) for row, token in enumerate(chosen)]


def _logprobs(logits: torch.Tensor, chosen: list[int], draws: Sequence[Draw]) -> dict[int, SampledToken]:
    wanted = [row for row, draw in enumerate(draws) if draw.params.logprobs is not None]
    if not wanted:
        return {}
    logprobs = torch.log_softmax(logits[wanted].float(), dim=-1)
    most = max(draws[row].params.logprobs or 0 for row in wanted)
    top_values, top_tokens = (part.tolist() for part in torch.topk(logprobs, min(most, logits.shape[-1]), dim=-1))
    found: dict[int, SampledToken] = {}
    for index, row in enumerate(wanted):
        count = draws[row].params.logprobs or 0
        pairs = zip(top_tokens[index][:count], top_values[index][:count], strict=True)
        top = tuple(TokenLogprob(token, value) for token, value in pairs)
        found[row] = SampledToken(chosen[row], float(logprobs[index, chosen[row]]), top)
    return found
