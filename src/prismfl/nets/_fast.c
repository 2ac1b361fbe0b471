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
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

#define LANES 16
#define BLOCK 1024 /* numbers between two additions to a double, and columns that stay in the nearest cache */
#define STRETCH 64 /* tiles between two additions to doubles */

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Flags __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

typedef struct {
    void *phi;             /* [rows, width], rectified in place where asked */
    const int64_t *starts; /* [groups + 1]: rows of a group are consecutive */
    const float *goals1, *goals2; /* [groups, width]; goals2 NULL without second moments */
    float *rests1, *rests2;       /* [groups, width]: sums of a group less its goal, where it has rows */
    float *scales;                /* [rows, 4]: scale1 / |phi|, its along, scale2 / |phi^2|, its along */
    Py_ssize_t groups, width;
    double scale1, scale2;
    void *small;  /* pooled maps [rows, width / 4], or back what came for them; NULL where they are not pooled */
    void *spread; /* [width], to work with */
    Py_ssize_t lines, across, channels; /* of a pooled map */
} Match;

typedef struct {
    const void *x;
    Py_ssize_t rows, channels, tile; /* tile: so many numbers are whole rows and whole vectors */
    float *mean, *inverse;           /* [tile], one row's figures repeated */
    float *lanes;                    /* [4, tile], to work with */
    double *sums;                    /* [2, channels], to work with */
} Norm;

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
#define IF_ROUNDING(name, ...) kind == 3 ? name##_rounding(__VA_ARGS__) :
#define ROUNDS __builtin_cpu_supports("avx512bf16")
#else
#define IF_ROUNDING(name, ...)
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
#define BEST(name, ...)                             \
    (IF_ROUNDING(name, __VA_ARGS__)                 \
     kind == 2 ? name##_512(__VA_ARGS__)            \
     : kind == 1 ? name##_256(__VA_ARGS__)          \
                 : name##_any(__VA_ARGS__))

static int best_kind(void) {
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return ROUNDS ? 3 : 2;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
#else
#define BEST(name, ...) name##_any(__VA_ARGS__)
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

/* Forwards totals [groups] are written; back they are what a group's gradient is multiplied by. */
static PyObject *py_match(PyObject *self, PyObject *args) {
    (void)self;
    Match m;
    unsigned long long phi, starts, goals1, goals2, rests1, rests2, scales, small, totals, later, into;
    int half, rectify, back;
    if (!PyArg_ParseTuple(args, "(KKKKKKK)nndd(Knnn)(KKK)ppp", &phi, &starts, &goals1, &goals2, &rests1, &rests2,
                          &scales, &m.groups, &m.width, &m.scale1, &m.scale2, &small, &m.lines, &m.across, &m.channels,
                          &totals, &later, &into, &half, &rectify, &back))
        return NULL;
    m.phi = at(phi), m.starts = at(starts), m.goals1 = at(goals1), m.goals2 = at(goals2);
    m.rests1 = at(rests1), m.rests2 = at(rests2), m.scales = at(scales), m.small = at(small);
    Py_ssize_t alongs = (2 * m.starts[m.groups] + 1) * sizeof(double);
    double *along = PyMem_Malloc(alongs + m.width * sizeof(float));
    if (!along) return PyErr_NoMemory();
    m.spread = (char *)along + alongs;
    Py_BEGIN_ALLOW_THREADS
    if (back) BEST(unmatch, &m, at(totals), at(later), at(into), half, rectify);
    else BEST(match, &m, at(totals), along, half, rectify);
    Py_END_ALLOW_THREADS
    PyMem_Free(along);
    Py_RETURN_NONE;
}

static PyObject *py_norm(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long x, given, beside, into, figures;
    Norm n;
    double epsilon;
    int half, back;
    if (!PyArg_ParseTuple(args, "(KKKKK)nndpp", &x, &given, &beside, &into, &figures, &n.rows, &n.channels, &epsilon,
                          &half, &back))
        return NULL;
    n.x = at(x), n.tile = tile_of(n.channels);
    n.mean = at(figures), n.inverse = n.mean + n.tile;
    n.sums = PyMem_Malloc(2 * n.channels * sizeof(double) + 4 * n.tile * sizeof(float));
    if (!n.sums) return PyErr_NoMemory();
    n.lanes = (float *)(n.sums + 2 * n.channels);
    Py_BEGIN_ALLOW_THREADS
    if (back) BEST(unnorm, &n, at(given), at(beside), at(into), half);
    else BEST(norm, &n, at(into), epsilon, half);
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

static PyObject *py_doubled(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long x, shift, y;
    Py_ssize_t lines, height, width, channels;
    int half, back;
    if (!PyArg_ParseTuple(args, "(KKK)nnnnpp", &x, &shift, &y, &lines, &height, &width, &channels, &half, &back))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    if (back) BEST(halved, at(y), at(x), lines, width, channels, half);
    else BEST(doubled, at(x), at(shift), at(y), lines, height, width, channels, half);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_tripled(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long x, y;
    Py_ssize_t count;
    int half, back;
    if (!PyArg_ParseTuple(args, "(KK)npp", &x, &y, &count, &half, &back)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    if (back) BEST(untripled, at(y), at(x), count, half);
    else BEST(tripled, at(x), at(y), count, half);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_pooled(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long y, given, into;
    Py_ssize_t lines, width, channels;
    int half, back;
    if (!PyArg_ParseTuple(args, "(KKK)nnnpp", &y, &given, &into, &lines, &width, &channels, &half, &back)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    if (back) BEST(unpooled, at(y), at(given), at(into), lines, width, channels, half);
    else BEST(pooled, at(y), at(into), lines, width, channels, half);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_kept(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long weights, theta, uniform, into;
    Py_ssize_t count;
    int half;
    if (!PyArg_ParseTuple(args, "(KKKK)np", &weights, &theta, &uniform, &into, &count, &half)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    BEST(kept, at(weights), at(theta), at(uniform), at(into), count, half);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_scored(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long gradient, weights, theta, into;
    Py_ssize_t count;
    int half, plain;
    if (!PyArg_ParseTuple(args, "(KKKK)npp", &gradient, &weights, &theta, &into, &count, &half, &plain)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    BEST(scored, at(gradient), at(weights), at(theta), at(into), count, half, plain);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *py_adam(PyObject *self, PyObject *args) {
    (void)self;
    unsigned long long scores, gradient, first, second;
    Py_ssize_t count;
    float beta1, beta2, rate, correction, tiny;
    if (!PyArg_ParseTuple(args, "(KKKK)nfffff", &scores, &gradient, &first, &second, &count, &beta1, &beta2, &rate,
                          &correction, &tiny))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    BEST(adam, at(scores), at(gradient), at(first), at(second), count, beta1, beta2, rate, correction, tiny);
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
    {"kept", py_kept, METH_VARARGS, "Weights that a draw keeps."},
    {"scored", py_scored, METH_VARARGS, "The gradient by the scores."},
    {"adam", py_adam, METH_VARARGS, "One step of Adam."},
    {"limit", py_limit, METH_VARARGS, "Use kernels of at most this kind of processor; returns the kind in use."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fast", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void) {
    kind = best_kind();
    return PyModule_Create(&module);
}
