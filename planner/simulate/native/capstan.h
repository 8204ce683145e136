/* The compiled simulator: what Python passes in, what it gets back, and the state between.
 *
 * Every rule here is a port of the oracle (`planner/simulate/run.py` and `step.py` over `specs/service`), decision by
 * decision, and every sum of floats has the oracle's order: results are equal bit for bit. Build without contraction
 * and without fast-math, or they are not. No globals: several simulations may run in several threads.
 *
 * The files are included into one translation unit by native.c, so that small functions can be inlined.
 */
#ifndef CAPSTAN_H
#define CAPSTAN_H

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(FLT_EVAL_METHOD == 0, "doubles must be rounded to double in every operation");
_Static_assert(sizeof(double) == 8, "doubles must be IEEE binary64");

/* ---- passed in by Python (abi.py has the same structs, checked by capstan_sizes) ---- */

/* `planner.cost.pieces.DecodeTable`, its rows written out for every number of sequences. */
typedef struct {
    const double *ends;       /* [sequences + 1][pieces]: keys up to which a piece holds, the last infinite; or NULL */
    const double *constant_s; /* same shape */
    const double *slope_s;    /* same shape: seconds per key */
    int64_t pieces;           /* of a row */
} DecodeTable;

/* `planner.cost.pieces.ChunkTable`. */
typedef struct {
    const double *new_tokens;    /* [sizes] knots; or NULL for no table */
    const double *cached_tokens; /* [depths] knots, from 0 */
    const double *seconds;       /* [sizes][depths] */
    const double *first_s;       /* [firsts]: of a chunk that begins a prompt, by its tokens */
    int64_t sizes;
    int64_t depths;
    int64_t firsts;
} ChunkTable;

/* `planner.cost.step_times.StepTimes`. */
typedef struct StepTimes {
    const double *tokens_s;  /* by tokens in the step */
    const double *sampled_s; /* by rows sampled */
    const double *passed;    /* [lanes]: share of a step's time after which it has left each stage */
    double sequence_s;
    double decode_launch_s;
    double decode_context_token_s;
    double decode_window_token_s;
    double prefill_launch_s;
    double prefill_pair_s;
    double prefill_window_pair_s;
    double prefill_context_token_s;
    double prefill_step_s;
    double eager_s; /* least of a step that holds chunks */
    double request_s;
    double host_token_s;   /* per token moved between device and host */
    int64_t window_tokens; /* of windowed layers; -1: none */
    int64_t lanes;         /* batches in flight of one replica = pipeline stages */
    DecodeTable decode_table;
    DecodeTable decode_window_table;
    ChunkTable chunk_table;
    const struct StepTimes *stages; /* [lanes]: of each stage, where they are unlike machines; or NULL */
} StepTimes;

enum { MIXED_CHUNKED = 0, PREFILL_FIRST = 1, DECODE_FIRST = 2 };              /* Scheduling.prefill_policy */
enum { FCFS = 0, PRIORITY = 1, EDF = 2, SJF = 3, SRPT = 4, MLFQ = 5, VTC = 6 }; /* Scheduling.order */

/* `ReplicaModel` with its `Scheduling`, in one group. */
typedef struct {
    StepTimes times;
    const uint8_t *holds; /* [requests]: whether a replica could serve each alone */
    double output_reserve; /* share of an output that has to be free beside the running; 0: none */
    double acceptance;     /* of a draft token whose predecessors were accepted */
    double draft_s;        /* time that drafting adds to a step */
    int64_t seats;         /* max_num_seqs of a replica */
    int64_t budget;        /* max_num_batched_tokens of a step */
    int64_t max_model_len; /* tokens */
    int64_t blocks;        /* KV blocks of a replica */
    int64_t block_tokens;
    int64_t host_blocks; /* of a replica's host tier */
    int64_t unit_tokens; /* of the prefix cache; 0: none */
    int64_t policy;      /* MIXED_CHUNKED, ... */
    int64_t order;       /* FCFS, ... */
    int64_t swaps;       /* whether preempted sequences go to the host tier */
    int64_t batch_wait_steps;
    int64_t max_waiting_tokens; /* -1: no limit */
    int64_t mlfq_quantum_tokens;
    int64_t draft_tokens; /* per step and sequence; 0: no speculation */
} Model;

