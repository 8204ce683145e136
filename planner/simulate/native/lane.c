/* One batch in flight on a virtual clock: `planner/simulate/step.py`. */
#include "capstan.h"

/* Whether nothing that arrives matters to steps that only decode, unless it can be admitted at once. */
static inline bool is_quiet(const Model *model) {
    return model->order == FCFS && !model->batch_wait_steps && model->max_waiting_tokens < 0;
}

static inline double head_ready_s(const Lane *lane) {
    return lane->pending.head < 0 ? INFINITY : lane->run->seqs[lane->pending.head].ready_s;
}

static inline void note_blocks(Lane *lane) {
    int64_t used = used_blocks(&lane->blocks);
    if (used > lane->load->blocks_peak) lane->load->blocks_peak = used;
}

/* Give the decoding sequences what was computed for them, and the blocks for the step in flight. */
static void lane_settle(Lane *lane) {
    int32_t done = lane->formed - lane->in_flight;
    if (!lane->formed) return;
    for (int32_t i = 0; i < lane->count; i++) {
        Seq *seq = &lane->run->seqs[lane->running[i]];
        if (is_prefilling(seq)) continue;
        blocks_grow(&lane->blocks, seq, seq->computed + lane->formed);
        seq->computed += done;
        seq->generated += done;
    }
    note_blocks(lane);
    bool noted = done && (lane->model->order != FCFS || lane->blocks.unit_tokens);
    for (int32_t i = 0; noted && i < lane->count; i++)
        if (!is_prefilling(&lane->run->seqs[lane->running[i]])) note_computed(lane, lane->running[i], 0, done);
    lane->formed -= done;
}

/* ---- the time of a step: `_step_s` ---- */

/* By these step times; `fixed_s` takes what does not depend on contexts. */
static double times_step_s(const Lane *lane, const StepTimes *times, int64_t tokens, int64_t sampled, double *fixed_s) {
    double seconds = times->tokens_s[tokens] + times->sampled_s[sampled] +
                     times->sequence_s * (double)(lane->decodes + lane->chunk_count);
    *fixed_s = seconds;
    if (lane->decodes) seconds += decode_s(times, lane->decodes, lane->context, lane->window_context);
    if (lane->chunk_count) seconds += times->prefill_step_s;
    for (int32_t i = 0; i < lane->chunk_count; i++)
        seconds += chunk_s(times, lane->chunks[i].tokens, lane->chunks[i].start);
    if (lane->chunk_count && seconds < times->eager_s) seconds = times->eager_s;
    if (lane->blocks.moved) seconds += times->host_token_s * (double)lane->blocks.moved;
    return seconds;
}

static double step_s(Lane *lane) {
    const StepTimes *times = &lane->model->times;
    const Seq *seqs = lane->run->seqs;
    int64_t tokens = lane->decodes * (1 + lane->model->draft_tokens), sampled = tokens;
    for (int32_t i = 0; i < lane->chunk_count; i++) {
        const Chunk *chunk = &lane->chunks[i];
        tokens += chunk->tokens;
        sampled += chunk->start + chunk->tokens == seqs[chunk->request].prefill;
    }
    double draft_s = lane->model->draft_tokens && lane->decodes ? lane->model->draft_s : 0.0, seconds = 0.0;
    if (!times->stages) return times_step_s(lane, times, tokens, sampled, &lane->fixed_s) + draft_s;
    for (int64_t i = 0; i < times->lanes; i++) {
        lane->stage_s[i] = times_step_s(lane, &times->stages[i], tokens, sampled, &lane->stage_fixed_s[i]);
        if (i == times->lanes - 1) lane->stage_s[i] += draft_s;
        seconds += lane->stage_s[i];
    }
    return seconds;
}

/* Of the repeated step, at the contexts that it has reached. */
static double repeated_s(Lane *lane) {
    const StepTimes *times = &lane->model->times;
    if (!times->stages) return lane->fixed_s + decode_s(times, lane->decodes, lane->context, lane->window_context);
    double seconds = 0.0;
    for (int64_t i = 0; i < times->lanes; i++) {
        lane->stage_s[i] = lane->stage_fixed_s[i] +
                           decode_s(&times->stages[i], lane->decodes, lane->context, lane->window_context);
        seconds += lane->stage_s[i];
    }
    return seconds;
}

