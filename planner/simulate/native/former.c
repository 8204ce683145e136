/* What the next step computes: `specs/service/batch_former.py`. */
#include "capstan.h"

static inline bool is_prefilling(const Seq *seq) { return seq->computed < seq->prefill; }

/* `_decodes_on`: whether a waiting sequence has its prompt computed. */
static inline bool decodes_on(const Seq *seq) { return seq->computed > 0 && !is_prefilling(seq); }

/* `_decoded_tokens`: that need blocks when it decodes; drafts beyond the end of its output do not. */
static inline int64_t decoded_tokens(const Lane *lane, const Seq *seq) {
    int64_t tokens = (int64_t)seq->computed + 1, most = (int64_t)seq->prompt + seq->output - 1;
    if (!lane->model->draft_tokens) return tokens;
    tokens += lane->model->draft_tokens;
    return tokens < most ? tokens : most;
}

/* `_reserve_blocks` */
static int64_t reserve_blocks(const Lane *lane, const Seq *seq) {
    int64_t tokens = seq->prompt + (int64_t)(lane->model->output_reserve * (double)seq->output);
    return blocks_for(tokens, lane->blocks.block_tokens);
}

/* `_fits_reserve` */
static bool fits_reserve(const Lane *lane, const Seq *head) {
    if (lane->model->output_reserve == 0.0 || !lane->count) return true;
    return lane->reserved_blocks + reserve_blocks(lane, head) <= lane->blocks.total;
}

/* `_preempt`: the last running sequence gives way. */
static int32_t preempt_last(Lane *lane) {
    int32_t request = lane->running[--lane->count];
    Seq *seq = &lane->run->seqs[request];
    lane->reserved_blocks -= reserve_blocks(lane, seq);
    if (!lane->model->swaps || !blocks_swap_out(lane->run, &lane->blocks, request)) {
        blocks_free(lane->run, &lane->blocks, request);
        seq->computed = 0;
        seq->prefill = 0;
    }
    seq->preemptions++;
    queue_requeue(lane, request);
    lane->victims[lane->preempted++] = request;
    return request;
}

/* `_entry`: prefix units that the head takes over, and in `tokens` how many of its tokens need blocks then. */
static int64_t entry(Lane *lane, int32_t head, int64_t budget, int64_t *tokens) {
    Seq *seq = &lane->run->seqs[head];
    int64_t units = 0, known = seq->computed;
    if (decodes_on(seq)) {
        *tokens = decoded_tokens(lane, seq);
        return 0;
    }
    if (!known) {
        seq->prefill = seq->prompt + seq->generated;
        units = blocks_match(lane->run, &lane->blocks, head);
        known = units * lane->blocks.unit_tokens;
    }
    *tokens = known + budget < seq->prefill ? known + budget : seq->prefill;
    return units;
}

/* `_holds_prompts`: while something decodes, by policy or for company. */
static bool holds_prompts(const Lane *lane) {
    const Model *model = lane->model;
    if (model->policy != DECODE_FIRST) {
        if (lane->decode_steps >= lane->waiting_since + model->batch_wait_steps) return false;
        if (lane->waiting.tokens >= model->budget) return false;
    }
    for (int32_t i = 0; i < lane->count; i++)
        if (!is_prefilling(&lane->run->seqs[lane->running[i]])) return true;
    return false;
}

/* `_has_room` */
static bool has_room(Lane *lane, int32_t head) {
    int64_t tokens;
    bool loose = false;
    if (lane->count >= lane->seats || !fits_reserve(lane, &lane->run->seqs[head])) return false;
    int64_t units = entry(lane, head, lane->model->budget, &tokens);
    return blocks_fit(lane->run, &lane->blocks, head, units, tokens, &loose);
}

/* `_make_room`: a preemptive order lets the last running sequences give way to a head that goes before them. */
static void make_room(Lane *lane) {
    while (is_preemptive(lane->model->order) && lane->count) {
        int32_t head = queue_head(lane);
        if (head < 0 || !queue_before(lane, head, lane->running[lane->count - 1])) return;
        if ((lane->holds && !decodes_on(&lane->run->seqs[head])) || has_room(lane, head)) return;
        preempt_last(lane);
    }
}

static inline void add_decode(Lane *lane, const Seq *seq) {
    int64_t window = lane->model->times.window_tokens, context = (int64_t)seq->computed + 1 + lane->model->draft_tokens;
    lane->decodes++;
    lane->budget -= 1 + lane->model->draft_tokens;
    lane->context += context;
    if (window >= 0) lane->window_context += context < window ? context : window;
}

static inline void add_chunk(Lane *lane, int32_t request, int32_t start, int64_t tokens) {
    lane->run->seqs[request].chunked = true;
    lane->chunks[lane->chunk_count++] = (Chunk){request, start, (int32_t)tokens};
    lane->budget -= tokens;
}

/* `_decode`: room for the next tokens of each decoding sequence, preempting the last one where blocks run out. */
static void form_decodes(Lane *lane) {
    Seq *seqs = lane->run->seqs;
    const int64_t window = lane->model->times.window_tokens, tokens = 1 + lane->model->draft_tokens;
    int64_t context = 0, window_context = 0;
    int32_t decodes = 0, i = 0;
    for (; i < lane->count; i++) {
        Seq *seq = &seqs[lane->running[i]];
        if (is_prefilling(seq)) continue;
        while (!blocks_grow(&lane->blocks, seq, decoded_tokens(lane, seq))) {
            preempt_last(lane);
            lane->admits = false;
            if (i == lane->count) break;
        }
        if (i == lane->count) break; /* it gave way itself */
        int64_t own = seq->computed + tokens;
        decodes++;
        context += own;
        if (window >= 0) window_context += own < window ? own : window;
    }
    lane->decodes += decodes;
    lane->budget -= tokens * decodes;
    lane->context += context;
    lane->window_context += window_context;
}