enum { UNIFIED = 0, PREFILL = 1, DECODE = 2 }; /* FleetGroup.role */

/* `FleetGroup`. */
typedef struct {
    const int64_t *models; /* [replicas]: into Problem.models */
    const double *weights; /* [replicas]: capacity; or NULL */
    double bytes_per_token; /* of a handoff */
    int64_t replicas;
    int64_t role;   /* UNIFIED, ... */
    int64_t unlike; /* whether its replicas have several models */
    int64_t target; /* group of a handoff; -1: none */
    int64_t link;   /* of a handoff */
} GroupSpec;

/* `planner.simulate.links.Link` and, after the run, what it carried. */
typedef struct {
    double bytes_per_s;
    double latency_s;
    double busy_s; /* inside the arrival window */
    double moved_bytes;
    int64_t transfers; /* sent whole */
} LinkSpec;

/* A replica goes down (+1) or up (-1). */
typedef struct {
    double time_s;
    int64_t group;
    int64_t replica;
    int64_t step;
} FaultEvent;

/* `specs.service.ClassSplit` of one request class. */
typedef struct {
    const int64_t *groups; /* [count] */
    const double *shares;  /* [count], adding up to 1 */
    int64_t *sent;         /* [count], zeros: requests so far */
    int64_t count;
    int64_t seen; /* requests of the class so far */
} ClassSplit;

/* `planner.simulate.refute._Watch`: one requirement on one class. */
typedef struct {
    const int64_t *requests; /* [count] of the class, in order of arrival */
    uint8_t *missed;         /* [requests of the workload], zeros */
    double ttft_s;           /* thresholds; NaN: none */
    double e2e_s;
    double tpot_s;
    int64_t count;
    int64_t class_index;
    int64_t allowed;   /* misses */
    int64_t misses;    /* so far */
    int64_t ttft_next; /* first request of the class that is not overdue yet */
    int64_t e2e_next;
} Watch;

/* Router inside a group. */
enum { LEAST_OUTSTANDING = 0, ROUND_ROBIN = 1, LEAST_KV = 2, POWER_OF_TWO = 3, PREFIX_AWARE = 4, STICKY = 5 };

/* `Workload`, groups, routes, conditions and objectives. Optional arrays are NULL. */
typedef struct {
    const int64_t *class_index;      /* [count] */
    const double *arrival_s;         /* [count] */
    const int64_t *prompt_tokens;    /* [count] */
    const int64_t *output_tokens;    /* [count] */
    const int64_t *tenant_index;     /* [count], optional */
    const int64_t *priority;         /* [count], optional */
    const double *deadline_s;        /* [count], optional */
    const int64_t *predicted_tokens; /* [count], optional: of output */
    const int64_t *session;          /* [count], optional */
    const int64_t *after;            /* [count], optional: predecessor, -1: none */
    const double *gap_s;             /* [count], with `after` */
    const int64_t *prefix_offsets;   /* [count + 1], optional: into prefix_ids */
    const int64_t *prefix_ids;
    const Model *models;         /* [model_count] */
    const GroupSpec *groups;     /* [group_count] */
    LinkSpec *links;             /* [link_count] */
    const FaultEvent *faults;    /* [fault_count], by time, group, replica */
    ClassSplit *splits;          /* [classes] */
    Watch *watches;              /* [watch_count] */
    int (*progress)(double share); /* told now and then which share of the requests has arrived; not 0: stop */
    double horizon_s;
    double poll_s; /* routers see loads as of the last multiple; 0: as they are */
    uint64_t seed; /* of routers and speculation, modulo 2^64 */
    int64_t count; /* requests */
    int64_t tenants;
    int64_t prefix_unit_tokens; /* of prefix_ids */
    int64_t group_count;
    int64_t link_count;
    int64_t fault_count;
    int64_t watch_count;
    int64_t refuting;   /* whether objectives may end the run */
    int64_t router;     /* LEAST_OUTSTANDING, ... */
    int64_t max_events; /* steps, and requests sent again */
    int64_t clients;    /* of a closed loop; 0: arrivals are those of the workload */
} Problem;