/* ---- repetition ---- */

/* Blocks that the decoding sequences still need to hold `steps` tokens more each. */
static int64_t blocks_to_repeat(const Lane *lane, int64_t steps) {
    int64_t needed = 0;
    for (int32_t i = 0; i < lane->count; i++) {
        const Seq *seq = &lane->run->seqs[lane->running[i]];
        int64_t beyond = seq->computed + 1 + steps - seq->capacity;
        if (!is_prefilling(seq) && beyond > 0) needed += blocks_for(beyond, lane->blocks.block_tokens);
    }
    return needed;
}

/* The largest number of steps in 0..most for which there are blocks. Units that the head of the queue counts on must
 * not be evicted unseen. */
static int64_t steps_with_blocks(const Lane *lane, int64_t most) {
    int64_t available = lane->blocks.free + (lane->volatile_hits ? 0 : idle_blocks(&lane->blocks)), steps = 0;
    if (lane->decodes * blocks_for(most, lane->blocks.block_tokens) <= available) return most;
    while (steps < most) {
        int64_t middle = (steps + most + 1) / 2;
        if (blocks_to_repeat(lane, middle) <= available)
            steps = middle;
        else
            most = middle - 1;
    }
    return steps;
}

/* Further steps of one sequence like the one that was just formed, by the order of service and the prefix cache. */
static int64_t further_steps(const Lane *lane, int32_t request) {
    const Seq *seq = &lane->run->seqs[request];
    const Model *model = lane->model;
    int64_t further = (int64_t)seq->output - seq->generated - 1; /* then it finishes */
    if (model->order >= SRPT) further--; /* the order of the running changes: the last step is formed in the new one */
    if (model->order == MLFQ) {
        int64_t quantum = (model->mlfq_quantum_tokens << seq->level) - seq->level_tokens - 2;
        if (quantum < further) further = quantum;
    }
    if (lane->blocks.unit_tokens && seq->units < unit_count_of(lane->run, request)) {
        int64_t publishes = (seq->units + 1) * lane->blocks.unit_tokens - seq->computed - 1;
        if (publishes < further) further = publishes;
    }
    return further;
}

/* Whether the next steps are formed like this one while nothing finishes and nothing arrives. */
static bool may_repeat(const Lane *lane) {
    const Model *model = lane->model;
    if (lane->chunk_count || lane->preempted || lane->admitted || model->draft_tokens) return false;
    if (!lane->waiting.count) return true;
    if (model->batch_wait_steps) return false;
    if (lane->volatile_hits && model->policy == PREFILL_FIRST) return false; /* the decodes took blocks after its try */
    return model->order < SRPT || (model->order == VTC && lane->count >= lane->seats);
}

/* How often the decode-only step that was just formed may be repeated: until a sequence finishes, fills its window or
 * completes a prefix unit, or blocks run out. */
static void plan_repetition(Lane *lane) {
    const int64_t window = lane->model->times.window_tokens;
    int64_t left = INT32_MAX;
    lane->below = 0;
    lane->left = 0;
    if (!may_repeat(lane)) return;
    for (int32_t i = 0; i < lane->count; i++) {
        const Seq *seq = &lane->run->seqs[lane->running[i]];
        if (is_prefilling(seq)) continue;
        int64_t further = further_steps(lane, lane->running[i]), inside = window - (seq->computed + 1);
        if (further < left) left = further;
        if (inside > 0) {
            lane->below++;
            if (inside < left) left = inside;
        }
    }
    if (left > 0) lane->left = (int32_t)steps_with_blocks(lane, left);
    lane->open |= !is_quiet(lane->model);
    lane->wake_s = lane->open ? head_ready_s(lane) : INFINITY;
}

/* ---- the start of a step: `form` ---- */

static void forget(Lane *lane) { group_forget(lane->group, lane->replica, lane->number); }

