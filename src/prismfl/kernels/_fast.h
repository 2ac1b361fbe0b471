/* What the two sides of the compiled kernels share: numbers, what a kernel is given, and the table of kernels. */
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
    float *totals;            /* [groups]: squared distances, or back what a group's gradient is multiplied by */
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
    Py_ssize_t images, together; /* so many images are worked on at a time */
    Py_ssize_t channels, sources, results;
    Py_ssize_t square; /* pixels that are averaged to one */
    Py_ssize_t area;   /* of a room for sixteen channels of an image, with zeros around it */
    Py_ssize_t space;  /* of rooms for all images together */
    int half, back, failed;
    /* Where all is: see `_Route` in depthwise.py. */
    Py_ssize_t phases;
    const int64_t *ends, *taps, *steps, *starts, *places, *spots, *cells;
} Each;

typedef struct {
    float *scores, *first, *second;
    const float *gradient;
    float beta1, beta2, rate, correction, tiny;
} Adam;

/* A kernel works on a part of what it is given, `from` to `to`. */
typedef void Work(void *given, Py_ssize_t from, Py_ssize_t to);

/* The kernels as they are made for one kind of processor. */
typedef struct {
    Work *adam, *each, *doubled, *halved;
    Work *rows_met, *blocks_met, *unmatch, *summed, *normed, *unnormed;
    double (*unmet)(const Match *, Py_ssize_t group);
    void (*begun)(const Norm *);
    void (*settled)(const Norm *, double epsilon);
} Kernels;

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KINDS
#if __GNUC__ >= 11
#define ROUNDING
#endif
#endif
__attribute__((visibility("hidden"))) extern const Kernels kernels_any, kernels_256, kernels_512, kernels_rounding;

static inline Py_ssize_t least(Py_ssize_t a, Py_ssize_t b) { return a < b ? a : b; }
