/* When requests arrive: `planner/simulate/arrivals.py`. */
#include "capstan.h"

/* A request whose moment is known by now joins the heap: of one moment, the first of the workload comes first. */
static void arrivals_ready(Run *run, Arrivals *arrivals, int32_t request, double time_s) {
    run->out->arrival_s[request] = time_s;
    run->seqs[request].key = time_s;
    run->seqs[request].number = request;
    heap_push(&arrivals->root, run->seqs, request);
}

/* `ClosedLoopClients`: the first requests are sent at 0. */
static void clients_open(Run *run, Arrivals *arrivals) {
    arrivals->dependent = true;
    arrivals->next = run->problem->count;
    for (int64_t i = 0; i < run->problem->count; i++) run->out->arrival_s[i] = INFINITY;
    for (; arrivals->sent < run->problem->clients && arrivals->sent < run->problem->count; arrivals->sent++)
        arrivals_ready(run, arrivals, (int32_t)arrivals->sent, 0.0);
}

static void arrivals_open(Run *run, Arrivals *arrivals) {
    const Problem *problem = run->problem;
    arrivals->root = -1;
    if (problem->clients) clients_open(run, arrivals);
    for (int64_t i = 0; problem->after && i < problem->count; i++) arrivals->dependent |= problem->after[i] >= 0;
    if (problem->clients || !arrivals->dependent) return;
    arrivals->first_follower = get_memory(run, problem->count, sizeof(int32_t));
    arrivals->next_follower = get_memory(run, problem->count, sizeof(int32_t));
    arrivals->stack = get_memory(run, problem->count, sizeof(int32_t));
    for (int64_t i = 0; i < problem->count; i++) arrivals->first_follower[i] = -1;
    for (int64_t i = problem->count - 1; i >= 0; i--) {
        int64_t before = problem->after[i];
        if (before < 0) continue;
        run->out->arrival_s[i] = INFINITY;
        arrivals->next_follower[i] = arrivals->first_follower[before];
        arrivals->first_follower[before] = (int32_t)i;
    }
}

/* The next request that depends on nothing. */
static inline int64_t arrivals_own(const Run *run, Arrivals *arrivals) {
    const int64_t *after = run->problem->after;
    if (arrivals->first_follower)
        while (arrivals->next < run->problem->count && after[arrivals->next] >= 0) arrivals->next++;
    return arrivals->next;
}

/* `next_s` */
static double arrivals_next_s(const Run *run, Arrivals *arrivals) {
    int64_t own = arrivals_own(run, arrivals);
    double own_s = own < run->problem->count ? run->problem->arrival_s[own] : INFINITY;
    double ready_s = arrivals->root >= 0 ? run->seqs[arrivals->root].key : INFINITY;
    return ready_s < own_s ? ready_s : own_s;
}

/* `pop` */
static int32_t arrivals_pop(Run *run, Arrivals *arrivals) {
    int64_t own = arrivals_own(run, arrivals);
    if (own < run->problem->count) {
        double own_s = run->problem->arrival_s[own], ready_s = 0.0;
        if (arrivals->root >= 0) ready_s = run->seqs[arrivals->root].key;
        if (arrivals->root < 0 || own_s < ready_s || (own_s == ready_s && own < arrivals->root)) {
            arrivals->next++;
            return (int32_t)own;
        }
    }
    return heap_pop(&arrivals->root, run->seqs);
}

static inline int32_t first_follower(const Arrivals *arrivals, int32_t request) {
    return arrivals->first_follower ? arrivals->first_follower[request] : -1;
}

/* `ended`: a request has its last token. */
static void arrivals_ended(Run *run, Arrivals *arrivals, int32_t request, double now_s) {
    const Problem *problem = run->problem;
    if (problem->clients) {
        if (arrivals->sent < problem->count) arrivals_ready(run, arrivals, (int32_t)arrivals->sent++, now_s);
        return;
    }
    for (int32_t i = first_follower(arrivals, request); i >= 0; i = arrivals->next_follower[i]) {
        double own_s = problem->arrival_s[i], after_s = now_s + problem->gap_s[i];
        arrivals_ready(run, arrivals, i, own_s >= after_s ? own_s : after_s);
    }
}

/* `_refuse` of `run.py`: a request is refused, and with it all that were to follow it. */
static void refuse(Run *run, Arrivals *arrivals, int32_t request, int64_t reason, double now_s) {
    const Problem *problem = run->problem;
    int64_t waiting = 0;
    run->out->refusal[request] = reason;
    refute_reject(problem, request);
    if (problem->clients) arrivals_ended(run, arrivals, request, now_s);
    while (arrivals->first_follower) {
        for (int32_t i = first_follower(arrivals, request); i >= 0; i = arrivals->next_follower[i]) {
            double own_s = problem->arrival_s[i];
            run->out->arrival_s[i] = own_s >= now_s ? own_s : now_s;
            run->out->refusal[i] = SESSION_ENDED;
            refute_reject(problem, i);
            arrivals->stack[waiting++] = i;
        }
        if (!waiting) return;
        request = arrivals->stack[--waiting];
    }
}