/* `_note`: what a step admits for the first time, preempts and moves. */
static void note_step(Lane *lane, double time_s) {
    Outcome *out = lane->run->out;
    LaneLoad *load = lane->load;
    for (int32_t i = 0; i < lane->preempted; i++) {
        out->preemptions[lane->victims[i]]++;
        load->swaps += lane->run->seqs[lane->victims[i]].host_blocks > 0;
    }
    load->preemptions += lane->preempted;
    load->moved_tokens += lane->blocks.moved;
    for (int32_t i = 0; i < lane->chunk_count; i++) {
        int32_t request = lane->chunks[i].request;
        if (!isnan(out->start_s[request])) continue;
        out->start_s[request] = time_s;
        out->cached[request] = lane->run->seqs[request].cached;
        load->looked_up_tokens += lane->run->seqs[request].prompt;
        load->hit_tokens += lane->run->seqs[request].cached;
    }
    load->steps++;
    if (lane->count > load->running_peak) load->running_peak = lane->count;
    note_blocks(lane);
}

/* Form a step by the rules; returns false where there is nothing to compute. */
static bool form_step(Lane *lane, double time_s, double *seconds) {
    Run *run = lane->run;
    lane_settle(lane);
    while (head_ready_s(lane) <= time_s) {
        int32_t request = list_pop(&lane->pending, run->seqs);
        if (former_add(lane, request)) continue;
        run->refused[run->refused_count++] = request;
        forget(lane);
    }
    lane->left = 0;
    if (!former_form(lane)) return false;
    count_event(run);
    note_step(lane, time_s);
    *seconds = step_s(lane);
    lane->blocks.moved = 0;
    lane->in_flight = true;
    lane->formed = lane->decodes > 0;
    plan_repetition(lane);
    return true;
}

/* `form` without what it does to the clock. */
static bool lane_form(Lane *lane, double time_s, double *seconds) {
    if (lane->left == 0 || time_s >= lane->wake_s) return form_step(lane, time_s, seconds);
    count_event(lane->run);
    lane->load->steps++;
    lane->decode_steps++;
    lane->left--;
    lane->formed++;
    lane->context += lane->decodes;
    lane->window_context += lane->below;
    *seconds = repeated_s(lane);
    lane->in_flight = true;
    return true;
}

/* ---- the end of a step: `complete` ---- */

/* `accepted_tokens` of `specs/service/speculation.py`, none beyond the end of the output. */
static int64_t accepted_tokens(const Lane *lane, int32_t request) {
    const Seq *seq = &lane->run->seqs[request];
    uint64_t hashed = splitmix64(lane->run->problem->seed) ^ (uint64_t)request;
    hashed = splitmix64(splitmix64(hashed) ^ (uint64_t)seq->generated);
    double uniform = (double)(hashed >> 11) * 0x1p-53, power = 1.0;
    int64_t accepted = 0, most = (int64_t)seq->output - seq->generated - 1;
    for (; accepted < lane->model->draft_tokens; accepted++) {
        power *= lane->model->acceptance;
        if (uniform >= power) break;
    }
    return accepted < most ? accepted : most;
}

static void complete_drafts(Lane *lane) {
    for (int32_t i = 0; i < lane->count; i++) {
        Seq *seq = &lane->run->seqs[lane->running[i]];
        if (is_prefilling(seq)) continue;
        int32_t tokens = 1 + (int32_t)accepted_tokens(lane, lane->running[i]);
        seq->computed += tokens;
        seq->generated += tokens;
        note_computed(lane, lane->running[i], 0, tokens);
    }
    lane->formed = 0;
}

static void complete_chunks(Lane *lane) {
    for (int32_t i = 0; i < lane->chunk_count; i++) {
        Seq *seq = &lane->run->seqs[lane->chunks[i].request];
        seq->computed += lane->chunks[i].tokens;
        seq->generated += !is_prefilling(seq);
        note_computed(lane, lane->chunks[i].request, lane->chunks[i].tokens, !is_prefilling(seq));
    }
}

