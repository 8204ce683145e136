/* Least values over many replicas without looking at all of them. */
#include "capstan.h"

static void tree_open(Run *run, MinTree *tree, int64_t count, double value) {
    tree->leaves = 1;
    while (tree->leaves < count) tree->leaves *= 2;
    tree->nodes = get_memory(run, 2 * tree->leaves, sizeof *tree->nodes);
    for (int64_t i = 0; i < 2 * tree->leaves; i++) tree->nodes[i] = INFINITY;
    for (int64_t i = 0; i < count; i++) tree->nodes[tree->leaves + i] = value;
    for (int64_t i = tree->leaves - 1; i > 0; i--) {
        double left = tree->nodes[2 * i], right = tree->nodes[2 * i + 1];
        tree->nodes[i] = left <= right ? left : right;
    }
}

static inline double tree_get(const MinTree *tree, int64_t place) { return tree->nodes[tree->leaves + place]; }

static inline double tree_min(const MinTree *tree) { return tree->nodes[1]; }

static void tree_set(MinTree *tree, int64_t place, double value) {
    int64_t i = tree->leaves + place;
    tree->nodes[i] = value;
    while (i > 1) {
        double left = tree->nodes[i & ~(int64_t)1], right = tree->nodes[i | 1];
        double least = left <= right ? left : right;
        i /= 2;
        if (tree->nodes[i] == least) return;
        tree->nodes[i] = least;
    }
}

/* The first of the places that hold the least value. */
static int64_t tree_first_min(const MinTree *tree) {
    int64_t i = 1;
    while (i < tree->leaves) i = tree->nodes[2 * i] == tree->nodes[i] ? 2 * i : 2 * i + 1;
    return i - tree->leaves;
}

/* The first place from `from` on whose value is finite and at most `limit`; -1: none. */
static int64_t tree_next(const MinTree *tree, int64_t from, double limit) {
    if (limit > DBL_MAX) limit = DBL_MAX; /* places beyond the last one hold infinity */
    if (from >= tree->leaves) return -1;
    int64_t i = tree->leaves + from;
    while (!(tree->nodes[i] <= limit)) {
        while (i & 1) i /= 2; /* a right child, or the root: go up to where a subtree lies to the right */
        if (i == 0) return -1;
        i++;
    }
    while (i < tree->leaves) i = tree->nodes[2 * i] <= limit ? 2 * i : 2 * i + 1;
    return i - tree->leaves;
}
