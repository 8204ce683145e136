/* KV blocks: `specs/service/block_manager.py`. */
#include "capstan.h"

static inline int64_t blocks_for(int64_t tokens, int64_t block_tokens) {
    return (tokens + block_tokens - 1) / block_tokens;
}

static inline int64_t idle_blocks(const Blocks *blocks) { return blocks->table.idle.count * blocks->unit_blocks; }

static inline int64_t used_blocks(const Blocks *blocks) { return blocks->total - blocks->free - idle_blocks(blocks); }

static inline const int64_t *units_of(const Run *run, int32_t request) {
    return run->problem->prefix_ids + run->problem->prefix_offsets[request];
}

static inline int64_t unit_count_of(const Run *run, int32_t request) {
    return run->problem->prefix_offsets[request + 1] - run->problem->prefix_offsets[request];
}

static inline int32_t *handles_of(const Run *run, int32_t request) {
    return run->handles + run->problem->prefix_offsets[request];
}

/* `HostTier._make_room` */
static bool host_make_room(Blocks *blocks, int64_t needed) {
    UnitTable *table = &blocks->table;
    int64_t room = blocks->host_total - blocks->pinned;
    if (needed > room) return false;
    while (table->host.count * blocks->unit_blocks + needed > room) host_discard(table, table->host.head);
    return true;
}

/* `_take`, of several blocks: where the free list is short, the least recently used idle units go there first. */
static void blocks_take(Blocks *blocks, int64_t needed) {
    UnitTable *table = &blocks->table;
    while (blocks->free < needed) {
        int32_t unit = table->idle.head;
        unit_take(table, &table->idle, unit);
        blocks->free += blocks->unit_blocks;
        if (host_make_room(blocks, blocks->unit_blocks)) {
            table->pool[unit].where = ON_HOST;
            unit_push(table, &table->host, unit);
        } else {
            unit_forget(table, unit);
        }
    }
    blocks->free -= needed;
}

/* `grow`: blocks for `tokens` tokens of `seq` in all; false, and nothing changed, when too few are available. */
static inline bool blocks_grow(Blocks *blocks, Seq *seq, int64_t tokens) {
    if (tokens <= seq->capacity) return true;
    int64_t missing = blocks_for(tokens - seq->capacity, blocks->block_tokens);
    if (missing > blocks->free && missing > blocks->free + idle_blocks(blocks)) return false;
    blocks_take(blocks, missing);
    seq->capacity += (int32_t)(missing * blocks->block_tokens);
    return true;
}

/* `match`: leading units of its prefix that are known; the last token is never among them. */
static int64_t blocks_match(Run *run, Blocks *blocks, int32_t request) {
    if (!blocks->unit_tokens) return 0;
    const Seq *seq = &run->seqs[request];
    const int64_t *ids = units_of(run, request);
    int64_t most = (seq->prompt + seq->generated - 1) / blocks->unit_tokens, units = 0;
    if (unit_count_of(run, request) < most) most = unit_count_of(run, request);
    while (units < most && unit_find(&blocks->table, ids[units]) >= 0) units++;
    return units;
}

/* `fits`; `loose` tells whether units were counted on that may be gone later. */
static bool blocks_fit(Run *run, Blocks *blocks, int32_t request, int64_t units, int64_t tokens, bool *loose) {
    int64_t needed = blocks_for(tokens, blocks->block_tokens), available = blocks->free + idle_blocks(blocks);
    for (int64_t i = 0; i < units; i++) {
        int32_t unit = unit_find(&blocks->table, units_of(run, request)[i]);
        if (on_device(&blocks->table, unit)) {
            bool idle = blocks->table.pool[unit].where == IDLE;
            needed -= blocks->unit_blocks;
            if (idle) available -= blocks->unit_blocks;
            *loose |= idle;
        } else {
            *loose = true;
        }
    }
    return needed <= available;
}

static void leave_host(Blocks *blocks, Seq *seq) {
    if (!seq->host_blocks) return;
    blocks->pinned -= seq->host_blocks;
    blocks->moved += seq->computed;
    seq->host_blocks = 0;
}

/* The first `units` units of a sequence come from the cache: shared on the device, loaded from the host tier. */
static void take_units(Run *run, Blocks *blocks, int32_t request, int64_t units) {
    UnitTable *table = &blocks->table;
    const int64_t *ids = units_of(run, request);
    int32_t *handles = handles_of(run, request);
    for (int64_t i = 0; i < units; i++) {
        int32_t unit = unit_find(table, ids[i]);
        handles[i] = on_device(table, unit) ? unit : -1;
        if (handles[i] >= 0) unit_acquire(table, unit);
    }
    for (int64_t i = 0; i < units; i++) /* before anything is evicted into the host tier and pushes them out */
        if (handles[i] < 0) host_discard(table, unit_find(table, ids[i]));
    for (int64_t i = 0; i < units; i++) {
        run->seqs[request].capacity += (int32_t)blocks->unit_tokens;
        if (handles[i] >= 0) continue;
        int32_t unit = unit_find(table, ids[i]);
        if (on_device(table, unit)) { /* an id that stands twice in one prefix */
            unit_acquire(table, unit);
        } else {
            blocks_take(blocks, blocks->unit_blocks);
            unit = unit_publish(run, table, ids[i]);
            blocks->moved += blocks->unit_tokens;
        }
        handles[i] = unit;
    }
    run->seqs[request].units = (int32_t)units;
}

/* `admit` */
static bool blocks_admit(Run *run, Blocks *blocks, int32_t request, int64_t units, int64_t tokens, bool *loose) {
    Seq *seq = &run->seqs[request];
    if (!blocks_fit(run, blocks, request, units, tokens, loose)) return false;
    leave_host(blocks, seq);
    if (units) take_units(run, blocks, request, units);
    return blocks_grow(blocks, seq, tokens);
}

/* `publish`: units of its prefix that are computed by now become known. */
static void blocks_publish(Run *run, Blocks *blocks, int32_t request) {
    Seq *seq = &run->seqs[request];
    UnitTable *table = &blocks->table;
    while (seq->units < unit_count_of(run, request) && (seq->units + 1) * blocks->unit_tokens <= seq->computed) {
        int64_t id = units_of(run, request)[seq->units];
        int32_t unit = unit_find(table, id), held = -1;
        if (!on_device(table, unit)) {
            host_discard(table, unit);
            held = unit_publish(run, table, id);
        }
        handles_of(run, request)[seq->units++] = held;
    }
}

/* `free`: take back every block of a sequence, the last one first; its units stay known. */
static void blocks_free(Run *run, Blocks *blocks, int32_t request) {
    Seq *seq = &run->seqs[request];
    blocks->pinned -= seq->host_blocks;
    blocks->free += seq->capacity / blocks->block_tokens;
    for (int32_t i = seq->units - 1; i >= 0; i--) {
        int32_t unit = handles_of(run, request)[i];
        if (unit < 0) continue;
        blocks->free -= blocks->unit_blocks;
        unit_release(&blocks->table, unit);
    }
    seq->host_blocks = seq->capacity = seq->units = 0;
}

/* `swap_out` */
static bool blocks_swap_out(Run *run, Blocks *blocks, int32_t request) {
    Seq *seq = &run->seqs[request];
    int64_t needed = blocks_for(seq->computed, blocks->block_tokens);
    if (needed == 0 || !host_make_room(blocks, needed)) return false;
    blocks->pinned += needed;
    blocks_free(run, blocks, request);
    seq->host_blocks = (int32_t)needed;
    blocks->moved += seq->computed;
    return true;
}
