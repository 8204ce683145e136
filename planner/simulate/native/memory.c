/* Memory, lists and the way out. */
#include "capstan.h"

/* The run cannot go on: back to `capstan_simulate`, which frees everything. */
static _Noreturn void run_end(Run *run, int status) {
    run->status = status;
    longjmp(run->escape, 1);
}

/* `count` zeroed elements; at least one, so that NULL always means that there is no memory. */
static void *get_memory(Run *run, int64_t count, size_t size) {
    void *memory = calloc(count > 0 ? (size_t)count : 1, size);
    if (!memory) run_end(run, NO_MEMORY);
    return memory;
}

static void *get_more(Run *run, void *memory, int64_t count, size_t size) {
    void *more = realloc(memory, (size_t)count * size);
    if (!more) run_end(run, NO_MEMORY);
    return more;
}

/* Tell how far the run is; the caller may stop it. */
static void report(Run *run) {
    if (run->problem->progress(run->share)) run_end(run, STOPPED);
}

static void count_event(Run *run) {
    if (run->events_left <= 0) run_end(run, BOUND_HIT);
    run->events_left--;
    if (++run->formed % LISTEN_EVERY == 0) report(run);
}

/* ---- lists of requests, linked by Seq.next ---- */

static const List EMPTY = {-1, -1, 0};

static void list_push(List *list, Seq *seqs, int32_t request) {
    seqs[request].next = -1;
    if (list->tail < 0)
        list->head = request;
    else
        seqs[list->tail].next = request;
    list->tail = request;
    list->count++;
}

static void list_push_front(List *list, Seq *seqs, int32_t request) {
    seqs[request].next = list->head;
    list->head = request;
    if (list->tail < 0) list->tail = request;
    list->count++;
}

static int32_t list_pop(List *list, const Seq *seqs) {
    int32_t request = list->head;
    list->head = seqs[request].next;
    if (list->head < 0) list->tail = -1;
    list->count--;
    return request;
}

/* Behind all with a smaller number. */
static void list_insert(List *list, Seq *seqs, int32_t request) {
    int64_t number = seqs[request].number;
    if (list->head < 0 || number < seqs[list->head].number) {
        list_push_front(list, seqs, request);
        return;
    }
    if (seqs[list->tail].number < number) {
        list_push(list, seqs, request);
        return;
    }
    int32_t before = list->head;
    while (seqs[seqs[before].next].number < number) before = seqs[before].next;
    seqs[request].next = seqs[before].next;
    seqs[before].next = request;
    list->count++;
}

/* ---- heaps of requests by (key, number): skew heaps, linked by Seq.left and Seq.right ---- */

static inline bool goes_before(const Seq *first, const Seq *second) {
    return first->key < second->key || (first->key == second->key && first->number < second->number);
}

static int32_t heap_merge(Seq *seqs, int32_t first, int32_t second) {
    int32_t root = -1, *slot = &root;
    while (first >= 0 && second >= 0) {
        if (goes_before(&seqs[second], &seqs[first])) {
            int32_t swapped = first;
            first = second;
            second = swapped;
        }
        *slot = first;
        int32_t right = seqs[first].right;
        seqs[first].right = seqs[first].left;
        slot = &seqs[first].left;
        first = right;
    }
    *slot = first >= 0 ? first : second;
    return root;
}

static void heap_push(int32_t *root, Seq *seqs, int32_t request) {
    seqs[request].left = seqs[request].right = -1;
    *root = heap_merge(seqs, *root, request);
}

static int32_t heap_pop(int32_t *root, Seq *seqs) {
    int32_t request = *root;
    *root = heap_merge(seqs, seqs[request].left, seqs[request].right);
    return request;
}

static int compare_requests(const void *first, const void *second) {
    int32_t a = *(const int32_t *)first, b = *(const int32_t *)second;
    return (a > b) - (a < b);
}
