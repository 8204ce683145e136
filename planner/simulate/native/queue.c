/* Orders of service: `specs/service/order.py`, `orders.py`, `mlfq.py`, `vtc.py`. */
#include "capstan.h"

enum { PROMPT_WEIGHT = 1, OUTPUT_WEIGHT = 2 }; /* of vtc */

static inline int64_t left_tokens(const Seq *seq) { return (int64_t)seq->prompt + seq->generated - seq->computed; }

static inline bool is_preemptive(int64_t order) { return order == SRPT || order == MLFQ; }

static inline int64_t tenant_of(const Run *run, int32_t request) {
    return run->problem->tenant_index ? run->problem->tenant_index[request] : 0;
}

/* The first part of `rank`. */
static double order_key(const Lane *lane, int32_t request) {
    const Run *run = lane->run;
    const Seq *seq = &run->seqs[request];
    int64_t output_left = (int64_t)seq->predicted - seq->generated;
    switch (lane->model->order) {
    case PRIORITY:
        return run->problem->priority ? (double)run->problem->priority[request] : 0.0;
    case EDF:
        return run->deadline_s ? run->deadline_s[request] : INFINITY;
    case SJF:
        return (double)((int64_t)seq->prompt + seq->predicted);
    case SRPT:
        return (double)(left_tokens(seq) + (output_left > 0 ? output_left : 0));
    case MLFQ:
        return (double)seq->level;
    case VTC:
        return (double)lane->waiting.counters[tenant_of(run, request)];
    default:
        return 0.0;
    }
}

/* `VtcQueue._lift`: a tenant of which nothing waited gets no credit for that. */
static void vtc_lift(Queue *queue, int64_t tenants, int64_t tenant) {
    int64_t least = INT64_MAX;
    for (int64_t i = 0; i < tenants; i++)
        if (queue->tenants[i].count && queue->counters[i] < least) least = queue->counters[i];
    if (least == INT64_MAX) least = queue->last >= 0 ? queue->counters[queue->last] : 0;
    if (queue->counters[tenant] < least) queue->counters[tenant] = least;
}

/* `requeue`: a sequence takes the place of its rank; with fcfs a preempted one goes to the front. */
static void queue_requeue(Lane *lane, int32_t request) {
    Queue *queue = &lane->waiting;
    Seq *seqs = lane->run->seqs;
    queue->count++;
    queue->tokens += left_tokens(&seqs[request]);
    if (lane->model->order == FCFS) {
        list_push_front(&queue->list, seqs, request);
    } else if (lane->model->order == VTC) {
        int64_t tenant = tenant_of(lane->run, request);
        if (!queue->tenants[tenant].count) vtc_lift(queue, lane->run->problem->tenants, tenant);
        list_insert(&queue->tenants[tenant], seqs, request);
    } else {
        seqs[request].key = order_key(lane, request);
        heap_push(&queue->root, seqs, request);
    }
}

/* `push`: a new sequence. */
static void queue_push(Lane *lane, int32_t request) {
    Queue *queue = &lane->waiting;
    Seq *seq = &lane->run->seqs[request];
    while (lane->model->order == MLFQ && lane->model->mlfq_quantum_tokens << seq->level < seq->prompt) seq->level++;
    seq->number = ++queue->arrived;
    if (lane->model->order == FCFS) {
        queue->count++;
        queue->tokens += left_tokens(seq);
        list_push(&queue->list, lane->run->seqs, request);
    } else {
        queue_requeue(lane, request);
    }
}

/* `head`: who is admitted next, or -1. */
static int32_t queue_head(const Lane *lane) {
    const Queue *queue = &lane->waiting;
    if (!queue->count) return -1;
    if (lane->model->order == FCFS) return queue->list.head;
    if (lane->model->order != VTC) return queue->root;
    int32_t head = -1;
    int64_t least = 0;
    for (int64_t i = 0; i < lane->run->problem->tenants; i++) {
        if (!queue->tenants[i].count) continue;
        int32_t first = queue->tenants[i].head;
        int64_t counter = queue->counters[i];
        if (head < 0 || counter < least ||
            (counter == least && lane->run->seqs[first].number < lane->run->seqs[head].number)) {
            head = first;
            least = counter;
        }
    }
    return head;
}

/* `pop`: take the head out. */
static int32_t queue_pop(Lane *lane) {
    Queue *queue = &lane->waiting;
    Seq *seqs = lane->run->seqs;
    int32_t request = queue_head(lane);
    queue->count--;
    queue->tokens -= left_tokens(&seqs[request]);
    if (lane->model->order == FCFS) {
        list_pop(&queue->list, seqs);
    } else if (lane->model->order == VTC) {
        int64_t tenant = tenant_of(lane->run, request);
        list_pop(&queue->tenants[tenant], seqs);
        if (!queue->tenants[tenant].count) queue->last = tenant;
        if (seqs[request].preemptions == 0 && seqs[request].computed == 0)
            queue->counters[tenant] += PROMPT_WEIGHT * (int64_t)seqs[request].prompt;
    } else {
        heap_pop(&queue->root, seqs);
    }
    return request;
}

/* `served`: steps computed so many tokens of a prompt, and sampled so many. */
static inline void queue_served(Lane *lane, int32_t request, int64_t prompt_tokens, int64_t output_tokens) {
    if (lane->model->order == VTC) {
        lane->waiting.counters[tenant_of(lane->run, request)] += OUTPUT_WEIGHT * output_tokens;
    } else if (lane->model->order == MLFQ) {
        Seq *seq = &lane->run->seqs[request];
        seq->level_tokens += prompt_tokens + output_tokens;
        if (seq->level_tokens < lane->model->mlfq_quantum_tokens << seq->level) return;
        seq->level++;
        seq->level_tokens = 0;
        seq->number = ++lane->waiting.arrived;
    }
}

/* `before`, by what the ranks are now. */
static bool queue_before(const Lane *lane, int32_t first, int32_t second) {
    double first_key = order_key(lane, first), second_key = order_key(lane, second);
    if (first_key != second_key) return first_key < second_key;
    return lane->run->seqs[first].number < lane->run->seqs[second].number;
}

/* The running sequences in the order of service: an insertion sort, as they hardly change places. */
static void sort_running(Lane *lane) {
    Seq *seqs = lane->run->seqs;
    for (int32_t i = 0; i < lane->count; i++) {
        int32_t request = lane->running[i], j = i;
        seqs[request].key = order_key(lane, request);
        for (; j > 0 && goes_before(&seqs[request], &seqs[lane->running[j - 1]]); j--)
            lane->running[j] = lane->running[j - 1];
        lane->running[j] = request;
    }
}
