/* Where a request goes: `specs/service/router.py`. Replicas to choose from are `group->choice[0..count)`, ascending. */
#include "capstan.h"

/* `ClassSplit.next` */
static int64_t split_next(ClassSplit *split) {
    if (split->count == 1) return split->groups[0];
    split->seen++;
    int64_t chosen = 0;
    double largest = -INFINITY;
    for (int64_t i = 0; i < split->count; i++) {
        double deficit = split->shares[i] * (double)split->seen - (double)split->sent[i];
        if (deficit > largest) {
            largest = deficit;
            chosen = i;
        }
    }
    split->sent[chosen]++;
    return split->groups[chosen];
}

/* `View.load` */
static inline double load_of(const Group *group, int64_t replica) {
    double outstanding = group->polled ? group->polled[replica] : tree_get(&group->outstanding, replica);
    return group->spec->weights ? (outstanding + 1.0) / group->spec->weights[replica] : outstanding;
}

/* `View.least_loaded` */
static int32_t least_loaded(const Group *group, int64_t count) {
    if (count == group->spec->replicas && !group->polled && !group->spec->weights)
        return (int32_t)tree_first_min(&group->outstanding);
    int32_t least = group->choice[0];
    for (int64_t i = 1; i < count; i++)
        if (load_of(group, group->choice[i]) < load_of(group, least)) least = group->choice[i];
    return least;
}

static int32_t round_robin(Group *group, int64_t count) {
    int32_t chosen = group->choice[0];
    int64_t next = group->next, i = next < count && group->choice[next] == next ? next : 0; /* all up to it are up */
    for (; i < count; i++)
        if (group->choice[i] >= next) {
            chosen = group->choice[i];
            break;
        }
    group->next = chosen + 1;
    return chosen;
}

static int32_t least_kv(const Group *group, int64_t count) {
    const double *weights = group->spec->weights;
    int32_t least = -1;
    double least_blocks = INFINITY;
    for (int64_t i = 0; i < count; i++) {
        int32_t replica = group->choice[i];
        double blocks = group->kv_blocks[replica] / (weights ? weights[replica] : 1.0);
        if (least >= 0 && blocks > least_blocks) continue;
        if (least >= 0 && blocks == least_blocks && !(load_of(group, replica) < load_of(group, least))) continue;
        least = replica;
        least_blocks = blocks;
    }
    return least;
}

static int32_t power_of_two(const Group *group, int64_t count, uint64_t seed, int64_t request) {
    if (count == 1) return group->choice[0];
    uint64_t drawn = splitmix64(splitmix64(seed) ^ (uint64_t)request);
    uint64_t first = drawn % (uint64_t)count, second = splitmix64(drawn) % (uint64_t)(count - 1);
    second += second >= first;
    int32_t one = group->choice[first], other = group->choice[second];
    return load_of(group, other) < load_of(group, one) ? other : one;
}

static int32_t sticky(const Group *group, int64_t count, int64_t number) {
    uint64_t session = splitmix64((uint64_t)number), highest = 0;
    int32_t chosen = -1;
    for (int64_t i = 0; i < count; i++) {
        uint64_t score = splitmix64(session ^ splitmix64((uint64_t)group->choice[i]));
        if (chosen >= 0 && score <= highest) continue;
        chosen = group->choice[i];
        highest = score;
    }
    return chosen;
}

/* `PrefixAware._match`: leading units that the replica was sent. */
static int64_t sent_units(UnitTable *sent, const int64_t *ids, int64_t count) {
    int64_t units = 0;
    while (units < count && unit_find(sent, ids[units]) >= 0) units++;
    return units;
}

/* `PrefixAware._remember`: last unit first, so that a prefix outlives what continues it. */
static void remember_units(Run *run, UnitTable *sent, const int64_t *ids, int64_t count) {
    for (int64_t i = count - 1; i >= 0; i--) {
        int32_t unit = unit_find(sent, ids[i]);
        if (unit >= 0)
            unit_take(sent, &sent->idle, unit);
        else
            unit = unit_add(run, sent, ids[i]);
        unit_push(sent, &sent->idle, unit);
    }
    while (sent->idle.count > MAX_UNITS) {
        int32_t oldest = sent->idle.head;
        unit_take(sent, &sent->idle, oldest);
        unit_forget(sent, oldest);
    }
}

static int32_t prefix_aware(Run *run, Group *group, int64_t count, int32_t request) {
    const Problem *problem = run->problem;
    int32_t least = least_loaded(group, count), best = -1;
    int64_t longest = 0, whole = 0;
    const int64_t *ids = NULL;
    if (problem->prefix_offsets) {
        ids = units_of(run, request);
        whole = problem->prompt_tokens[request] / problem->prefix_unit_tokens;
        if (unit_count_of(run, request) < whole) whole = unit_count_of(run, request);
    }
    for (int64_t i = 0; i < count; i++) {
        int32_t replica = group->choice[i];
        int64_t units = sent_units(&group->sent[replica], ids, whole);
        if (units == 0 || units < longest) continue;
        if (units == longest && !(load_of(group, replica) < load_of(group, best))) continue;
        best = replica;
        longest = units;
    }
    if (best < 0 || load_of(group, best) > load_of(group, least) + IMBALANCE) best = least;
    remember_units(run, &group->sent[best], ids, whole);
    return best;
}

/* `Router.choose` */
static int32_t choose(Run *run, Group *group, int64_t count, int32_t request) {
    const Problem *problem = run->problem;
    int64_t session = problem->session ? problem->session[request] : -1;
    switch (problem->router) {
    case ROUND_ROBIN:
        return round_robin(group, count);
    case LEAST_KV:
        return least_kv(group, count);
    case POWER_OF_TWO:
        return power_of_two(group, count, problem->seed, request);
    case PREFIX_AWARE:
        return prefix_aware(run, group, count, request);
    case STICKY:
        return sticky(group, count, session < 0 ? (int64_t)((uint64_t)request ^ (1ull << 63)) : session);
    default:
        return least_loaded(group, count);
    }
}
