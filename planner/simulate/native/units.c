/* Prefix units by id, and their order of use: `specs/service/prefix_cache.py`, `host_tier.py`. */
#include "capstan.h"

/* SplitMix64: `specs/service/hashing.py`. */
static inline uint64_t splitmix64(uint64_t value) {
    value += 0x9E3779B97F4A7C15u;
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9u;
    value = (value ^ (value >> 27)) * 0x94D049BB133111EBu;
    return value ^ (value >> 31);
}

static inline int32_t *unit_bucket(UnitTable *table, int64_t id) {
    return &table->buckets[splitmix64((uint64_t)id) & (uint64_t)(table->bucket_count - 1)];
}

static void table_open(UnitTable *table) {
    *table = (UnitTable){.free = -1, .idle = EMPTY, .host = EMPTY};
}

static void table_close(UnitTable *table) {
    free(table->pool);
    free(table->buckets);
    table_open(table);
}

/* The unit of `id`, or -1. */
static int32_t unit_find(UnitTable *table, int64_t id) {
    if (!table->bucket_count) return -1;
    int32_t unit = *unit_bucket(table, id);
    while (unit >= 0 && table->pool[unit].id != id) unit = table->pool[unit].chain;
    return unit;
}

/* Twice as many places and buckets. */
static void table_grow(Run *run, UnitTable *table) {
    int32_t size = table->size ? 2 * table->size : 64;
    table->pool = get_more(run, table->pool, size, sizeof *table->pool);
    table->buckets = get_more(run, table->buckets, size, sizeof *table->buckets);
    table->size = size;
    table->bucket_count = size;
    for (int64_t i = 0; i < size; i++) table->buckets[i] = -1;
    for (int32_t i = 0; i < table->used; i++) { /* it grows when every place is in use */
        int32_t *bucket = unit_bucket(table, table->pool[i].id);
        table->pool[i].chain = *bucket;
        *bucket = i;
    }
}

static int32_t unit_add(Run *run, UnitTable *table, int64_t id) {
    if (table->free < 0 && table->used == table->size) table_grow(run, table);
    int32_t unit = table->free;
    if (unit >= 0)
        table->free = table->pool[unit].chain;
    else
        unit = table->used++;
    int32_t *bucket = unit_bucket(table, id);
    table->pool[unit] = (Unit){.id = id, .chain = *bucket, .previous = -1, .next = -1};
    *bucket = unit;
    return unit;
}

static void unit_forget(UnitTable *table, int32_t unit) {
    int32_t *place = unit_bucket(table, table->pool[unit].id);
    while (*place != unit) place = &table->pool[*place].chain;
    *place = table->pool[unit].chain;
    table->pool[unit].chain = table->free;
    table->free = unit;
}

/* The last one of `list`: the most recently used. */
static void unit_push(UnitTable *table, List *list, int32_t unit) {
    table->pool[unit].previous = list->tail;
    table->pool[unit].next = -1;
    if (list->tail < 0)
        list->head = unit;
    else
        table->pool[list->tail].next = unit;
    list->tail = unit;
    list->count++;
}

static void unit_take(UnitTable *table, List *list, int32_t unit) {
    int32_t previous = table->pool[unit].previous, next = table->pool[unit].next;
    if (previous < 0)
        list->head = next;
    else
        table->pool[previous].next = next;
    if (next < 0)
        list->tail = previous;
    else
        table->pool[next].previous = previous;
    list->count--;
}

static inline bool on_device(const UnitTable *table, int32_t unit) {
    return unit >= 0 && table->pool[unit].where != ON_HOST;
}

/* `PrefixCache.publish` */
static int32_t unit_publish(Run *run, UnitTable *table, int64_t id) {
    int32_t unit = unit_add(run, table, id);
    table->pool[unit].where = HELD;
    table->pool[unit].holders = 1;
    return unit;
}

/* `PrefixCache.acquire` */
static void unit_acquire(UnitTable *table, int32_t unit) {
    if (table->pool[unit].where == IDLE) unit_take(table, &table->idle, unit);
    table->pool[unit].where = HELD;
    table->pool[unit].holders++;
}

/* `PrefixCache.release` */
static void unit_release(UnitTable *table, int32_t unit) {
    if (--table->pool[unit].holders) return;
    table->pool[unit].where = IDLE;
    unit_push(table, &table->idle, unit);
}

/* `HostTier.discard` */
static void host_discard(UnitTable *table, int32_t unit) {
    if (unit < 0 || table->pool[unit].where != ON_HOST) return;
    unit_take(table, &table->host, unit);
    unit_forget(table, unit);
}
