/* What a local step does between its convolutions, in one or two passes over memory.
 *
 * A step at the usual sizes spends more time reading and writing maps than multiplying: library calls read a map
 * once for every elementary operation.  Here each map is read once or twice.  Maps are rows of consecutive numbers
 * (images of flattened maps, or positions of channels), float32 or bfloat16, worked on sixteen at a time; sums are
 * float32 in sixteen lanes, added up in double precision a block at a time.  Callers own all memory, and have
 * checked that every row, or all rows together, are a multiple of sixteen long: see fused.py.
 *
 * This is Python's side; the kernels are in _kernels.h.
 */
#include "_fast.h"

static int kind; /* of processor: 3 has AVX-512 and rounds to bfloat16, 2 AVX-512, 1 AVX2 */

static const Kernels *best(void) {
#ifdef ROUNDING
    if (kind == 3) return &kernels_rounding;
#endif
#ifdef KINDS
    if (kind == 2) return &kernels_512;
    if (kind == 1) return &kernels_256;
#endif
    return &kernels_any;
}

static int best_kind(void) {
#ifdef ROUNDING
    if (__builtin_cpu_supports("avx512bf16")) return 3;
#endif
#ifdef KINDS
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
#endif
    return 0;
}

/* ------------------------------------------------------------------ threads */

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

/* ------------------------------------------------------------------ what Python calls */

/* Addresses are parsed as numbers, straight into pointers. */
_Static_assert(sizeof(void *) == sizeof(unsigned long long), "a processor of 64 bits");

#define CALLED(name) static PyObject *py_##name(PyObject *Py_UNUSED(self), PyObject *args)

CALLED(use) { return PyArg_ParseTuple(args, "K", &parallel) ? Py_NewRef(Py_None) : NULL; }

/* Does something while other threads of Python go on. */
#define ALONE(...)             \
    do {                       \
        Py_BEGIN_ALLOW_THREADS \
        __VA_ARGS__;           \
        Py_END_ALLOW_THREADS   \
    } while (0)

