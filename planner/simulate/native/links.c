/* KV caches on their way from prefill to decode replicas: `planner/simulate/links.py`. */
#include "capstan.h"

/* Lists of transfers are linked by Transfer.next. */
static void transfer_push(List *list, Transfer *transfers, int32_t request) {
    transfers[request].next = -1;
    if (list->tail < 0)
        list->head = request;
    else
        transfers[list->tail].next = request;
    list->tail = request;
    list->count++;
}

static int32_t transfer_pop(List *list, const Transfer *transfers) {
    int32_t request = list->head;
    list->head = transfers[request].next;
    if (list->head < 0) list->tail = -1;
    list->count--;
    return request;
}

/* `next_s` */
static double link_next_s(const LinkQueue *link, const Transfer *transfers) {
    double there_s = link->flying.head >= 0 ? transfers[link->flying.head].there_s : INFINITY;
    return there_s < link->sent_s ? there_s : link->sent_s;
}

static void link_start(LinkQueue *link, Transfer *transfers, double now_s) {
    link->sending = transfer_pop(&link->waiting, transfers);
    link->started_s = now_s;
    link->sent_s = now_s + transfers[link->sending].size_bytes / link->spec->bytes_per_s;
}

/* `_stop`: what was being sent is out, or lost, at `now_s`. */
static void link_stop(LinkQueue *link, Transfer *transfers, double now_s, double horizon_s) {
    double busy_s = (horizon_s < now_s ? horizon_s : now_s) - link->started_s;
    link->spec->busy_s += busy_s > 0.0 ? busy_s : 0.0;
    link->sending = -1;
    link->sent_s = INFINITY;
    if (link->waiting.count) link_start(link, transfers, now_s);
}

/* `send` */
static void link_send(LinkQueue *link, Transfer *transfers, int32_t request, double now_s) {
    transfer_push(&link->waiting, transfers, request);
    if (link->sending < 0) link_start(link, transfers, now_s);
}

/* `arrived`: requests that are whole on the other side are written to `there`; returns their number. */
static int64_t link_arrived(LinkQueue *link, Transfer *transfers, double now_s, double horizon_s, int32_t *there) {
    int64_t count = 0;
    while (link->sending >= 0 && link->sent_s <= now_s) {
        transfers[link->sending].there_s = link->sent_s + link->spec->latency_s;
        transfer_push(&link->flying, transfers, link->sending);
        link->spec->transfers++;
        link->spec->moved_bytes += transfers[link->sending].size_bytes;
        link_stop(link, transfers, link->sent_s, horizon_s);
    }
    while (link->flying.count && transfers[link->flying.head].there_s <= now_s)
        there[count++] = transfer_pop(&link->flying, transfers);
    return count;
}

static int64_t drop_from(List *list, Transfer *transfers, int64_t group, int64_t replica, int32_t *lost) {
    List all = *list;
    int64_t count = 0;
    *list = EMPTY;
    while (all.count) {
        int32_t request = transfer_pop(&all, transfers);
        if (transfers[request].group == group && transfers[request].replica == replica)
            lost[count++] = request;
        else
            transfer_push(list, transfers, request);
    }
    return count;
}

/* `drop`: the transfers that are lost with their source are written to `lost`; returns their number. */
static int64_t link_drop(LinkQueue *link, Transfer *transfers, int64_t group, int64_t replica, double now_s,
                         double horizon_s, int32_t *lost) {
    int64_t count = drop_from(&link->flying, transfers, group, replica, lost);
    count += drop_from(&link->waiting, transfers, group, replica, lost + count);
    int32_t sending = link->sending;
    if (sending >= 0 && transfers[sending].group == group && transfers[sending].replica == replica) {
        lost[count++] = sending;
        link_stop(link, transfers, now_s, horizon_s);
    }
    return count;
}
