/* What a local step does between its convolutions, in one or two passes over memory.
 *
 * A step at the usual sizes spends more time reading and writing maps than multiplying: library calls read a map
 * once for every elementary operation.  Here each map is read once or twice.  Maps are rows of consecutive numbers
 * (images of flattened maps, or positions of channels), float32 or bfloat16, worked on sixteen at a time; sums are
 * float32 in sixteen lanes, added up in double precision a block at a time.  Callers own all memory, and have
 * checked that every row, or all rows together, are a multiple of sixteen long: see fused.py.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#define LANES 16
#define BLOCK 1024 /* numbers between two additions to a double, and columns that stay in the nearest cache */
#define STRETCH 64 /* tiles between two additions to doubles */
#define MOST_TAPS 49 /* of a kernel of seven by seven */

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Flags __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

typedef struct {
    void *x, *y; /* small maps [lines, width, channels], and of twice the size; x NULL for none */
    const void *shift;
    void *into;
    Py_ssize_t height, width, channels; /* of a small map */
    int half;
} Pixels;

typedef struct {
    void *phi;             /* [rows, width], rectified in place where asked */
    const int64_t *starts; /* [groups + 1]: rows of a group are consecutive */
    const float *goals1, *goals2; /* [groups, width]; goals2 NULL without second moments */
    float *rests1, *rests2;       /* [groups, width]: sums of a group less its goal, where it has rows */
    float *scales;                /* [rows, 4]: scale1 / |phi|, its along, scale2 / |phi^2|, its along */
    Py_ssize_t groups, width, blocks, lines; /* blocks of columns; lines of a row's pooled map */
    double scale1, scale2;
    int half, rectify;
    double *along, *squares;  /* [blocks, rows, 2] and [groups, blocks], to work with */
    Py_ssize_t group, last;   /* the groups that are worked on */
    const float *factors;     /* [groups] */
    const void *later;        /* [rows, width], or NULL */
    Pixels pixels;            /* x: pooled maps, or what came for them; NULL where there are none; into: [rows, width] */
} Match;

typedef struct {
    const void *x, *given, *beside;
    void *into;
    Py_ssize_t rows, channels, tile; /* tile: so many numbers are whole rows and whole vectors */
    float *mean, *inverse;           /* [tile], one row's figures repeated */
    float *about, *pulls, *lanes;    /* [tile], [2, tile], [stretches, 2, tile], to work with */
    double *sums;                    /* [2, channels], to work with */
    int half;
} Norm;

/* Lines, or columns, that a kernel is moved along: so many read and written; those read lie from `lead` on in a room
 * with zeros around them. */
typedef struct {
    Py_ssize_t sources, results, lead, room;
} Axis;

/* Results that the same taps of a kernel make, `begin` to `end` of all: what stride 2 takes apart on the way back. */
typedef struct {
    Py_ssize_t begin, end, taps;
    Py_ssize_t tap[MOST_TAPS], step[MOST_TAPS]; /* its number, and how far from a result's start it reads */
} Phase;

/* A frozen matrix [depth, width] in panels of sixteen columns, [panels, depth, 16], the last with zeros. */
typedef struct {
    const float *panels; /* NULL of none */
    Py_ssize_t depth, width;
} Product;

typedef struct {
    const void *from;            /* [images, sources, channels], or what a product makes that of; NULL for zeros */
    void *into, *small;          /* [images, results, channels], and averaged; NULL for none */
    const float *weights;        /* [taps, channels] */
    const float *before, *after; /* [channels]: biases; before NULL: what is read has been clamped */
    uint16_t *inner, *outer;     /* [channels / 16, images, pixels], what the clamps let pass; NULL where nobody asks */
    Product made, goes;          /* before the convolution and after it: float32 only */
    const float *plus;           /* [images, results, goes.width], or NULL */
    float *out;                  /* the same */
    Py_ssize_t images, channels, sources, results;
    Py_ssize_t square;   /* pixels that are averaged to one */
    Py_ssize_t together; /* images that are worked on at a time */
    Py_ssize_t space;    /* of a room for sixteen channels of them */
    Axis rows, columns;
    int half, phases, failed;
    Phase phase[4];
    Py_ssize_t *starts, *places; /* [results]: in the room, and the result's pixel */
    Py_ssize_t *spots;           /* [together, sources]: where they are in the room */
    Py_ssize_t *cells;           /* of pixels of the map after the convolution: their place in the averaged one */
} Each;

