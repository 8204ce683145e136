/* The loop of a simulation, one moment after the other: `planner/simulate/run.py`. */
#include "capstan.h"

/* ---- time goes on ---- */

/* `_next_s` */
static double next_moment_s(Fleet *fleet) {
    const Problem *problem = fleet->run.problem;
    double next_s = arrivals_next_s(&fleet->run, &fleet->arrivals);
    if (fleet->next_fault < problem->fault_count && problem->faults[fleet->next_fault].time_s < next_s)
        next_s = problem->faults[fleet->next_fault].time_s;
    if (!fleet->coupled) return next_s;
    if (tree_min(&fleet->clocks) < next_s) next_s = tree_min(&fleet->clocks);
    for (int64_t i = 0; i < problem->link_count; i++) {
        double link_s = link_next_s(&fleet->links[i], fleet->transfers);
        if (link_s < next_s) next_s = link_s;
    }
    return next_s;
}

/* `_advance_replicas`: in their order, those whose time has come. */
static void advance_replicas(Fleet *fleet, double until_s) {
    for (int64_t i = 0; (i = tree_next(&fleet->clocks, i, until_s)) >= 0; i++) replica_advance(fleet, i, until_s);
}

/* `_advance`: on the way routers look at the loads, at the last multiple of `poll_s`. */
static void advance(Fleet *fleet, double now_s) {
    double poll_s = fleet->run.problem->poll_s;
    if (poll_s > 0.0) {
        int64_t multiple = (int64_t)floor(now_s / poll_s);
        multiple -= (double)multiple * poll_s > now_s;
        if (multiple > fleet->polled) {
            fleet->polled = multiple;
            advance_replicas(fleet, (double)multiple * poll_s);
            for (int64_t i = 0; i < fleet->run.problem->group_count; i++) group_refresh(&fleet->groups[i]);
        }
    }
    advance_replicas(fleet, now_s);
}

/* `_drain`; true: an objective cannot hold any more. */
static bool drain(Fleet *fleet, double now_s) {
    Run *run = &fleet->run;
    double next_s;
    while ((next_s = tree_min(&fleet->clocks)) < INFINITY) {
        now_s = run->problem->refuting ? (now_s > next_s ? now_s : next_s) + LOOK_S : INFINITY;
        advance_replicas(fleet, now_s);
        if (run->problem->refuting && (run->out->refuted = refute_check(run, now_s)) >= 0) return true;
    }
    return false;
}

/* `_look` */
static bool look(Fleet *fleet, double now_s) {
    Run *run = &fleet->run;
    if (!run->problem->refuting || now_s < fleet->look_s) return false;
    fleet->look_s = now_s + LOOK_S;
    return (run->out->refuted = refute_check(run, now_s)) >= 0;
}

/* ---- events of one moment ---- */

/* `_send_caches`: requests with their first token leave for the decode side, in request order. */
static void send_caches(Fleet *fleet, double now_s) {
    Run *run = &fleet->run;
    qsort(run->handed, (size_t)run->handed_count, sizeof *run->handed, compare_requests);
    for (int64_t i = 0; i < run->handed_count; i++) {
        Transfer *transfer = &fleet->transfers[run->handed[i]];
        const GroupSpec *spec = fleet->groups[transfer->group].spec;
        transfer->size_bytes = spec->bytes_per_token * (double)run->seqs[run->handed[i]].computed;
        link_send(&fleet->links[spec->link], fleet->transfers, run->handed[i], now_s);
    }
    run->handed_count = 0;
}

/* `_note_ends`: what replicas finished, refused and handed over since the last time. */
static void note_ends(Fleet *fleet, double now_s) {
    Run *run = &fleet->run;
    for (; fleet->arrivals.dependent && fleet->ended < run->finished_count; fleet->ended++) {
        int32_t request = run->finished[fleet->ended];
        arrivals_ended(run, &fleet->arrivals, request, run->out->finish_s[request]);
    }
    for (; fleet->refused < run->refused_count; fleet->refused++)
        refuse(run, &fleet->arrivals, run->refused[fleet->refused], QUEUE_FULL, now_s);
    if (run->handed_count) send_caches(fleet, now_s);
}

