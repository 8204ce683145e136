/* The early end of a run that cannot meet a limit any more: `planner/simulate/refute.py`. */
#include "capstan.h"

static inline void miss(Watch *watch, int64_t request) {
    watch->misses += !watch->missed[request];
    watch->missed[request] = 1;
}

/* `Refuter.reject` */
static void refute_reject(const Problem *problem, int64_t request) {
    for (int64_t i = 0; i < problem->watch_count; i++)
        if (problem->watches[i].class_index == problem->class_index[request]) miss(&problem->watches[i], request);
}

/* What finished since the last look and took too long between tokens. */
static void refute_finished(Run *run) {
    const Problem *problem = run->problem;
    for (; run->drained_count < run->finished_count; run->drained_count++) {
        int64_t request = run->finished[run->drained_count], gaps = problem->output_tokens[request] - 1;
        if (!gaps) continue;
        double tpot_s = (run->out->finish_s[request] - run->out->first_s[request]) / (double)gaps;
        for (int64_t i = 0; i < problem->watch_count; i++) {
            Watch *watch = &problem->watches[i];
            if (watch->class_index == problem->class_index[request] && tpot_s > watch->tpot_s) miss(watch, request);
        }
    }
}

/* Count the requests that are overdue by now and have not reached `reached_s` in time. */
static void refute_overdue(Watch *watch, int64_t *next, double limit_s, const double *arrival_s,
                           const double *reached_s, double now_s) {
    while (*next < watch->count) {
        int64_t request = watch->requests[*next];
        if (!(now_s - arrival_s[request] > limit_s)) return; /* also where there is no limit (NaN) */
        if (!(reached_s[request] - arrival_s[request] <= limit_s)) miss(watch, request);
        ++*next;
    }
}

/* `Refuter.check`: the number of the watch that cannot hold any more, or -1. */
static int64_t refute_check(Run *run, double now_s) {
    const Problem *problem = run->problem;
    refute_finished(run);
    for (int64_t i = 0; i < problem->watch_count; i++) {
        Watch *watch = &problem->watches[i];
        refute_overdue(watch, &watch->ttft_next, watch->ttft_s, run->out->arrival_s, run->out->first_s, now_s);
        refute_overdue(watch, &watch->e2e_next, watch->e2e_s, run->out->arrival_s, run->out->finish_s, now_s);
        if (watch->misses > watch->allowed) return i;
    }
    return -1;
}
