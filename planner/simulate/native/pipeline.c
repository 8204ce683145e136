/* Lanes behind shared stages: `planner/simulate/pipeline.py` and `stages.py`. */
#include "capstan.h"

/* `Stages.run` and `run_unlike`: a step of `seconds` (`stage_s`: by stage, where they are unlike; or NULL) enters at
 * `start_s`; returns when it leaves the last stage. */
static double stages_run(Pipeline *pipeline, double start_s, double seconds, const double *stage_s) {
    const double *passed = pipeline->lanes[0].model->times.passed;
    double delay_s = 0.0, before_s = 0.0;
    for (int32_t stage = 0; stage < pipeline->count; stage++) {
        double after_s = stage_s ? before_s + stage_s[stage] : passed[stage] * seconds;
        double held_s = pipeline->free_s[stage] - (start_s + before_s);
        if (held_s > delay_s) delay_s = held_s;
        pipeline->free_s[stage] = start_s + delay_s + after_s;
        before_s = after_s;
    }
    return start_s + delay_s + seconds;
}

/* `_first`: the lane whose time comes first; of equal ones, who has waited longest. */
static int32_t pipeline_first(const Pipeline *pipeline) {
    int32_t first = 0;
    for (int32_t i = 1; i < pipeline->count; i++) {
        double end_s = pipeline->lanes[i].clock_s, first_s = pipeline->lanes[first].clock_s;
        if (end_s < first_s || (end_s == first_s && pipeline->since_s[i] < pipeline->since_s[first])) first = i;
    }
    return first;
}

/* `_form` */
static void pipeline_form(Pipeline *pipeline, int32_t index, double time_s) {
    Lane *lane = &pipeline->lanes[index];
    double seconds = 0.0, horizon_s = lane->run->horizon_s;
    bool formed = lane_form(lane, time_s, &seconds);
    lane->clock_s = formed ? stages_run(pipeline, time_s, seconds, lane->stage_s) : head_ready_s(lane);
    pipeline->since_s[index] = lane->clock_s;
    if (formed && time_s < horizon_s)
        lane->load->busy_s += (horizon_s < lane->clock_s ? horizon_s : lane->clock_s) - time_s;
}

/* `advance` */
static void pipeline_advance(Pipeline *pipeline, double until_s) {
    for (;;) {
        int32_t index = pipeline_first(pipeline);
        Lane *lane = &pipeline->lanes[index];
        double time_s = lane->clock_s;
        pipeline->clock_s = time_s;
        if (lane->in_flight) {
            if (time_s > until_s) return;
            lane_complete(lane, time_s);
        } else if (time_s >= until_s) {
            return;
        } else if (pipeline->free_s[0] > time_s) {
            lane->clock_s = pipeline->free_s[0];
        } else {
            pipeline_form(pipeline, index, time_s);
        }
    }
}

/* `_woken`: a lane has something more to do. */
static void pipeline_woken(Pipeline *pipeline, int32_t index, bool idle) {
    if (idle) pipeline->since_s[index] = pipeline->lanes[index].clock_s;
    pipeline->clock_s = pipeline->lanes[pipeline_first(pipeline)].clock_s;
}

/* `fail` */
static int64_t pipeline_fail(Pipeline *pipeline, double now_s, int32_t *lost) {
    int64_t count = 0;
    for (int32_t i = 0; i < pipeline->count; i++) {
        Lane *lane = &pipeline->lanes[i];
        if (lane->in_flight) lane->load->busy_s -= busy_s(now_s, lane->clock_s, lane->run->horizon_s);
        count += lane_fail(lane, now_s, lost + count);
        pipeline->free_s[i] = 0.0;
    }
    pipeline->clock_s = INFINITY;
    return count;
}
