/* Memory of a run: opened empty, closed whatever happened. */
#include "capstan.h"

static int64_t share_of(int64_t whole, int64_t parts, int64_t part) { return whole / parts + (part < whole % parts); }

/* A lane without requests, with an empty cache: `_new_former`. What it did stays in its load. */
static void lane_clear(Lane *lane) {
    const Model *model = lane->model;
    int64_t lanes = model->times.lanes;
    table_close(&lane->blocks.table);
    lane->blocks = (Blocks){
        .total = share_of(model->blocks, lanes, lane->number),
        .free = share_of(model->blocks, lanes, lane->number),
        .block_tokens = model->block_tokens,
        .unit_tokens = model->unit_tokens,
        .unit_blocks = model->unit_tokens / model->block_tokens,
        .host_total = share_of(model->host_blocks, lanes, lane->number),
    };
    table_open(&lane->blocks.table);
    List *tenants = lane->waiting.tenants;
    int64_t *counters = lane->waiting.counters;
    lane->waiting = (Queue){.list = EMPTY, .tenants = tenants, .counters = counters, .last = -1, .root = -1};
    for (int64_t i = 0; tenants && i < lane->run->problem->tenants; i++) {
        tenants[i] = EMPTY;
        counters[i] = 0;
    }
    lane->pending = EMPTY;
    lane->clock_s = lane->wake_s = INFINITY;
    lane->reserved_blocks = lane->decode_steps = lane->waiting_since = 0;
    lane->count = lane->chunk_count = lane->decodes = lane->preempted = lane->left = lane->formed = 0;
    lane->in_flight = lane->open = false;
}

static void lane_open(Lane *lane, Run *run, Group *group, int64_t replica, int64_t number, LaneLoad *load) {
    const Model *model = group->models[replica];
    int64_t seats = share_of(model->seats, model->times.lanes, number); /* `ReplicaModel.lane_seqs` */
    if (seats < 1) seats = 1;
    *lane = (Lane){.run = run, .group = group, .model = model, .load = load};
    lane->replica = (int32_t)replica;
    lane->number = (int32_t)number;
    lane->seats = (int32_t)seats;
    lane->running = get_memory(run, seats, sizeof *lane->running);
    lane->chunks = get_memory(run, seats, sizeof *lane->chunks);
    lane->victims = get_memory(run, seats, sizeof *lane->victims);
    lane->ends = get_memory(run, seats, sizeof *lane->ends);
    if (model->times.stages) {
        lane->stage_s = get_memory(run, model->times.lanes, sizeof *lane->stage_s);
        lane->stage_fixed_s = get_memory(run, model->times.lanes, sizeof *lane->stage_fixed_s);
    }
    if (model->order == VTC) {
        lane->waiting.tenants = get_memory(run, run->problem->tenants, sizeof *lane->waiting.tenants);
        lane->waiting.counters = get_memory(run, run->problem->tenants, sizeof *lane->waiting.counters);
    }
    lane_clear(lane);
}

static void replica_open(Run *run, Group *group, int64_t replica, LaneLoad *loads) {
    int64_t lanes = lanes_of(group, replica);
    group->lanes[replica] = get_memory(run, lanes, sizeof **group->lanes);
    group->by_lane[replica] = get_memory(run, lanes, sizeof **group->by_lane);
    for (int64_t i = 0; i < lanes; i++) lane_open(&group->lanes[replica][i], run, group, replica, i, loads + i);
    if (lanes == 1) return;
    Pipeline *pipeline = &group->pipelines[replica];
    *pipeline = (Pipeline){.lanes = group->lanes[replica], .clock_s = INFINITY, .count = (int32_t)lanes};
    pipeline->since_s = get_memory(run, lanes, sizeof *pipeline->since_s);
    pipeline->free_s = get_memory(run, lanes, sizeof *pipeline->free_s);
}

/* Returns the loads behind those of this group. */
static LaneLoad *group_open(Run *run, Group *group, LaneLoad *loads) {
    const Problem *problem = run->problem;
    int64_t replicas = group->spec->replicas;
    group->models = get_memory(run, replicas, sizeof *group->models);
    group->lanes = get_memory(run, replicas, sizeof *group->lanes);
    group->pipelines = get_memory(run, replicas, sizeof *group->pipelines);
    group->by_lane = get_memory(run, replicas, sizeof *group->by_lane);
    group->up = get_memory(run, replicas, sizeof *group->up);
    group->choice = get_memory(run, replicas, sizeof *group->choice);
    if (problem->poll_s > 0.0) group->polled = get_memory(run, replicas, sizeof *group->polled);
    if (problem->router == LEAST_KV) group->kv_blocks = get_memory(run, replicas, sizeof *group->kv_blocks);
    if (problem->router == PREFIX_AWARE) group->sent = get_memory(run, replicas, sizeof *group->sent);
    tree_open(run, &group->outstanding, replicas, 0.0);
    group->waiting = EMPTY;
    group->up_count = replicas;
    for (int64_t i = 0; i < replicas; i++) {
        group->models[i] = &problem->models[group->spec->models[i]];
        if (group->models[i]->max_model_len > group->max_model_len)
            group->max_model_len = group->models[i]->max_model_len;
        group->up[i] = group->choice[i] = (int32_t)i;
        if (group->sent) table_open(&group->sent[i]);
        replica_open(run, group, i, loads);
        loads += lanes_of(group, i);
    }
    return loads;
}