typedef struct {
    const float *weights, *theta, *uniform;
    const void *gradient;
    void *into;
    int half;
} Scores;

typedef struct {
    float *scores, *first, *second;
    const float *gradient;
    float beta1, beta2, rate, correction, tiny;
} Adam;

static int kind; /* of processor, as kernels were made for: 3 has AVX-512 and rounds to bfloat16, 2 AVX-512, 1 AVX2 */

static Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) { return a < b ? a : b; }

static double inverse(double square) { return square > 1e-24 ? 1 / sqrt(square) : square - square; /* NaN of NaN */ }

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 11
#define NAMED(name) name##_rounding
#define WHOLE
#define CONVERTED
#pragma GCC push_options
#pragma GCC target("arch=cooperlake,prefer-vector-width=512")
#include "_kernels.h"
#pragma GCC pop_options
#undef CONVERTED
#undef WHOLE
#undef NAMED
#define IF_ROUNDING(name) kind == 3 ? name##_rounding :
#define ROUNDS __builtin_cpu_supports("avx512bf16")
#else
#define IF_ROUNDING(name)
#define ROUNDS 0
#endif
#define NAMED(name) name##_512
#define WHOLE
#pragma GCC push_options
#pragma GCC target("arch=skylake-avx512,prefer-vector-width=512")
#include "_kernels.h"
#pragma GCC pop_options
#undef WHOLE
#undef NAMED
#define NAMED(name) name##_256
#pragma GCC push_options
#pragma GCC target("arch=haswell")
#include "_kernels.h"
#pragma GCC pop_options
#undef NAMED
#define BEST(name) (IF_ROUNDING(name) kind == 2 ? name##_512 : kind == 1 ? name##_256 : name##_any)