/* Totals of some groups, and the scales of their rows, from what was found block by block. */
static void finish(const Match *m) {
    for (Py_ssize_t group = m->group; group < m->last; group++) {
        double total = 0;
        for (Py_ssize_t block = 0; block < m->blocks; block++) total += m->squares[group * m->blocks + block];
        if (m->starts[group] == m->starts[group + 1]) total = best()->unmet(m, group);
        m->totals[group] = (float)total;
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
static void match(Match *m, int threads) {
    int together = threads > 1;
    for (Py_ssize_t group = 0; group < (together ? 1 : m->groups); group++) {
        m->group = together ? 0 : group, m->last = together ? m->groups : group + 1;
        if (together) share(best()->rows_met, m, m->starts[m->groups], 1, threads);
        else best()->rows_met(m, m->starts[group], m->starts[group + 1]);
        share(best()->blocks_met, m, m->blocks, 1, threads);
        finish(m);
    }
}

CALLED(match) {
    Match m = {0};
    Pixels *p = &m.pixels;
    int back, threads;
    if (!PyArg_ParseTuple(args, "(KKKKKKK)nndd(Knnn)(KKK)pppi", &m.phi, &m.starts, &m.goals1, &m.goals2, &m.rests1,
                          &m.rests2, &m.scales, &m.groups, &m.width, &m.scale1, &m.scale2, &p->x, &m.lines, &p->width,
                          &p->channels, &m.totals, &m.later, &p->into, &m.half, &m.rectify, &back, &threads))
        return NULL;
    p->y = m.phi, p->half = m.half;
    m.blocks = (m.width + BLOCK - 1) / BLOCK;
    Py_ssize_t rows = m.starts[m.groups];
    m.along = PyMem_Calloc(m.blocks * (2 * rows + m.groups) + 1, sizeof(double));
    if (!m.along) return PyErr_NoMemory();
    m.squares = m.along + 2 * m.blocks * rows;
    ALONE(back ? share(best()->unmatch, &m, rows, 1, threads) : match(&m, threads));
    PyMem_Free(m.along);
    Py_RETURN_NONE;
}

/* Adds up what was found stretch by stretch. */
static void add_up(const Norm *n, Py_ssize_t stretches) {
    memset(n->sums, 0, 2 * n->channels * sizeof(double));
    const float *lanes = n->lanes;
    for (Py_ssize_t row = 0; row < 2 * stretches; row++) {
        double *const sums = n->sums + row % 2 * n->channels;
        for (Py_ssize_t turn = 0; turn < n->tile; turn += n->channels, lanes += n->channels)
            for (Py_ssize_t c = 0; c < n->channels; c++) sums[c] += lanes[c];
    }
}

/* About the first row, so that squares of a large mean do not drown the variance. */
static void norm(Norm *n, Py_ssize_t stretches, double epsilon, int back, int threads) {
    if (!back) best()->begun(n);
    share(best()->summed, n, stretches, 1, threads);
    add_up(n, stretches);
    if (!back) best()->settled(n, epsilon);
    for (Py_ssize_t c = 0; back && c < 2 * n->tile; c++)
        n->pulls[c] = (float)(n->sums[c / n->tile * n->channels + c % n->channels] / n->rows);
    share(back ? best()->unnormed : best()->normed, n, stretches, 1, threads);
}

CALLED(norm) {
    Norm n;
    double epsilon;
    int back, threads;
    if (!PyArg_ParseTuple(args, "(KKKKK)nnndppi", &n.x, &n.given, &n.beside, &n.into, &n.mean, &n.rows, &n.channels,
                          &n.tile, &epsilon, &n.half, &back, &threads))
        return NULL;
    n.inverse = n.mean + n.tile;
    Py_ssize_t stretches = (n.rows * n.channels + STRETCH * n.tile - 1) / (STRETCH * n.tile);
    n.sums = PyMem_Malloc(2 * n.channels * sizeof(double) + (3 + 2 * stretches) * n.tile * sizeof(float));
    if (!n.sums) return PyErr_NoMemory();
    n.about = (float *)(n.sums + 2 * n.channels), n.pulls = n.about + n.tile, n.lanes = n.pulls + 2 * n.tile;
    ALONE(norm(&n, stretches, epsilon, back, threads));
    PyMem_Free(n.sums);
    Py_RETURN_NONE;
}

CALLED(doubled) {
    Py_ssize_t lines;
    Pixels p;
    int back, threads;
    if (!PyArg_ParseTuple(args, "(KKK)nnnnppi", &p.x, &p.y, &p.shift, &lines, &p.height, &p.width, &p.channels,
                          &p.half, &back, &threads))
        return NULL;
    ALONE(share(back ? best()->halved : best()->doubled, &p, lines, 1, threads));
    Py_RETURN_NONE;
}

/* Of maps some images at a time, whose channels stay in a near cache. */
CALLED(each) {
    Each e = {0};
    int threads;
    if (!PyArg_ParseTuple(args, "(KKKKKKKK)(KnnKnnKK)(KKKKKKKnn)(nnnnnn)ppi", &e.from, &e.into, &e.small, &e.weights,
                          &e.before, &e.after, &e.inner, &e.outer, &e.made.panels, &e.made.depth, &e.made.width,
                          &e.goes.panels, &e.goes.depth, &e.goes.width, &e.plus, &e.out, &e.ends, &e.taps, &e.steps,
                          &e.starts, &e.places, &e.spots, &e.cells, &e.phases, &e.area, &e.images, &e.together,
                          &e.sources, &e.results, &e.channels, &e.square, &e.half, &e.back, &threads))
        return NULL;
    e.space = e.together * e.area;
    ALONE(share(best()->each, &e, e.images, e.together, threads));
    if (e.failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

CALLED(adam) {
    Adam a;
    Py_ssize_t count;
    int threads;
    if (!PyArg_ParseTuple(args, "(KKKK)nfffffi", &a.scores, &a.gradient, &a.first, &a.second, &count, &a.beta1,
                          &a.beta2, &a.rate, &a.correction, &a.tiny, &threads))
        return NULL;
    ALONE(share(best()->adam, &a, count, BLOCK, threads));
    Py_RETURN_NONE;
}

CALLED(limit) {
    int most, best = best_kind();
    if (!PyArg_ParseTuple(args, "i", &most)) return NULL;
    kind = most < best ? most : best;
    return PyLong_FromLong(kind);
}

static PyMethodDef methods[] = {
    {"match", py_match, METH_VARARGS, "Squared distance of a map's moments by group, or its gradient; see fused.py."},
    {"norm", py_norm, METH_VARARGS, "Batch normalisation and ReLU, or their gradient."},
    {"doubled", py_doubled, METH_VARARGS, "Add a doubled map, or its transpose."},
    {"each", py_each, METH_VARARGS, "Each channel's own convolution between two clamps, or its gradient; see depthwise.py."},
    {"adam", py_adam, METH_VARARGS, "One step of Adam."},
    {"use", py_use, METH_VARARGS, "Share work among the threads behind the `GOMP_parallel` at an address."},
    {"limit", py_limit, METH_VARARGS, "Use kernels of at most this kind of processor; returns the kind in use."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fast", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void) {
    kind = best_kind();
    return PyModule_Create(&module);
}
