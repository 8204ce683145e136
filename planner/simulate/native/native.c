/* One translation unit: small functions are inlined across the files, and one run of the compiler is the quickest. */
#include "capstan.h"

/* Further up in the file order than where they are called from. */
static void group_forget(Group *group, int64_t replica, int64_t lane);
static void group_hand(Group *group, int64_t replica, int64_t lane, int32_t request);
static void lane_clear(Lane *lane);
static void fleet_open(Fleet *fleet);
static void fleet_settle(Fleet *fleet);
static void fleet_close(Fleet *fleet);

#include "memory.c"
#include "times.c"
#include "trees.c"
#include "units.c"
#include "blocks.c"
#include "queue.c"
#include "former.c"
#include "lane.c"
#include "pipeline.c"
#include "refute.c"
#include "arrivals.c"
#include "links.c"
#include "router.c"
#include "group.c"
#include "fleet.c"
#include "state.c"

/* Sizes of the structs that Python passes, in bytes, in the order of abi.py: a guard against drift between the two. */
void capstan_sizes(int64_t *sizes) {
    const size_t own[] = {sizeof(DecodeTable), sizeof(ChunkTable), sizeof(StepTimes),  sizeof(Model),
                          sizeof(GroupSpec),   sizeof(LinkSpec),   sizeof(FaultEvent), sizeof(ClassSplit),
                          sizeof(Watch),       sizeof(Problem),    sizeof(LaneLoad),   sizeof(Outcome)};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) sizes[i] = (int64_t)own[i];
}