/* A sequence sampled a token at `time_s`: it may be its first or its last one. */
static void sampled(Lane *lane, int32_t request, double time_s) {
    Run *run = lane->run;
    Seq *seq = &run->seqs[request];
    if (seq->generated == 1) run->out->first_s[request] = time_s;
    if (seq->generated == seq->output) {
        seq->gone = true;
        blocks_free(run, &lane->blocks, request);
        run->out->finish_s[request] = time_s;
        run->finished[run->finished_count++] = request;
        forget(lane);
    } else if (lane->group->spec->target >= 0) {
        seq->gone = true; /* handed over: its blocks stay until its KV cache is on the other side */
        run->handed[run->handed_count++] = request;
        group_hand(lane->group, lane->replica, lane->number, request);
    }
}

static void drop_gone(Lane *lane) {
    int32_t kept = 0;
    for (int32_t i = 0; i < lane->count; i++) {
        const Seq *seq = &lane->run->seqs[lane->running[i]];
        if (seq->gone)
            lane->reserved_blocks -= reserve_blocks(lane, seq);
        else
            lane->running[kept++] = lane->running[i];
    }
    lane->count = kept;
}

/* Whether decoding sequences have nothing to settle but their tokens and blocks. */
static inline bool settles_plainly(const Lane *lane) {
    const Model *model = lane->model;
    return model->order == FCFS && !lane->blocks.unit_tokens && !model->draft_tokens && lane->group->spec->target < 0;
}

/* `lane_settle`, `complete_chunks` and `sampled` of all decoding sequences, in one look at each of them. */
static void complete_plain(Lane *lane, double time_s) {
    int32_t formed = lane->formed, ends = 0;
    for (int32_t i = 0; lane->decodes && i < lane->count; i++) {
        Seq *seq = &lane->run->seqs[lane->running[i]];
        if (is_prefilling(seq)) continue;
        blocks_grow(&lane->blocks, seq, seq->computed + formed);
        seq->computed += formed;
        seq->generated += formed;
        if (seq->generated == 1 || seq->generated == seq->output) lane->ends[ends++] = lane->running[i];
    }
    if (formed) note_blocks(lane);
    lane->formed = 0;
    complete_chunks(lane);
    for (int32_t i = 0; i < ends; i++) sampled(lane, lane->ends[i], time_s);
}

/* Apply the step that ends now. Inside a repetition nothing is to be seen of it. */
static void lane_complete(Lane *lane, double time_s) {
    Run *run = lane->run;
    lane->in_flight = false;
    if (lane->left) return;
    int64_t before = run->finished_count + run->handed_count;
    if (settles_plainly(lane)) {
        complete_plain(lane, time_s);
    } else {
        if (lane->model->draft_tokens && lane->decodes)
            complete_drafts(lane);
        else
            lane_settle(lane);
        complete_chunks(lane);
        for (int32_t i = 0; lane->decodes && i < lane->count; i++) {
            const Seq *seq = &run->seqs[lane->running[i]];
            if (!seq->chunked && !is_prefilling(seq)) sampled(lane, lane->running[i], time_s);
        }
    }
    for (int32_t i = 0; i < lane->chunk_count; i++) {
        int32_t request = lane->chunks[i].request;
        run->seqs[request].chunked = false;
        if (!is_prefilling(&run->seqs[request])) sampled(lane, request, time_s);
    }
    lane->chunk_count = 0;
    if (run->finished_count + run->handed_count > before) drop_gone(lane);
}

/* ---- arrivals, releases, failures ---- */

static void lane_wake(Lane *lane, double ready_s) {
    if (!lane->in_flight && ready_s < lane->clock_s) lane->clock_s = ready_s;
}