/* `planner.simulate.record.LaneLoad`. */
typedef struct {
    double busy_s; /* inside the arrival window */
    int64_t running_peak;
    int64_t blocks_peak;
    int64_t preemptions;
    int64_t steps;
    int64_t swaps;
    int64_t moved_tokens;
    int64_t looked_up_tokens;
    int64_t hit_tokens;
} LaneLoad;

/* What comes back; arrays are allocated and preset by Python. */
typedef struct {
    double *arrival_s;     /* [count], actual ones; preset to those of the workload; infinite: not known */
    double *start_s;       /* [count], NaN: start of the first step that holds the request */
    double *first_s;       /* [count], NaN: end of the step that sampled the first token */
    double *finish_s;      /* [count], NaN: end of the step that sampled the last one */
    int64_t *preemptions;  /* [count], 0 */
    int64_t *cached;       /* [count], 0: prompt tokens found in the prefix cache at the first admission */
    int64_t *group_of;     /* [count], -1 */
    int64_t *replica_of;   /* [count], -1 */
    int64_t *decode_group_of;   /* [count], -1 */
    int64_t *decode_replica_of; /* [count], -1 */
    int64_t *refusal;      /* [count], 0; else TOO_LONG, ... */
    int64_t *lost;         /* [groups], 0: requests that were on a replica when it failed */
    LaneLoad *loads;       /* by group, replica, lane */
    int64_t events;        /* steps formed, and requests sent again */
    int64_t bound_hit;     /* whether max_events ended the run */
    int64_t refuted;       /* watch that ended the run; -1: none */
} Outcome;

enum { TOO_LONG = 1, TOO_LARGE = 2, QUEUE_FULL = 3, SESSION_ENDED = 4, NO_REPLICA = 5 }; /* result.REFUSALS */

#define CHECK_EVERY 16   /* arrivals between two looks at the limits: these four as in run.py */
#define LOOK_S 2.0       /* between two looks otherwise */
#define REPORT_EVERY 500 /* arrivals between two reports of progress */
#define LISTEN_EVERY 65536 /* formed steps between two moments at which the caller can stop the run */
#define IMBALANCE 32     /* requests: `PrefixAware` */
#define MAX_UNITS 65536  /* units that `PrefixAware` remembers of a replica */

/* ---- state ---- */

enum { OK = 0, NO_MEMORY = 1, BOUND_HIT = 2, STOPPED = 3 };

/* `specs.service.Sequence`; links are request numbers, -1 ends them. One per request: it is in one place at a time. */
typedef struct {
    double ready_s;       /* when it may be scheduled: sent + request_s */
    double key;           /* of its rank, while it waits and when the running were sorted last */
    int32_t output;       /* tokens to generate; from here to `gone`: what every step looks at, in one line of cache */
    int32_t generated;    /* tokens sampled so far */
    int32_t computed;     /* tokens in the cache, or in the host tier */
    int32_t prefill;      /* tokens known at admission */
    int32_t capacity;     /* tokens that its blocks hold */
    bool chunked;         /* has a chunk in the step in flight */
    bool gone;            /* leaves the batch at the end of this step */
    int32_t prompt;       /* tokens */
    int32_t predicted;    /* output tokens, as a predictor says */
    int32_t units;        /* prefix units in its blocks */
    int64_t number;       /* breaks ties of the rank */
    int64_t level_tokens; /* served at its level */
    int32_t host_blocks;  /* that keep its computed tokens */
    int32_t cached;       /* tokens found in the prefix cache at the first admission */
    int32_t preemptions;
    int32_t level; /* of mlfq */
    int32_t next;  /* in a queue */
    int32_t left;  /* in a heap */
    int32_t right;
} Seq;

typedef struct {
    int32_t head, tail, count;
} List;

/* Least value and its first place among `leaves`: nodes[1] is the root, nodes[leaves + i] belongs to place i. */
typedef struct {
    double *nodes;
    int64_t leaves;
} MinTree;

enum { HELD = 1, IDLE = 2, ON_HOST = 3 };

/* A prefix unit that is known. */
typedef struct {
    int64_t id;
    int32_t holders; /* sequences */
    int32_t chain;   /* next in its bucket, or next free; -1 ends */
    int32_t previous, next; /* in the list of idle units or of those on the host */
    int32_t where;   /* HELD, ... */
} Unit;