/* `_enter` */
static bool enter(Lane *lane, int32_t head) {
    Seq *seq = &lane->run->seqs[head];
    int64_t tokens, units = entry(lane, head, lane->budget, &tokens);
    if (!blocks_admit(lane->run, &lane->blocks, head, units, tokens, &lane->volatile_hits)) return false;
    queue_pop(lane);
    lane->running[lane->count++] = head;
    lane->admitted++;
    lane->reserved_blocks += reserve_blocks(lane, seq);
    if (decodes_on(seq)) {
        add_decode(lane, seq);
        return true;
    }
    if (units) {
        seq->computed = (int32_t)(units * lane->blocks.unit_tokens);
        if (!seq->preemptions) seq->cached = seq->computed;
    }
    add_chunk(lane, head, seq->computed, tokens - seq->computed);
    return true;
}

static bool is_victim(const Lane *lane, int32_t request) {
    for (int32_t i = 0; i < lane->preempted; i++)
        if (lane->victims[i] == request) return true;
    return false;
}

/* `_admit`: waiting sequences in order, with prompts, or with decodes to go on; those before `before`, or -1. */
static void admit(Lane *lane, bool prompts, bool decodes, int32_t before) {
    while (lane->admits && lane->budget > 0 && lane->count < lane->seats) {
        int32_t head = queue_head(lane);
        if (head < 0) lane->open = true;
        if (head < 0 || is_victim(lane, head)) return;
        const Seq *seq = &lane->run->seqs[head];
        if (!fits_reserve(lane, seq)) return;
        if (before >= 0 && !queue_before(lane, head, before)) return;
        if (decodes_on(seq)) {
            if (!decodes || lane->budget < 1 + lane->model->draft_tokens) return;
        } else if (!prompts || lane->holds) {
            return;
        }
        lane->volatile_hits = false;
        if (!enter(lane, head)) return;
    }
}

/* `_go_on`: chunks of prompts under way; under a preemptive order, after the waiting ones that go before them. */
static void go_on(Lane *lane) {
    const bool preemptive = is_preemptive(lane->model->order);
    if (lane->decodes == lane->count) return;
    for (int32_t i = 0, count = lane->count; i < count; i++) {
        int32_t request = lane->running[i];
        Seq *seq = &lane->run->seqs[request];
        if (!is_prefilling(seq)) continue;
        if (preemptive) admit(lane, true, lane->model->policy == MIXED_CHUNKED, request);
        if (!lane->budget) return;
        int64_t start = seq->computed, tokens = seq->prefill - start;
        if (tokens > lane->budget) tokens = lane->budget;
        if (!blocks_grow(&lane->blocks, seq, start + tokens)) {
            lane->admits = false;
            return;
        }
        add_chunk(lane, request, (int32_t)start, tokens);
    }
}

/* `add`; false: refused. */
static bool former_add(Lane *lane, int32_t request) {
    const Seq *seq = &lane->run->seqs[request];
    int64_t most = lane->model->max_waiting_tokens;
    if (!lane->waiting.count)
        lane->waiting_since = lane->decode_steps;
    else if (most >= 0 && lane->waiting.tokens + left_tokens(seq) > most)
        return false;
    queue_push(lane, request);
    return true;
}

/* `_give_way`: prompts under way hold all blocks between them; the last ones give way until the first goes on. */
static void give_way(Lane *lane) {
    while (!lane->chunk_count && lane->count > 1) {
        preempt_last(lane);
        go_on(lane);
    }
}

/* `form`; false: nothing to compute. */
static bool former_form(Lane *lane) {
    if (lane->model->order != FCFS) sort_running(lane);
    lane->decodes = lane->chunk_count = lane->preempted = lane->admitted = 0;
    lane->context = lane->window_context = 0;
    lane->budget = lane->model->budget;
    lane->holds = holds_prompts(lane);
    lane->admits = true;
    lane->open = lane->volatile_hits = false;
    make_room(lane);
    if (lane->model->policy == MIXED_CHUNKED) {
        form_decodes(lane);
        go_on(lane);
        admit(lane, true, true, -1);
    } else if (lane->model->policy == PREFILL_FIRST) {
        go_on(lane);
        admit(lane, true, false, -1);
        if (!lane->chunk_count) {
            form_decodes(lane);
            admit(lane, false, true, -1);
            if (!lane->decodes) go_on(lane);
        }
    } else {
        form_decodes(lane);
        admit(lane, false, true, -1);
        if (!lane->decodes) {
            go_on(lane);
            admit(lane, true, false, -1);
        }
    }
    if (!lane->decodes && !lane->chunk_count) give_way(lane);
    lane->decode_steps += lane->decodes > 0;
    return lane->decodes || lane->chunk_count;
}

/* `_computed` */
static inline void note_computed(Lane *lane, int32_t request, int64_t prompt_tokens, int64_t output_tokens) {
    if (lane->model->order != FCFS) queue_served(lane, request, prompt_tokens, output_tokens);
    if (lane->blocks.unit_tokens) blocks_publish(lane->run, &lane->blocks, request);
}