/* `_enter` and `_why` */
static void enter_group(Fleet *fleet, int64_t index, int32_t request, double now_s, int32_t generated,
                        int32_t computed) {
    Group *group = &fleet->groups[index];
    const Problem *problem = fleet->run.problem;
    if (group_holds(&fleet->run, group, request, generated)) {
        group_send(fleet, group, request, now_s, generated, computed);
        return;
    }
    bool too_long = problem->prompt_tokens[request] + problem->output_tokens[request] > group->max_model_len;
    refuse(&fleet->run, &fleet->arrivals, request, too_long ? TOO_LONG : TOO_LARGE, now_s);
}

/* A replica goes down: what was there, and on its way from there, is written to `lost`; returns how many. */
static int64_t fail_replica(Fleet *fleet, const FaultEvent *event, double now_s, int32_t *lost) {
    const Problem *problem = fleet->run.problem;
    int64_t count =
        group_fail(fleet, &fleet->groups[event->group], (int32_t)event->replica, now_s, lost);
    for (int64_t i = 0; i < problem->link_count; i++)
        count += link_drop(&fleet->links[i], fleet->transfers, event->group, event->replica, now_s,
                           fleet->run.horizon_s, lost + count);
    fleet->run.out->lost[event->group] += count;
    return count;
}

/* The faults of one replica at this moment; returns the change: 1 it goes down, -1 it comes up, 0 neither. */
static int fault_change(Fleet *fleet, int64_t *next) {
    const Problem *problem = fleet->run.problem;
    const FaultEvent *event = &problem->faults[*next];
    int32_t *down = &fleet->down[fleet->groups[event->group].first_replica + event->replica];
    int32_t before = *down;
    for (; *next < problem->fault_count; ++*next) {
        const FaultEvent *other = &problem->faults[*next];
        if (other->time_s > event->time_s || other->group != event->group || other->replica != event->replica) break;
        *down += (int32_t)other->step;
    }
    return (*down > 0) - (before > 0);
}

/* `_fail_and_recover`: replicas go down and come up; then what waited is sent again, and what was lost. */
static void fail_and_recover(Fleet *fleet, double now_s) {
    Run *run = &fleet->run;
    const Problem *problem = run->problem;
    int32_t *again = fleet->scratch;
    int64_t lost = 0, waited = 0, recovered = 0, *places = fleet->recovered;
    while (fleet->next_fault < problem->fault_count && problem->faults[fleet->next_fault].time_s <= now_s) {
        const FaultEvent *event = &problem->faults[fleet->next_fault];
        int64_t place = fleet->next_fault;
        int change = fault_change(fleet, &fleet->next_fault);
        if (change > 0) lost += fail_replica(fleet, event, now_s, again + lost);
        if (change < 0) places[recovered++] = place;
    }
    qsort(again, (size_t)lost, sizeof *again, compare_requests);
    for (int64_t i = 0; i < recovered; i++) {
        Group *group = &fleet->groups[problem->faults[places[i]].group];
        set_up(group, (int32_t)problem->faults[places[i]].replica, true);
        while (group->waiting.count) again[lost + waited++] = list_pop(&group->waiting, run->seqs);
    }
    for (int64_t i = 0; i < lost; i++) {
        run->out->decode_group_of[again[i]] = run->out->decode_replica_of[again[i]] = -1;
        run->seqs[again[i]].computed = 0;
    }
    for (int64_t i = 0; i < waited + lost; i++) { /* what waited comes first */
        int32_t request = again[i < waited ? lost + i : i - waited];
        int64_t target = run->out->decode_group_of[request];
        count_event(run);
        enter_group(fleet, target >= 0 ? target : run->out->group_of[request], request, now_s,
                    run->seqs[request].generated, run->seqs[request].computed);
    }
}