/* Units by id: chained hashing over a pool whose places never move. */
typedef struct {
    Unit *pool;
    int32_t *buckets; /* [bucket_count], -1: empty */
    int64_t bucket_count; /* a power of two; 0: nothing allocated yet */
    int32_t size;     /* of the pool */
    int32_t used;     /* places of the pool that were ever used */
    int32_t free;     /* first place that was given back */
    List idle;        /* least recently used first */
    List host;        /* oldest first */
} UnitTable;

/* What all lanes of a run share: `planner.simulate.record.Record`. */
typedef struct {
    const Problem *problem;
    Outcome *out;
    Seq *seqs;          /* [count] */
    double *deadline_s; /* [count]: with the delay of dependent requests; or NULL */
    int32_t *handles;   /* [prefix_ids]: unit that a sequence holds, -1: a copy of its own; or NULL */
    int32_t *finished;  /* [count]: requests in the order in which they were found finished */
    int32_t *refused;   /* [count]: that found too much waiting */
    int32_t *handed;    /* [count]: that have their first token and leave for the decode side */
    int64_t finished_count;
    int64_t refused_count;
    int64_t handed_count;
    int64_t drained_count; /* finished ones that the refuter has seen */
    int64_t events_left;
    int64_t formed; /* steps, but for those that repeat one */
    double share;   /* of the requests that have arrived */
    double horizon_s;
    int status;     /* OK, or what ended the run */
    jmp_buf escape; /* nothing goes on after a bound or without memory */
} Run;

/* `specs.service.Chunk` */
typedef struct {
    int32_t request;
    int32_t start;
    int32_t tokens;
} Chunk;

/* `specs.service.BlockManager`. Ids of blocks play no part in what a step takes: they are only counted. */
typedef struct {
    int64_t total;
    int64_t free; /* on the free list */
    int64_t block_tokens;
    int64_t unit_tokens; /* of the prefix cache; 0: none */
    int64_t unit_blocks;
    int64_t host_total;
    int64_t pinned; /* host blocks of sequences that are swapped out */
    int64_t moved;  /* tokens between host and device since the last step */
    UnitTable table;
} Blocks;

/* `specs.service.order.Queue` and its kinds. */
typedef struct {
    List list;        /* fcfs */
    List *tenants;    /* vtc, [tenants] */
    int64_t *counters; /* vtc, [tenants]: tokens, weighted */
    int64_t count;
    int64_t tokens;   /* known and not computed, of all that wait */
    int64_t arrived;  /* last number given */
    int64_t last;     /* vtc: tenant of which something waited last, -1: none */
    int32_t root;     /* of the heap of the other orders */
} Queue;

struct Group;
struct Transfer;

/* `planner.simulate.step.StepLane` with its `BatchFormer`.
 *
 * A step that only decodes is repeated while nothing but contexts changes; what its sequences got meanwhile is written
 * to them when it matters (`lane_settle`).
 */
typedef struct {
    Run *run;
    struct Group *group;
    const Model *model;
    LaneLoad *load;
    int32_t *running; /* [seats]: requests in order of service */
    Chunk *chunks;    /* [seats]: of the step in flight */
    int32_t *victims; /* [seats]: preempted by the step in flight */
    int32_t *ends;    /* [seats]: scratch, what a step that ends gives its first or its last token */
    List pending;     /* arrived, not ready yet */
    Queue waiting;
    Blocks blocks;
    double clock_s; /* end of the step in flight, or when one may be formed */
    double wake_s;  /* when an arrival may end the repetition */
    double fixed_s; /* of the repeated step: what does not depend on contexts */
    double *stage_s;       /* [lanes]: of the step in flight, by unlike stage; or NULL */
    double *stage_fixed_s; /* [lanes]: `fixed_s` of each; or NULL */
    int64_t context;        /* KV tokens that the last decodes read */
    int64_t window_context; /* the same in windowed layers */
    int64_t reserved_blocks; /* of the running, for output_reserve */
    int64_t decode_steps;    /* steps with decodes that were formed */
    int64_t waiting_since;   /* value of decode_steps when something came to wait alone */
    int64_t budget;          /* tokens that are left in the step that is formed */
    int32_t replica;         /* in its group */
    int32_t number;          /* in its replica */
    int32_t seats;
    int32_t count; /* running */
    int32_t chunk_count;
    int32_t decodes;   /* in the step in flight */
    int32_t below;     /* of these: context below the window */
    int32_t preempted; /* victims */
    int32_t admitted;  /* by the step that was formed last */
    int32_t left;      /* further repetitions */
    int32_t formed;    /* steps with decodes not written to the sequences yet, the one in flight included */
    bool in_flight;
    bool holds;    /* no prompt is admitted in the step that is formed */
    bool admits;   /* blocks have not run out in it */
    bool open;     /* an arrival may change the steps to come */
    bool volatile_hits; /* the head's prefix is partly in units that may be evicted */
} Lane;