/* `arrive`: a request after so many output tokens and with so many in its KV cache. */
static void lane_arrive(Lane *lane, int32_t request, double now_s, int32_t generated, int32_t computed) {
    const Problem *problem = lane->run->problem;
    int32_t output = (int32_t)problem->output_tokens[request];
    lane->run->seqs[request] = (Seq){
        .ready_s = now_s + lane->model->times.request_s,
        .prompt = (int32_t)problem->prompt_tokens[request],
        .output = output,
        .predicted = problem->predicted_tokens ? (int32_t)problem->predicted_tokens[request] : output,
        .generated = generated,
        .computed = computed,
    };
    double ready_s = lane->run->seqs[request].ready_s;
    if (lane->open && lane->pending.head < 0) lane->wake_s = ready_s;
    list_push(&lane->pending, lane->run->seqs, request);
    lane_wake(lane, ready_s);
}

/* `release`: a request that was handed over is on the other side. */
static void lane_release(Lane *lane, int32_t request, double now_s) {
    blocks_free(lane->run, &lane->blocks, request);
    lane_wake(lane, now_s);
}

static inline double busy_s(double start_s, double end_s, double horizon_s) {
    double inside_s = (horizon_s < end_s ? horizon_s : end_s) - start_s;
    return inside_s > 0.0 ? inside_s : 0.0;
}

/* `fail`: all is lost; the requests that were here are written to `lost`, their number is returned. */
static int64_t lane_fail(Lane *lane, double now_s, int32_t *lost) {
    Seq *seqs = lane->run->seqs;
    int64_t count = 0;
    lane_settle(lane);
    for (int32_t i = 0; i < lane->count; i++) lost[count++] = lane->running[i];
    while (lane->waiting.count) lost[count++] = queue_pop(lane);
    while (lane->pending.count) lost[count++] = list_pop(&lane->pending, seqs);
    if (lane->in_flight && lane->model->times.lanes == 1)
        lane->load->busy_s -= busy_s(now_s, lane->clock_s, lane->run->horizon_s);
    lane_clear(lane);
    return count;
}

/* ---- a lane on its own ---- */

/* Repeat the step that ended at the lane's clock while nothing but contexts changes; the last one may be in flight.
 * The loop is `lane_form` and `lane_complete` for this case, with everything in registers. */
static void lane_repeat(Lane *lane, double until_s) {
    const StepTimes *times = &lane->model->times;
    const double horizon_s = lane->run->horizon_s, fixed_s = lane->fixed_s;
    const double stop_s = until_s < lane->wake_s ? until_s : lane->wake_s;
    const int64_t decodes = lane->decodes, below = lane->below;
    int64_t context = lane->context, window_context = lane->window_context;
    int64_t most = lane->left < lane->run->events_left ? lane->left : lane->run->events_left, formed = 0;
    double time_s = lane->clock_s, total_s = lane->load->busy_s;
    bool in_flight = false, over = false;
    while (formed < most && !over) {
        context += decodes;
        window_context += below;
        double end_s = time_s + (fixed_s + decode_s(times, decodes, context, window_context));
        total_s += busy_s(time_s, end_s, horizon_s);
        time_s = end_s;
        formed++;
        in_flight = time_s > until_s || formed == lane->left;
        over = in_flight || time_s >= stop_s;
    }
    lane->context = context;
    lane->window_context = window_context;
    lane->clock_s = time_s;
    lane->load->busy_s = total_s;
    lane->load->steps += formed;
    lane->decode_steps += formed;
    lane->run->events_left -= formed;
    lane->formed += (int32_t)formed;
    lane->left -= (int32_t)formed;
    lane->in_flight = in_flight;
    if (!over) run_end(lane->run, BOUND_HIT);
}

/* `advance`: process all that ends at `until_s` or before, form all steps that start before `until_s`. */
static void lane_advance(Lane *lane, double until_s) {
    for (;;) {
        double time_s = lane->clock_s, seconds = 0.0;
        if (lane->in_flight) {
            if (time_s > until_s) return;
            lane_complete(lane, time_s);
        }
        if (time_s >= until_s) return;
        if (lane->left && time_s < lane->wake_s) {
            lane_repeat(lane, until_s);
        } else if (form_step(lane, time_s, &seconds)) {
            lane->clock_s = time_s + seconds;
            lane->load->busy_s += busy_s(time_s, lane->clock_s, lane->run->horizon_s);
        } else {
            lane->clock_s = head_ready_s(lane);
        }
    }
}