static int best_kind(void) {
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return ROUNDS ? 3 : 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
#else
#define BEST(name) name##_any
static int best_kind(void) { return 0; }
#endif
#define NAMED(name) name##_any
#include "_kernels.h"

/* ------------------------------------------------------------------ Python's side: addresses and sizes */

static void *at(unsigned long long address) { return (void *)(uintptr_t)address; }

/* The least multiple of the channels that is a multiple of sixteen, and not short. */
static Py_ssize_t tile_of(Py_ssize_t channels) {
    Py_ssize_t tile = channels;
    while (tile % LANES) tile += channels;
    while (tile < 4 * LANES) tile *= 2;
    return tile;
}

/* ------------------------------------------------------------------ threads */

typedef void Work(void *given, Py_ssize_t from, Py_ssize_t to);

/* What torch's own threads are asked with, `GOMP_parallel`: others beside them would be in their way. */
static void (*parallel)(void (*)(void *), void *, unsigned, unsigned);

typedef struct {
    Work *work;
    void *given;
    Py_ssize_t count, unit, pieces, next;
} Shared;

static void take(void *given) {
    Shared *s = given;
    for (Py_ssize_t piece; (piece = __atomic_fetch_add(&s->next, 1, __ATOMIC_RELAXED)) < s->pieces;) {
        Py_ssize_t units = (s->count + s->unit - 1) / s->unit, from = units * piece / s->pieces * s->unit;
        s->work(s->given, from, least(units * (piece + 1) / s->pieces * s->unit, s->count));
    }
}

/* Has all of `count` worked on, whole units of it by each thread.  What is found does not depend on their number. */
static void share(Work *work, void *given, Py_ssize_t count, Py_ssize_t unit, int threads) {
    Shared shared = {work, given, count, unit, threads, 0};
    if (threads > 1 && parallel && count > unit) parallel(take, &shared, (unsigned)threads, 0);
    else work(given, 0, count);
}

static PyObject *py_use(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long address;
    if (!PyArg_ParseTuple(args, "K", &address)) return NULL;
    parallel = (void (*)(void (*)(void *), void *, unsigned, unsigned))(uintptr_t)address;
    Py_RETURN_NONE;
}

/* ------------------------------------------------------------------ what Python calls */

/* Totals of some groups, and the scales of their rows, from what was found block by block. */
static void finish(const Match *m, float *totals) {
    for (Py_ssize_t group = m->group; group < m->last; group++) {
        double total = 0;
        for (Py_ssize_t block = 0; block < m->blocks; block++) total += m->squares[group * m->blocks + block];
        if (m->starts[group] == m->starts[group + 1]) total = BEST(unmet)(m, group);
        totals[group] = (float)total;
        for (Py_ssize_t row = m->starts[group]; row < m->starts[group + 1]; row++) {
            double along1 = 0, along2 = 0;
            for (Py_ssize_t block = 0; block < m->blocks; block++) {
                along1 += m->along[2 * (block * m->starts[m->groups] + row)];
                along2 += m->along[2 * (block * m->starts[m->groups] + row) + 1];
            }
            float *scale = m->scales + 4 * row;
            scale[1] = (float)(along1 * pow(scale[0], 3) / (m->scale1 * m->scale1));
            scale[3] = m->goals2 ? (float)(along2 * pow(scale[2], 3) / (m->scale2 * m->scale2)) : 0;
        }
    }
}

/* By itself a thread takes one group after another, whose rows stay near between the passes. */
static void match(Match *m, float *totals, int threads) {
    int together = threads > 1;
    for (Py_ssize_t group = 0; group < (together ? 1 : m->groups); group++) {
        m->group = together ? 0 : group, m->last = together ? m->groups : group + 1;
        if (together) share(BEST(rows_met), m, m->starts[m->groups], 1, threads);
        else BEST(rows_met)(m, m->starts[group], m->starts[group + 1]);
        share(BEST(blocks_met), m, m->blocks, 1, threads);
        finish(m, totals);
    }
}

/* Forwards totals [groups] are written; back they are what a group's gradient is multiplied by. */
static PyObject *py_match(PyObject *self, PyObject *args) {
    (void)self;
    Match m = {0};
    unsigned long long phi, starts, goals1, goals2, rests1, rests2, scales, small, totals, later, into;
    int back, threads;
    if (!PyArg_ParseTuple(args, "(KKKKKKK)nndd(Knnn)(KKK)pppi", &phi, &starts, &goals1, &goals2, &rests1, &rests2,
                          &scales, &m.groups, &m.width, &m.scale1, &m.scale2, &small, &m.lines, &m.pixels.width,
                          &m.pixels.channels, &totals, &later, &into, &m.half, &m.rectify, &back, &threads))
        return NULL;
    m.phi = at(phi), m.starts = at(starts), m.goals1 = at(goals1), m.goals2 = at(goals2);
    m.rests1 = at(rests1), m.rests2 = at(rests2), m.scales = at(scales), m.factors = at(totals), m.later = at(later);
    m.pixels.x = at(small), m.pixels.y = m.phi, m.pixels.into = at(into), m.pixels.half = m.half;
    m.blocks = (m.width + BLOCK - 1) / BLOCK;
    Py_ssize_t rows = m.starts[m.groups];
    m.along = PyMem_Calloc(m.blocks * (2 * rows + m.groups) + 1, sizeof(double));
    if (!m.along) return PyErr_NoMemory();
    m.squares = m.along + 2 * m.blocks * rows;
    Py_BEGIN_ALLOW_THREADS
    if (back) share(BEST(unmatch), &m, rows, 1, threads);
    else match(&m, at(totals), threads);
    Py_END_ALLOW_THREADS
    PyMem_Free(m.along);
    Py_RETURN_NONE;
}

/* Adds up what was found stretch by stretch. */
static void add_up(const Norm *n, Py_ssize_t stretches) {
    memset(n->sums, 0, 2 * n->channels * sizeof(double));
    for (Py_ssize_t stretch = 0; stretch < stretches; stretch++)
        for (Py_ssize_t c = 0; c < n->tile; c++) {
            n->sums[c % n->channels] += n->lanes[2 * stretch * n->tile + c];
            n->sums[n->channels + c % n->channels] += n->lanes[(2 * stretch + 1) * n->tile + c];
        }
}

/* About the first row, so that squares of a large mean do not drown the variance. */
static void norm(Norm *n, Py_ssize_t stretches, double epsilon, int threads) {
    BEST(begun)(n);
    share(BEST(summed), n, stretches, 1, threads);
    add_up(n, stretches);
    BEST(settled)(n, epsilon);
    share(BEST(normed), n, stretches, 1, threads);
}

static void unnorm(Norm *n, Py_ssize_t stretches, int threads) {
    share(BEST(summed), n, stretches, 1, threads);
    add_up(n, stretches);
    for (Py_ssize_t c = 0; c < n->tile; c++) {
        n->pulls[c] = (float)(n->sums[c % n->channels] / n->rows);
        n->pulls[n->tile + c] = (float)(n->sums[n->channels + c % n->channels] / n->rows);
    }
    share(BEST(unnormed), n, stretches, 1, threads);
}

static PyObject *py_norm(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long x, given, beside, into, figures;
    Norm n;
    double epsilon;
    int back, threads;
    if (!PyArg_ParseTuple(args, "(KKKKK)nndppi", &x, &given, &beside, &into, &figures, &n.rows, &n.channels, &epsilon,
                          &n.half, &back, &threads))
        return NULL;
    n.x = at(x), n.given = at(given), n.beside = at(beside), n.into = at(into), n.tile = tile_of(n.channels);
    n.mean = at(figures), n.inverse = n.mean + n.tile;
    Py_ssize_t stretches = (n.rows * n.channels + STRETCH * n.tile - 1) / (STRETCH * n.tile);
    n.sums = PyMem_Malloc(2 * n.channels * sizeof(double) + (3 + 2 * stretches) * n.tile * sizeof(float));
    if (!n.sums) return PyErr_NoMemory();
    n.about = (float *)(n.sums + 2 * n.channels), n.pulls = n.about + n.tile, n.lanes = n.pulls + 2 * n.tile;
    Py_BEGIN_ALLOW_THREADS
    if (back) unnorm(&n, stretches, threads);
    else norm(&n, stretches, epsilon, threads);
    Py_END_ALLOW_THREADS
    PyMem_Free(n.sums);
    Py_RETURN_NONE;
}

static PyObject *py_tile(PyObject *self, PyObject *args) {
    (void)self;
    Py_ssize_t channels;
    if (!PyArg_ParseTuple(args, "n", &channels)) return NULL;
    return PyLong_FromSsize_t(tile_of(channels < 1 ? 1 : channels));
}

/* Lines of small maps, or single pixels of grey ones: `forth` or `back` of them. */
static PyObject *pixels(PyObject *args, Work *forth, Work *back, Py_ssize_t unit) {
    unsigned long long x, y, shift, into;
    Py_ssize_t lines;
    Pixels p;
    int backwards, threads;
    if (!PyArg_ParseTuple(args, "(KKKK)nnnnppi", &x, &y, &shift, &into, &lines, &p.height, &p.width, &p.channels,
                          &p.half, &backwards, &threads))
        return NULL;
    p.x = at(x), p.y = at(y), p.shift = at(shift), p.into = at(into);
    Py_BEGIN_ALLOW_THREADS
    share(backwards ? back : forth, &p, lines, unit, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_doubled(PyObject *self, PyObject *args) {
    (void)self;
    return pixels(args, BEST(doubled), BEST(halved), 1);
}

static PyObject *py_pooled(PyObject *self, PyObject *args) {
    (void)self;
    return pixels(args, BEST(pooled), BEST(unpooled), 1);
}

static PyObject *py_tripled(PyObject *self, PyObject *args) {
    (void)self;
    return pixels(args, BEST(tripled), BEST(untripled), BLOCK);
}

/* ------------------------------------------------------------------ each channel's own convolution */

/* Whether a tap of a phase reads a source for any result. */
static int reaches(const Axis *a, Py_ssize_t first, Py_ssize_t step, Py_ssize_t count, Py_ssize_t offset) {
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t source = first + i * step + offset - a->lead;
        if (source >= 0 && source < a->sources) return 1;
    }
    return 0;
}

/* One axis of a phase: its results are `result`, `result + by`, …; the first starts at `start`, the next `step` on;
 * its taps are `tap`, `tap + by`, …, each reading `hop` further. */
typedef struct {
    Py_ssize_t result, by, count, start, step, tap, taps, hop;
} Turn;

/* Forwards a result reads from `stride` times its place on; back, those of a phase read where they were read from. */
static Turn turn_of(Axis *a, Py_ssize_t kernel, Py_ssize_t stride, Py_ssize_t pad, Py_ssize_t phase, int back) {
    if (!back) return (Turn){0, 1, a->results, 0, stride, 0, kernel, 1};
    Py_ssize_t result = (phase - pad % stride + stride) % stride;
    Py_ssize_t count = (a->results - result + stride - 1) / stride;
    return (Turn){result, stride, count, a->lead + (result + pad) / stride, 1, phase, (kernel - phase + stride - 1) / stride, -1};
}

static void axis(Axis *a, Py_ssize_t kernel, Py_ssize_t stride, Py_ssize_t pad, int back) {
    Py_ssize_t last = back ? (a->results - 1 + pad) / stride + 1 : (a->results - 1) * stride + kernel;
    a->lead = back ? (kernel - 1) / stride : pad;
    a->room = a->lead + a->sources;
    if (a->room < last + (back ? a->lead : 0)) a->room = last + (back ? a->lead : 0);
}

static void add_phase(Each *e, Turn rows, Turn columns, Py_ssize_t kernel) {
    Phase *p = e->phase + e->phases;
    p->begin = p->end = e->phases ? p[-1].end : 0, p->taps = 0, e->phases++;
    for (Py_ssize_t y = 0; y < rows.count; y++)
        for (Py_ssize_t x = 0; x < columns.count; x++, p->end++) {
            e->starts[p->end] = (rows.start + y * rows.step) * e->columns.room + columns.start + x * columns.step;
            e->places[p->end] = (rows.result + y * rows.by) * e->columns.results + columns.result + x * columns.by;
        }
    for (Py_ssize_t y = 0; y < rows.taps; y++)
        for (Py_ssize_t x = 0; x < columns.taps; x++)
            if (reaches(&e->rows, rows.start, rows.step, rows.count, y * rows.hop) &&
                reaches(&e->columns, columns.start, columns.step, columns.count, x * columns.hop)) {
                p->tap[p->taps] = (rows.tap + y * rows.by) * kernel + columns.tap + x * columns.by;
                p->step[p->taps++] = y * rows.hop * e->columns.room + x * columns.hop;
            }
}

/* Where each pixel of some maps goes in the averaged ones. */
static void cells_of(Py_ssize_t *found, Py_ssize_t images, Py_ssize_t height, Py_ssize_t width, Py_ssize_t factor) {
    for (Py_ssize_t line = 0; line < images * height; line++)
        for (Py_ssize_t x = 0; x < width; x++)
            *found++ = (line / height * (height / factor) + line % height / factor) * (width / factor) + x / factor;
}

/* Where each pixel of some maps is in the rooms. */
static void spots_of(const Each *e, Py_ssize_t *found) {
    for (Py_ssize_t image = 0; image < e->together; image++)
        for (Py_ssize_t y = 0; y < e->rows.sources; y++)
            for (Py_ssize_t x = 0; x < e->columns.sources; x++)
                *found++ = (image * e->rows.room + y + e->rows.lead) * e->columns.room + x + e->columns.lead;
}

/* All places, for kernels of a size, a stride and pads; returns what is to be freed, or NULL. */
static Py_ssize_t *planned(Each *e, Py_ssize_t kernel, Py_ssize_t stride, Py_ssize_t top, Py_ssize_t left,
                           Py_ssize_t factor, int back) {
    const Axis *rows = &e->rows, *columns = &e->columns;
    e->sources = rows->sources * columns->sources, e->results = rows->results * columns->results;
    e->square = factor * factor;
    Py_ssize_t sources = e->together * e->sources, mapped = back ? sources : e->results;
    Py_ssize_t *places = PyMem_Malloc((2 * e->results + sources + mapped) * sizeof *places);
    if (!places) return NULL;
    e->starts = places, e->places = e->starts + e->results;
    e->spots = e->places + e->results, e->cells = e->spots + sources;
    axis(&e->rows, kernel, stride, top, back), axis(&e->columns, kernel, stride, left, back);
    e->space = e->together * rows->room * columns->room;
    if (back) cells_of(e->cells, e->together, rows->sources, columns->sources, factor);
    else cells_of(e->cells, 1, rows->results, columns->results, factor);
    spots_of(e, e->spots);
    for (Py_ssize_t y = 0; y < (back ? stride : 1); y++)
        for (Py_ssize_t x = 0; x < (back ? stride : 1); x++)
            add_phase(e, turn_of(&e->rows, kernel, stride, top, y, back),
                      turn_of(&e->columns, kernel, stride, left, x, back), kernel);
    return places;
}

/* Of maps some images at a time, whose channels stay in a near cache. */
static PyObject *py_each(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long from, into, small, weights, before, after, inner, outer, made, goes, plus, out;
    Py_ssize_t kernel, stride, top, left, factor;
    Each e = {0};
    int back, threads;
    if (!PyArg_ParseTuple(args, "(KKKKKKKK)(KnnKnnKK)(nnnnnnn)(nnnn)nppi", &from, &into, &small, &weights, &before,
                          &after, &inner, &outer, &made, &e.made.depth, &e.made.width, &goes, &e.goes.depth,
                          &e.goes.width, &plus, &out, &e.images, &e.together, &e.rows.sources, &e.columns.sources,
                          &e.rows.results, &e.columns.results, &e.channels, &kernel, &stride, &top, &left, &factor,
                          &e.half, &back, &threads))
        return NULL;
    e.from = at(from), e.into = at(into), e.small = at(small), e.weights = at(weights);
    e.before = at(before), e.after = at(after), e.inner = at(inner), e.outer = at(outer);
    e.made.panels = at(made), e.goes.panels = at(goes), e.plus = at(plus), e.out = at(out);
    Py_ssize_t *places = planned(&e, kernel, stride, top, left, factor, back);
    if (!places) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    share(back ? BEST(uneach) : BEST(each), &e, e.images, e.together, threads);
    Py_END_ALLOW_THREADS
    PyMem_Free(places);
    if (e.failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *py_kept(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long weights, theta, uniform, into;
    Py_ssize_t count;
    Scores s = {0};
    int threads;
    if (!PyArg_ParseTuple(args, "(KKKK)npi", &weights, &theta, &uniform, &into, &count, &s.half, &threads)) return NULL;
    s.weights = at(weights), s.theta = at(theta), s.uniform = at(uniform), s.into = at(into);
    Py_BEGIN_ALLOW_THREADS
    share(BEST(kept), &s, count, BLOCK, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_scored(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long gradient, weights, theta, into;
    Py_ssize_t count;
    Scores s = {0};
    int threads;
    if (!PyArg_ParseTuple(args, "(KKKK)npi", &gradient, &weights, &theta, &into, &count, &s.half, &threads))
        return NULL;
    s.gradient = at(gradient), s.weights = at(weights), s.theta = at(theta), s.into = at(into);
    Py_BEGIN_ALLOW_THREADS
    share(BEST(scored), &s, count, BLOCK, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_adam(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long scores, gradient, first, second;
    Py_ssize_t count;
    Adam a;
    int threads;
    if (!PyArg_ParseTuple(args, "(KKKK)nfffffi", &scores, &gradient, &first, &second, &count, &a.beta1, &a.beta2,
                          &a.rate, &a.correction, &a.tiny, &threads))
        return NULL;
    a.scores = at(scores), a.gradient = at(gradient), a.first = at(first), a.second = at(second);
    Py_BEGIN_ALLOW_THREADS
    share(BEST(adam), &a, count, BLOCK, threads);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_limit(PyObject *self, PyObject *args) {
    (void)self;
    int most, best = best_kind();
    if (!PyArg_ParseTuple(args, "i", &most)) return NULL;
    kind = most < best ? most : best;
    return PyLong_FromLong(kind);
}

static PyMethodDef methods[] = {
    {"match", py_match, METH_VARARGS, "Squared distance of a map's moments by group, or its gradient; see fused.py."},
    {"norm", py_norm, METH_VARARGS, "Batch normalisation and ReLU, or their gradient."},
    {"tile", py_tile, METH_VARARGS, "Numbers that `norm` keeps of a mean."},
    {"doubled", py_doubled, METH_VARARGS, "Add a doubled map, or its transpose."},
    {"tripled", py_tripled, METH_VARARGS, "One channel as three, or the sums of three."},
    {"pooled", py_pooled, METH_VARARGS, "The largest of four pixels, or its gradient."},
    {"each", py_each, METH_VARARGS, "Each channel's own convolution between two clamps, or its gradient; see depthwise.py."},
    {"kept", py_kept, METH_VARARGS, "Weights that a draw keeps."},
    {"scored", py_scored, METH_VARARGS, "The gradient by the scores."},
    {"adam", py_adam, METH_VARARGS, "One step of Adam."},
    {"use", py_use, METH_VARARGS, "Share work among the threads behind the `GOMP_parallel` at an address."},
    {"limit", py_limit, METH_VARARGS, "Use kernels of at most this kind of processor; returns the kind in use."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fast", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void) {
    kind = best_kind();
    return PyModule_Create(&module);
}