/* `_hand_over`: KV caches that have crossed their link. */
static void hand_over(Fleet *fleet, double now_s) {
    Run *run = &fleet->run;
    int64_t count = 0;
    for (int64_t i = 0; i < run->problem->link_count; i++)
        count += link_arrived(&fleet->links[i], fleet->transfers, now_s, run->horizon_s, fleet->scratch + count);
    qsort(fleet->scratch, (size_t)count, sizeof *fleet->scratch, compare_requests);
    for (int64_t i = 0; i < count; i++) {
        int32_t request = fleet->scratch[i];
        int64_t target = fleet->groups[fleet->transfers[request].group].spec->target;
        int32_t generated = run->seqs[request].generated, computed = run->seqs[request].computed;
        group_release(fleet, request, now_s);
        run->out->decode_group_of[request] = target;
        enter_group(fleet, target, request, now_s, generated, computed);
    }
}

/* One request of `_let_in`. */
static void let_in(Fleet *fleet, int32_t request, double now_s) {
    Run *run = &fleet->run;
    const Problem *problem = run->problem;
    if (fleet->arrivals.dependent && run->deadline_s)
        run->deadline_s[request] += now_s - problem->arrival_s[request];
    int64_t chosen = split_next(&problem->splits[problem->class_index[request]]);
    run->out->group_of[request] = chosen;
    int64_t target = fleet->groups[chosen].spec->target;
    if (target >= 0 && problem->output_tokens[request] > 1 &&
        !group_holds(run, &fleet->groups[target], request, 0)) {
        int64_t tokens = problem->prompt_tokens[request] + problem->output_tokens[request];
        bool too_long = tokens > fleet->groups[target].max_model_len;
        refuse(run, &fleet->arrivals, request, too_long ? TOO_LONG : TOO_LARGE, now_s);
        return;
    }
    enter_group(fleet, chosen, request, now_s, 0, 0);
}

/* `_let_in`: the arrivals of this moment; true: an objective cannot hold any more. */
static bool let_all_in(Fleet *fleet, double now_s) {
    Run *run = &fleet->run;
    const Problem *problem = run->problem;
    while (arrivals_next_s(run, &fleet->arrivals) <= now_s) {
        if (problem->refuting && fleet->arrived % CHECK_EVERY == 0 &&
            (run->out->refuted = refute_check(run, now_s)) >= 0)
            return true;
        if (fleet->arrived % REPORT_EVERY == 0) {
            run->share = (double)fleet->arrived / (double)problem->count;
            report(run);
        }
        fleet->arrived++;
        let_in(fleet, arrivals_pop(run, &fleet->arrivals), now_s);
    }
    return false;
}

/* `_run` */
static void fleet_run(Fleet *fleet) {
    Run *run = &fleet->run;
    const Problem *problem = run->problem;
    double now_s = 0.0, next_s;
    while ((next_s = next_moment_s(fleet)) < INFINITY) {
        now_s = next_s;
        advance(fleet, now_s);
        note_ends(fleet, now_s);
        if (fleet->coupled && look(fleet, now_s)) return;
        if (fleet->next_fault < problem->fault_count && problem->faults[fleet->next_fault].time_s <= now_s)
            fail_and_recover(fleet, now_s);
        if (problem->link_count) hand_over(fleet, now_s);
        if (let_all_in(fleet, now_s)) return;
        if (!fleet->coupled) continue;
        advance_replicas(fleet, nextafter(now_s, INFINITY));
        note_ends(fleet, now_s);
    }
    if (drain(fleet, now_s)) return;
    note_ends(fleet, now_s);
    for (int64_t i = 0; i < problem->group_count; i++) /* nothing comes up any more */
        while (fleet->groups[i].waiting.count)
            refuse(run, &fleet->arrivals, list_pop(&fleet->groups[i].waiting, run->seqs), NO_REPLICA, now_s);
}

/* Serve the workload of `problem`; returns OK, NO_MEMORY or STOPPED. */
int capstan_simulate(const Problem *problem, Outcome *out) {
    Fleet *fleet = calloc(1, sizeof *fleet);
    if (!fleet) return NO_MEMORY;
    fleet->run.problem = problem;
    fleet->run.out = out;
    out->refuted = -1;
    if (setjmp(fleet->run.escape) == 0) {
        fleet_open(fleet);
        fleet_run(fleet);
    }
    int status = fleet->run.status;
    if (status != NO_MEMORY) fleet_settle(fleet);
    fleet_close(fleet);
    free(fleet);
    return status == BOUND_HIT ? OK : status;
}