/* `planner.simulate.pipeline.PipelinedReplica` */
typedef struct {
    Lane *lanes;     /* [count] */
    double *since_s; /* [count]: end of the step in flight, or since when the lane has something to do */
    double *free_s;  /* [count]: when each stage is free again */
    double clock_s;
    int32_t count;
} Pipeline;

/* `planner.simulate.group.Group` */
typedef struct Group {
    const GroupSpec *spec;
    const Model **models; /* [replicas] */
    Lane **lanes;         /* [replicas]: the lanes of each */
    Pipeline *pipelines;  /* [replicas]; of those with several lanes */
    int64_t **by_lane;    /* [replicas][lanes]: requests sent and not finished */
    MinTree outstanding;  /* the same by replica */
    double *polled;       /* [replicas]: the same as of the last poll; or NULL */
    double *kv_blocks;    /* [replicas]: in use, as the router sees it; or NULL */
    UnitTable *sent;      /* [replicas]: units of prompts sent there, for PREFIX_AWARE; or NULL */
    int32_t *up;          /* [up_count], ascending */
    int32_t *choice;      /* [replicas]: room for a choice among those up */
    int64_t up_count;
    int64_t first_replica; /* of the group in the fleet */
    int64_t number;        /* of the group */
    int64_t next;          /* round robin */
    int64_t max_model_len; /* of the largest */
    List waiting;          /* for a replica to come up */
    struct Transfer *transfers; /* of the fleet */
} Group;

/* A KV cache on its way: `planner.simulate.links.Transfer`. */
typedef struct Transfer {
    double size_bytes;
    double there_s; /* when it is whole on the other side */
    int32_t group, replica, lane; /* where it comes from */
    int32_t next;
} Transfer;

/* `planner.simulate.links.LinkQueue` */
typedef struct {
    LinkSpec *spec;
    List waiting;
    List flying;
    double started_s;
    double sent_s;   /* when the one being sent is out */
    int32_t sending; /* -1: none */
} LinkQueue;

/* `planner.simulate.arrivals` */
typedef struct {
    int32_t *first_follower; /* [count], -1: none; or NULL where nothing is dependent */
    int32_t *next_follower;  /* [count] */
    int32_t *stack;          /* [count] */
    int64_t next;            /* request that is not dependent */
    int64_t sent;            /* by clients */
    int32_t root;            /* heap of requests whose predecessor has ended */
    bool dependent;
} Arrivals;

/* `planner.simulate.run.FleetRun` */
typedef struct {
    Run run;
    Arrivals arrivals;
    Group *groups;
    LinkQueue *links;
    Transfer *transfers; /* [count]; or NULL */
    int32_t *scratch;    /* [count]; or NULL */
    MinTree clocks;      /* by replica of the fleet: its clock_s */
    int64_t *group_of;   /* [replicas of the fleet] */
    int32_t *down;       /* [replicas of the fleet]: faults under way */
    int64_t *recovered;  /* [fault_count]: faults that end at this moment */
    int64_t replicas;    /* of the fleet */
    int64_t next_fault;
    int64_t polled;  /* multiple of poll_s at which routers looked last */
    int64_t arrived; /* requests let in */
    int64_t ended;   /* finished ones that arrivals know of */
    int64_t refused; /* refused ones that are dealt with */
    double look_s;   /* next look at the limits */
    bool coupled;    /* every end of a step is a moment */
} Fleet;

#endif
