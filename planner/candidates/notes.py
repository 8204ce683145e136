"""What a user should know of the options and the layout of a replica group, beside their figures."""

from __future__ import annotations

from planner.candidates.family import Family
from planner.candidates.prefix_hits import most_cached
from planner.simulate import FleetResult, Workload

WORTH_SAYING = 0.1  # share of the prompt tokens that another router might find


def option_notes(workload: Workload, family: Family, group: str, index: int, result: FleetResult) -> list[str]:
    """Sentences on the group that was simulated as the `index`-th one, under the traffic `workload`."""
    options, load, notes = family.options, result.groups[index], []
    if options.prefix_caching and load.looked_up_tokens and workload.prefixes is not None:
        share = load.hit_tokens / load.looked_up_tokens
        tier = f", {options.host_blocks:,} blocks a rank in host memory" if options.host_blocks else ""
        notes.append(f"{group}: {share:.0%} of the prompt tokens are found in the prefix cache (simulated{tier})")
        own = workload.select(result.group_index == index)
        if most_cached(own).sum() > (share + WORTH_SAYING) * own.prompt_tokens.sum() and len(load.busy_s) > 1:
            notes.append(f"{group}: routing by conversation or by prefix would find more (choices.router)")
    elif options.role != "decode" and most_cached(workload.select(result.group_index == index)).any():
        notes.append(f"{group}: what prompts share is not reused: every prompt is computed in full")
    if options.speculation is not None:
        notes.append(
            f"{group}: {options.draft_tokens} drafted a step, each token accepted with probability "
            f"{options.speculation.acceptance:g} (declared); drafting takes {options.speculation.draft_s * 1e3:.2g} ms"
        )
    if family.layout.attention_data_parallel > 1:
        notes.append(
            f"{group}: its {family.layout.attention_data_parallel} attention ranks are simulated as one batch that "
            "waits for the fullest one; limits and KV blocks are those of each rank"
        )
    return notes
