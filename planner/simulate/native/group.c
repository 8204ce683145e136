/* The replicas of one group, which of them are up, and what they are sent: `planner/simulate/group.py`. */
#include "capstan.h"

static inline int64_t lanes_of(const Group *group, int64_t replica) { return group->models[replica]->times.lanes; }

static void group_forget(Group *group, int64_t replica, int64_t lane) {
    tree_set(&group->outstanding, replica, tree_get(&group->outstanding, replica) - 1.0);
    group->by_lane[replica][lane]--;
}

/* A request has its first token and leaves for the decode side; this is where its blocks are. */
static void group_hand(Group *group, int64_t replica, int64_t lane, int32_t request) {
    Transfer *transfer = &group->transfers[request];
    *transfer = (Transfer){.group = (int32_t)group->number, .replica = (int32_t)replica, .lane = (int32_t)lane};
}

static inline double replica_clock_s(const Group *group, int64_t replica) {
    return lanes_of(group, replica) > 1 ? group->pipelines[replica].clock_s : group->lanes[replica]->clock_s;
}

static void note_clock(Fleet *fleet, const Group *group, int64_t replica) {
    tree_set(&fleet->clocks, group->first_replica + replica, replica_clock_s(group, replica));
}

static void replica_advance(Fleet *fleet, int64_t index, double until_s) {
    Group *group = &fleet->groups[fleet->group_of[index]];
    int64_t replica = index - group->first_replica;
    if (lanes_of(group, replica) > 1)
        pipeline_advance(&group->pipelines[replica], until_s);
    else
        lane_advance(group->lanes[replica], until_s);
    note_clock(fleet, group, replica);
}

/* `may_ever_run`, with so many blocks */
static bool may_ever_run(const Model *model, int64_t prompt, int64_t output) {
    return prompt + output <= model->max_model_len &&
           blocks_for(prompt + output - 1, model->block_tokens) <= model->blocks / model->times.lanes;
}

/* `_replica_holds`: a prefill replica has to hold what is known by now, the others all that there will be. */
static bool replica_holds(const Run *run, const Group *group, int64_t replica, int32_t request, int32_t generated) {
    const Model *model = group->models[replica];
    if (generated == 0 || group->spec->role != PREFILL) return model->holds[request];
    return may_ever_run(model, run->problem->prompt_tokens[request] + generated, 1);
}

/* `can_hold` */
static bool group_holds(const Run *run, const Group *group, int32_t request, int32_t generated) {
    if (!group->spec->unlike && generated == 0) return group->models[0]->holds[request];
    for (int64_t i = 0; i < group->spec->replicas; i++)
        if (replica_holds(run, group, i, request, generated)) return true;
    return false;
}

/* KV blocks in use, by replica, for routers that look at them. */
static void look_at_blocks(Group *group) {
    for (int64_t i = 0; i < group->spec->replicas; i++) {
        int64_t blocks = 0;
        for (int64_t j = 0; j < lanes_of(group, i); j++) {
            lane_settle(&group->lanes[i][j]);
            blocks += used_blocks(&group->lanes[i][j].blocks);
        }
        group->kv_blocks[i] = (double)blocks;
    }
}

/* `refresh` */
static void group_refresh(Group *group) {
    for (int64_t i = 0; i < group->spec->replicas; i++) group->polled[i] = tree_get(&group->outstanding, i);
    if (group->kv_blocks) look_at_blocks(group);
}

/* Replicas that are up and hold the request, into `group->choice`; returns their number. */
static int64_t find_choice(const Run *run, Group *group, int32_t request, int32_t generated) {
    if (!group->spec->unlike) return group->up_count;
    int64_t count = 0;
    for (int64_t i = 0; i < group->up_count; i++)
        if (replica_holds(run, group, group->up[i], request, generated)) group->choice[count++] = group->up[i];
    return count;
}

/* `send`: to a replica by the router, its emptiest lane. With none to choose from the request waits. */
static void group_send(Fleet *fleet, Group *group, int32_t request, double now_s, int32_t generated, int32_t computed) {
    Run *run = &fleet->run;
    int64_t count = find_choice(run, group, request, generated), lane = 0;
    if (!count) {
        run->seqs[request].generated = generated;
        run->seqs[request].computed = computed;
        list_push(&group->waiting, run->seqs, request);
        return;
    }
    if (group->kv_blocks && !group->polled) look_at_blocks(group);
    int32_t replica = choose(run, group, count, request);
    int64_t *placed = group->spec->role == DECODE ? run->out->decode_replica_of : run->out->replica_of;
    placed[request] = replica;
    tree_set(&group->outstanding, replica, tree_get(&group->outstanding, replica) + 1.0);
    int64_t *by_lane = group->by_lane[replica], lanes = lanes_of(group, replica);
    for (int64_t i = 1; i < lanes; i++)
        if (by_lane[i] < by_lane[lane]) lane = i;
    by_lane[lane]++;
    Lane *target = &group->lanes[replica][lane];
    bool idle = target->clock_s == INFINITY;
    lane_arrive(target, request, now_s, generated, computed);
    if (lanes > 1) pipeline_woken(&group->pipelines[replica], (int32_t)lane, idle);
    note_clock(fleet, group, replica);
}

/* `release`: a handed-over request has arrived on the other side. */
static void group_release(Fleet *fleet, int32_t request, double now_s) {
    const Transfer *transfer = &fleet->transfers[request];
    Group *group = &fleet->groups[transfer->group];
    Lane *lane = &group->lanes[transfer->replica][transfer->lane];
    bool idle = lane->clock_s == INFINITY;
    group_forget(group, transfer->replica, transfer->lane);
    lane_release(lane, request, now_s);
    if (lanes_of(group, transfer->replica) > 1)
        pipeline_woken(&group->pipelines[transfer->replica], transfer->lane, idle);
    note_clock(fleet, group, transfer->replica);
}

static void set_up(Group *group, int32_t replica, bool up) {
    int64_t place = 0;
    while (place < group->up_count && group->up[place] < replica) place++;
    size_t behind = (size_t)(group->up_count - place) * sizeof *group->up;
    if (up) {
        memmove(group->up + place + 1, group->up + place, behind);
        group->up[place] = replica;
    } else {
        memmove(group->up + place, group->up + place + 1, behind - sizeof *group->up);
    }
    group->up_count += up ? 1 : -1;
    memcpy(group->choice, group->up, (size_t)group->up_count * sizeof *group->up);
}

/* `fail`: a replica goes down with all it has; what was there is written to `lost`, its number is returned. */
static int64_t group_fail(Fleet *fleet, Group *group, int32_t replica, double now_s, int32_t *lost) {
    int64_t lanes = lanes_of(group, replica);
    set_up(group, replica, false);
    if (group->sent) table_close(&group->sent[replica]);
    tree_set(&group->outstanding, replica, 0.0);
    for (int64_t i = 0; i < lanes; i++) group->by_lane[replica][i] = 0;
    int64_t count = lanes > 1 ? pipeline_fail(&group->pipelines[replica], now_s, lost)
                              : lane_fail(group->lanes[replica], now_s, lost);
    note_clock(fleet, group, replica);
    return count;
}
