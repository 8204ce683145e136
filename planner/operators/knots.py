"""The grids of each family: which coordinates, which knots.

Knots of widths, lengths and batches are the measured tables' own values; shapes between them are interpolated. Breaks
stand where libraries change kernel or a tile is full.
"""

from __future__ import annotations

from planner.operators.grid import Axes, Axis

WIDTHS = (
    32,
    64,
    128,
    256,
    512,
    768,
    1024,
    1536,
    2048,
    2560,
    3072,
    3584,
    4096,
    5120,
    6144,
    7168,
    8192,
    10240,
    12288,
    16384,
    51200,
    65536,
)
TOKENS = (
    1,
    4,
    8,
    12,
    16,
    17,
    32,
    48,
    64,
    65,
    96,
    128,
    129,
    192,
    256,
    257,
    512,
    768,
    1024,
    1536,
    2048,
    2560,
    3072,
    4096,
    8192,
    16384,
    32768,
)
SMOOTH = 0.1  # chosen on a held-out fifth of the rows
TOKEN_BREAKS = (16.0, 17.0, 64.0, 128.0, 256.0)
GEMM_AXES: tuple[Axes, ...] = (
    (
        Axis("m", TOKENS, smooth=SMOOTH, breaks=TOKEN_BREAKS),
        Axis("n", WIDTHS, smooth=SMOOTH, breaks=(32.0,)),
        Axis("k", WIDTHS, smooth=SMOOTH, breaks=(64.0,)),
    ),
    (
        Axis("m", (1, 16, 17, 32, 64, 128, 256, 512, 1024, 2048, 4096, 32768), smooth=SMOOTH, breaks=(16.0,)),
        Axis("n", WIDTHS[1::3], smooth=SMOOTH),
        Axis("k", WIDTHS[1::3], smooth=SMOOTH),
        Axis("aligned", (0, 1), log=False, flat=0.1),
    ),
)
TWOS = tuple(float(2**i) for i in range(15))
GROUPS = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 48.0, 96.0)
DIMS = Axis("head_dim", (64, 128, 192, 256, 512), smooth=0.0, flat=0.05)
L2_SHARES = tuple(
    2.0**i
    for i in (-18, -12, -8, -5, -4, -3, -2, -1.5, -1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8, 12)
)
DECODE_AXES: tuple[Axes, ...] = (
    (
        Axis(
            "length", (2, 8, 32, 128, 129, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072), smooth=SMOOTH
        ),
        Axis("sequences", TWOS, smooth=SMOOTH),
        Axis("group", GROUPS, smooth=SMOOTH),
    ),
    (
        Axis("length", (2, 32, 128, 129, 512, 2048, 8192, 32768, 131072), smooth=SMOOTH),
        Axis("sequences", TWOS, smooth=SMOOTH),
        Axis("group", GROUPS[::2], smooth=SMOOTH),
        DIMS,
    ),
    (
        Axis("read", L2_SHARES, smooth=0.1),
        Axis("sequences", TWOS[::2], smooth=SMOOTH),
        Axis("group", (1.0, 4.0, 16.0, 96.0), smooth=SMOOTH),
    ),
    (
        Axis("length", (2, 128, 129, 1024, 16384), smooth=SMOOTH),
        Axis("sequences", TWOS[::2], smooth=SMOOTH),
        Axis("batch", tuple(float(4**i) for i in range(7)), smooth=SMOOTH),
        Axis("window", (1, 128, 1024, 8192), smooth=0.0, flat=0.1),
    ),
)
LENGTHS = (1, 16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 10240, 12288, 16384)
PREFILL_AXES: tuple[Axes, ...] = (
    (
        Axis("length", LENGTHS, smooth=SMOOTH),
        Axis("sequences", TWOS, smooth=SMOOTH),
        Axis("group", GROUPS, smooth=SMOOTH),
    ),
    (
        Axis("length", LENGTHS[::2], smooth=SMOOTH),
        Axis("sequences", TWOS, smooth=SMOOTH),
        Axis("group", GROUPS[::2], smooth=SMOOTH),
        DIMS,
    ),
    (
        Axis("length", LENGTHS[::2], smooth=SMOOTH),
        Axis("sequences", TWOS[::2], smooth=SMOOTH),
        Axis("batch", tuple(float(4**i) for i in range(5)), smooth=SMOOTH),
        Axis("window", (1, 128, 1024, 8192), smooth=0.0, flat=0.1),
    ),
)
MOE_TOKENS = (1, 2, 4, 8, 16, 32, 64, 80, 128, 192, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 16384)
LAW = Axis("law", (0.0, 1.01, 1.2), log=False, smooth=0.0, flat=0.1)
PER_EXPERT = (1 / 256, 1 / 64, 1 / 16, 0.25, 1, 2, 4, 8, 16, 32, 64, 128, 256, 1024, 4096)
MOE_AXES: tuple[Axes, ...] = (
    (
        Axis("tokens", MOE_TOKENS, smooth=SMOOTH),
        Axis("local", (1, 2, 4, 8, 16, 32, 64, 128, 256, 512), smooth=SMOOTH),
        Axis("inter_rank", (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 16384), smooth=SMOOTH),
        LAW,
    ),
    (Axis("gate", L2_SHARES, smooth=0.1), Axis("per_expert", PER_EXPERT, smooth=SMOOTH)),
    (
        Axis("per_expert", PER_EXPERT, smooth=SMOOTH),
        Axis("tp", (1, 2, 8, 32), smooth=0.0, flat=0.05),
        Axis("align", (2, 8, 16, 64), smooth=0.0, flat=0.05),
        Axis("local", (1, 4, 16, 64, 256, 512), smooth=SMOOTH),
    ),
    (
        Axis("tokens", MOE_TOKENS[::2], smooth=SMOOTH),
        Axis("ep", (1, 2, 4, 8, 16, 32, 64, 128, 256), smooth=SMOOTH),
        Axis("topk", (1, 2, 4, 6, 8, 10, 22), smooth=0.0, flat=0.1),
        LAW,
    ),
    (
        Axis("hidden", (1024, 2048, 2880, 3072, 4096, 5120, 6144, 7168), smooth=0.05, flat=0.05),
        Axis("inter", (512, 768, 1024, 1536, 2048, 2880, 5120, 8192, 16384), smooth=0.05, flat=0.05),
        Axis("tokens", (1, 4, 16, 64, 256, 1024, 4096, 16384), smooth=SMOOTH),
        Axis("experts", (8, 32, 128, 256, 512), smooth=0.05, flat=0.05),
    ),
    (
        Axis("hidden", (1024, 2048, 2880, 3072, 4096, 5120, 6144, 7168), smooth=0.05, flat=0.05),
        Axis("inter_rank", (32, 128, 512, 1024, 2048, 8192), smooth=0.05, flat=0.05),
        Axis("local", (1, 4, 16, 64, 128, 256, 512), smooth=SMOOTH),
        Axis("per_expert", (0.03, 0.25, 1, 4, 16, 64, 1024), smooth=SMOOTH),
    ),
)
COLLECTIVE_AXES: tuple[Axes, ...] = (
    (
        Axis("bytes", tuple(float(2**i) for i in range(8, 31)), smooth=0.1, flat=0.01),
        Axis("kind", (0, 1), log=False, smooth=0.0, flat=0.3),
    ),
)
MLA_AXES: tuple[Axes, ...] = (
    (
        Axis("length", (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072), smooth=SMOOTH),
        Axis("batch", TWOS[:11], smooth=SMOOTH),
    ),
    (
        Axis("length", (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 131072), smooth=SMOOTH),
        Axis("batch", TWOS[:11], smooth=SMOOTH),
        Axis("heads", TWOS[:8], smooth=SMOOTH),
    ),
)
BMM_AXES: tuple[Axes, ...] = (
    (
        Axis("tokens", (1, 8, 32, 64, 128, 192, 256, 512, 768, 1024, 2048, 4096, 8192, 20480), smooth=SMOOTH),
        Axis("heads", TWOS[:8], smooth=SMOOTH),
    ),
)
DISPATCH_AXES: tuple[Axes, ...] = (
    (
        Axis("tokens", (1, 8, 16, 32, 64, 128, 256, 1024, 4096, 16384, 65536), smooth=0.5),
        Axis("hidden", (3072, 4096, 6144, 7168), smooth=0.5, flat=0.2),
        Axis("experts", (256, 384), smooth=0.0, flat=0.5),
    ),
)
