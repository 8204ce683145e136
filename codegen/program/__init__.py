"""Forward programs: from a model family's description to one readable Python module for one rank.

    torch = generate_program(architecture, layout, compute_dtype=..., kv_dtype=..., block_size_tokens=...)
    triton = generate_triton_program(torch.model, target="sm_90", multiprocessors=132, max_num_batched_tokens=8192)

Every rank of a tensor-parallel group runs the same module: what differs between ranks comes in with the weights and the
collectives. The interface is `specs.program`.
"""

from codegen.program.generate import GeneratedProgram, generate_program, generate_triton_program
from codegen.program.rank import RankModel, rank_model

__all__ = ["GeneratedProgram", "RankModel", "generate_program", "generate_triton_program", "rank_model"]