static void run_open(Run *run) {
    const Problem *problem = run->problem;
    run->events_left = problem->max_events;
    run->horizon_s = problem->horizon_s;
    run->seqs = get_memory(run, problem->count, sizeof *run->seqs);
    run->finished = get_memory(run, problem->count, sizeof *run->finished);
    run->refused = get_memory(run, problem->count, sizeof *run->refused);
    if (problem->prefix_offsets)
        run->handles = get_memory(run, problem->prefix_offsets[problem->count], sizeof *run->handles);
    if (!problem->deadline_s) return;
    run->deadline_s = get_memory(run, problem->count, sizeof *run->deadline_s);
    memcpy(run->deadline_s, problem->deadline_s, (size_t)problem->count * sizeof *run->deadline_s);
}

static void links_open(Fleet *fleet) {
    const Problem *problem = fleet->run.problem;
    fleet->links = get_memory(&fleet->run, problem->link_count, sizeof *fleet->links);
    for (int64_t i = 0; i < problem->link_count; i++)
        fleet->links[i] = (LinkQueue){&problem->links[i], EMPTY, EMPTY, 0.0, INFINITY, -1};
    if (!problem->link_count) return;
    fleet->run.handed = get_memory(&fleet->run, problem->count, sizeof *fleet->run.handed);
    fleet->transfers = get_memory(&fleet->run, problem->count, sizeof *fleet->transfers);
}

static void fleet_open(Fleet *fleet) {
    Run *run = &fleet->run;
    const Problem *problem = run->problem;
    run_open(run);
    arrivals_open(run, &fleet->arrivals);
    links_open(fleet);
    if (problem->link_count || problem->fault_count)
        fleet->scratch = get_memory(run, problem->count, sizeof *fleet->scratch);
    fleet->recovered = get_memory(run, problem->fault_count, sizeof *fleet->recovered);
    fleet->look_s = LOOK_S;
    fleet->coupled = fleet->arrivals.dependent;
    fleet->groups = get_memory(run, problem->group_count, sizeof *fleet->groups);
    LaneLoad *loads = run->out->loads;
    for (int64_t i = 0; i < problem->group_count; i++) {
        Group *group = &fleet->groups[i];
        group->spec = &problem->groups[i];
        group->number = i;
        group->first_replica = fleet->replicas;
        group->transfers = fleet->transfers;
        fleet->coupled |= group->spec->target >= 0;
        loads = group_open(run, group, loads);
        fleet->replicas += group->spec->replicas;
    }
    fleet->group_of = get_memory(run, fleet->replicas, sizeof *fleet->group_of);
    fleet->down = get_memory(run, fleet->replicas, sizeof *fleet->down);
    tree_open(run, &fleet->clocks, fleet->replicas, INFINITY);
    for (int64_t i = 0; i < problem->group_count; i++)
        for (int64_t j = 0; j < fleet->groups[i].spec->replicas; j++)
            fleet->group_of[fleet->groups[i].first_replica + j] = i;
}

/* What was done up to the end of the run, repetitions that were cut short included. */
static void fleet_settle(Fleet *fleet) {
    const Problem *problem = fleet->run.problem;
    for (int64_t i = 0; i < problem->group_count; i++) {
        Group *group = &fleet->groups[i];
        for (int64_t j = 0; j < group->spec->replicas; j++)
            for (int64_t k = 0; k < lanes_of(group, j); k++) lane_settle(&group->lanes[j][k]);
    }
    fleet->run.out->events = problem->max_events - fleet->run.events_left;
    fleet->run.out->bound_hit = fleet->run.status == BOUND_HIT;
}

static void replica_close(Group *group, int64_t replica) {
    for (int64_t i = 0; group->lanes[replica] && i < lanes_of(group, replica); i++) {
        Lane *lane = &group->lanes[replica][i];
        free(lane->running);
        free(lane->chunks);
        free(lane->victims);
        free(lane->ends);
        free(lane->waiting.tenants);
        free(lane->waiting.counters);
        table_close(&lane->blocks.table);
    }
    free(group->lanes[replica]);
    if (group->by_lane) free(group->by_lane[replica]);
    if (group->sent) table_close(&group->sent[replica]);
    if (!group->pipelines) return;
    free(group->pipelines[replica].since_s);
    free(group->pipelines[replica].free_s);
}

static void group_close(Group *group) {
    for (int64_t i = 0; group->lanes && i < group->spec->replicas; i++) replica_close(group, i);
    free(group->models);
    free(group->lanes);
    free(group->pipelines);
    free(group->by_lane);
    free(group->up);
    free(group->choice);
    free(group->polled);
    free(group->kv_blocks);
    free(group->sent);
    free(group->outstanding.nodes);
}

static void fleet_close(Fleet *fleet) {
    Run *run = &fleet->run;
    for (int64_t i = 0; fleet->groups && i < run->problem->group_count; i++) group_close(&fleet->groups[i]);
    free(fleet->groups);
    free(fleet->group_of);
    free(fleet->down);
    free(fleet->clocks.nodes);
    free(fleet->links);
    free(fleet->transfers);
    free(fleet->scratch);
    free(fleet->recovered);
    free(fleet->arrivals.first_follower);
    free(fleet->arrivals.next_follower);
    free(fleet->arrivals.stack);
    free(run->seqs);
    free(run->finished);
    free(run->refused);
    free(run->handed);
    free(run->handles);
    free(run->deadline_s);
}
