/* Seconds of a step: `planner/cost/step_times.py` and `planner/cost/pieces.py`, term by term. */
#include "capstan.h"

/* Where in `row` the piece of `keys` begins: `bisect_left` over the ends. */
static inline double decode_table_s(const DecodeTable *table, int64_t decodes, int64_t keys) {
    const double *ends = table->ends + decodes * table->pieces;
    int64_t piece = 0;
    while (ends[piece] < (double)keys) piece++;
    int64_t at = decodes * table->pieces + piece;
    return table->constant_s[at] + table->slope_s[at] * (double)keys;
}

/* `StepTimes.decode_s` */
static inline double decode_s(const StepTimes *t, int64_t decodes, int64_t context, int64_t window_context) {
    double seconds = t->decode_launch_s;
    seconds += t->decode_context_token_s * (double)context + t->decode_window_token_s * (double)window_context;
    if (t->decode_table.ends) seconds += decode_table_s(&t->decode_table, decodes, context);
    if (t->decode_window_table.ends) seconds += decode_table_s(&t->decode_window_table, decodes, window_context);
    return seconds;
}

static int64_t chunk_pairs(int64_t tokens, int64_t cached) { return tokens * cached + tokens * (tokens + 1) / 2; }

static int64_t chunk_window_pairs(int64_t tokens, int64_t cached, int64_t window) {
    int64_t growing = tokens < window - cached ? tokens : window - cached;
    if (growing < 0) growing = 0;
    return chunk_pairs(growing, cached) + (tokens - growing) * window;
}

/* Index of the knot below `value`, and in `share` the part of the way to the next; clamped at both ends. */
static int64_t place(const double *knots, int64_t count, double value, double *share) {
    if (value >= knots[count - 1]) {
        *share = 1.0;
        return count - 2;
    }
    *share = 0.0;
    if (value <= knots[0]) return 0;
    int64_t below = 0;
    while (knots[below + 1] <= value) below++;
    *share = (value - knots[below]) / (knots[below + 1] - knots[below]);
    return below;
}

/* `ChunkTable.chunk_s` */
static double chunk_table_s(const ChunkTable *t, int64_t tokens, int64_t cached) {
    if (cached == 0) return t->first_s[tokens < t->firsts ? tokens : t->firsts - 1];
    double x, y;
    int64_t i = place(t->new_tokens, t->sizes, (double)tokens, &x);
    int64_t j = place(t->cached_tokens, t->depths, (double)cached, &y);
    const double *row = t->seconds + i * t->depths, *above = row + t->depths;
    double low = row[j] + (row[j + 1] - row[j]) * y;
    double high = above[j] + (above[j + 1] - above[j]) * y;
    return low + (high - low) * x;
}

/* `StepTimes.chunk_s` */
static double chunk_s(const StepTimes *t, int64_t tokens, int64_t cached) {
    double seconds = t->prefill_launch_s + t->prefill_context_token_s * (double)cached;
    seconds += t->prefill_pair_s * (double)chunk_pairs(tokens, cached);
    if (t->window_tokens >= 0)
        seconds += t->prefill_window_pair_s * (double)chunk_window_pairs(tokens, cached, t->window_tokens);
    if (t->chunk_table.new_tokens) seconds += chunk_table_s(&t->chunk_table, tokens, cached);
    return seconds;
}
