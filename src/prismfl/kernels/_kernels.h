/* The kernels themselves, compiled once for each kind of processor: WHOLE has AVX-512, CONVERTED rounds to bfloat16. */

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Flags __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

static double inverse(double square) { return square > 1e-24 ? 1 / sqrt(square) : square - square; /* NaN of NaN */ }

/* The work `name` of a kernel `name_of`, by the kind of its numbers, which is a constant for the compiler. */
#define WORK(name, Given)                                                                          \
    static void name(void *given, Py_ssize_t from, Py_ssize_t to) {                                \
        Given *g = given;                                                                          \
        g->half ? name##_of(g, from, to, 1) : name##_of(g, from, to, 0);                           \
    }

/* The same with a second constant. */
#define WORK_BY(name, Given, flag)                                                                 \
    static void name(void *given, Py_ssize_t from, Py_ssize_t to) {                                \
        Given *g = given;                                                                          \
        if (g->half) (flag) ? name##_of(g, from, to, 1, 1) : name##_of(g, from, to, 1, 0);         \
        else (flag) ? name##_of(g, from, to, 0, 1) : name##_of(g, from, to, 0, 0);                 \
    }

/* Compilers make two of these of halves of a vector, and join them, where the processor has one. */
INLINE Words widened(Halves raw) {
#ifdef WHOLE
    Words bits;
    __asm__("vpmovzxwd %1, %0" : "=v"(bits) : "v"(raw));
    return bits;
#else
    return __builtin_convertvector(raw, Words);
#endif
}

INLINE Halves narrowed(Words bits) {
#ifdef WHOLE
    Halves raw;
    __asm__("vpmovdw %1, %0" : "=v"(raw) : "v"(bits));
    return raw;
#else
    return __builtin_convertvector(bits, Halves);
#endif
}

INLINE Floats load(const void *from, Py_ssize_t i, int half) {
    Floats found;
    if (half) {
        Halves raw;
        memcpy(&raw, (const uint16_t *)from + i, sizeof raw);
        Words bits = widened(raw) << 16;
        memcpy(&found, &bits, sizeof found);
    } else
        memcpy(&found, (const float *)from + i, sizeof found);
    return found;
}

INLINE float single(const void *from, Py_ssize_t i, int half) {
    if (!half) return ((const float *)from)[i];
    uint32_t bits = (uint32_t)((const uint16_t *)from)[i] << 16;
    float found;
    memcpy(&found, &bits, sizeof found);
    return found;
}

/* Values that are of the kind already. */
INLINE void put(void *to, Py_ssize_t i, Floats values, int half) {
    if (half) {
        Halves raw = narrowed((Words)values >> 16);
        memcpy((uint16_t *)to + i, &raw, sizeof raw);
    } else
        memcpy((float *)to + i, &values, sizeof values);
}

/* To the nearest bfloat16, ties to even; what is below 2^-126 may become 0. */
INLINE Halves rounded(Floats values) {
#ifdef CONVERTED
    Halves raw;
    __asm__("vcvtneps2bf16 %1, %0" : "=v"(raw) : "v"(values));
    return raw;
#else
    Words bits = (Words)values;
    bits += 0x7fff + (bits >> 16 & 1);
    bits = ((Words)(values == values) & bits) | ((Words)(values != values) & 0x7fc00000); /* a NaN stays one */
    return narrowed(bits >> 16);
#endif
}

INLINE void store(void *to, Py_ssize_t i, Floats values, int half) {
    if (half) {
        Halves raw = rounded(values);
        memcpy((uint16_t *)to + i, &raw, sizeof raw);
    } else
        put(to, i, values, 0);
}

/* What would be read back if it had been stored. */
INLINE Floats reread(Floats values, int half) {
    return half ? (Floats)(widened(rounded(values)) << 16) : values;
}

INLINE void *part(const void *of, Py_ssize_t i, int half) { return (char *)of + i * (half ? 2 : 4); }

/* Values where they are above 0, else 0; of NaN, NaN. */
INLINE Floats rectified(Floats values) {
#ifdef WHOLE
    Floats found, nothing = {0};
    __asm__("vmaxps %1, %2, %0" : "=v"(found) : "v"(values), "v"(nothing)); /* of NaN, the values */
    return found;
#else
    return (Floats)((Flags)values & ~(values < 0));
#endif
}

/* Values where the others are above 0, else 0. */
INLINE Floats passed(Floats values, Floats where) { return (Floats)((Flags)values & (where > 0)); }

INLINE double folded(Floats lanes) {
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

/* Runs `work` for four at a time of `from` to `end`, and the rest one by one: `many` is a constant for the compiler. */
#define FOURS(at, from, end, step, ...)                                                        \
    do {                                                                                      \
        Py_ssize_t at = (from);                                                               \
        for (; at + 3 * (step) < (end); at += 4 * (step)) { enum { many = 4 }; __VA_ARGS__; } \
        for (; at < (end); at += (step)) { enum { many = 1 }; __VA_ARGS__; }                  \
    } while (0)

/* ------------------------------------------------------------------ two by two pixels */

/* Does something for each sixteen channels of each pixel of some lines of a small map `[lines, width, channels]`:
 * `small` is where they are, `four` where its four are in a map of twice the size. */
#define PIXELS(p, from, to, ...)                                                                               \
    do {                                                                                                       \
        const Py_ssize_t width = (p)->width, channels = (p)->channels;                                         \
        Py_ssize_t small = (from) * width * channels;                                                          \
        for (Py_ssize_t line = (from); line < (to); line++)                                                    \
            for (Py_ssize_t column = 0; column < width; column++)                                              \
                for (Py_ssize_t c = 0; c < channels; c += LANES, small += LANES) {                             \
                    const Py_ssize_t above = 2 * (2 * line * width + column) * channels + c;                   \
                    const Py_ssize_t under = above + 2 * width * channels;                                     \
                    const Py_ssize_t four[] = {above, above + channels, under, under + channels};              \
                    __VA_ARGS__;                                                                               \
                }                                                                                              \
    } while (0)

/* Each of four large pixels gets the small one added, with its image's shift where there is one. */
INLINE void doubled_of(const Pixels *p, Py_ssize_t from, Py_ssize_t to, int half) {
    const void *const x = p->x, *const shift = p->shift;
    void *const y = p->y;
    PIXELS(p, from, to, {
        Floats value = load(x, small, half);
        if (shift) value = reread(value + load(shift, line / p->height * channels + c, half), half);
        for (int i = 0; i < 4; i++) store(y, four[i], load(y, four[i], half) + value, half);
    });
}
WORK(doubled, const Pixels)

/* The small pixel becomes the sum of the four. */
INLINE void halved_of(const Pixels *p, Py_ssize_t from, Py_ssize_t to, int half) {
    const void *const y = p->y;
    void *const x = p->x;
    PIXELS(p, from, to, {
        Floats upper = load(y, four[0], half) + load(y, four[1], half);
        store(x, small, upper + (load(y, four[2], half) + load(y, four[3], half)), half);
    });
}
WORK(halved, const Pixels)

/* The larger, and NaN of NaN. */
INLINE Floats larger(Floats a, Floats b) {
    Flags other = (b > a) | (b != b);
    return (Floats)(((Flags)b & other) | ((Flags)a & ~other));
}

/* The small pixel becomes the largest of the four. */
INLINE void pooled_of(const Pixels *p, Py_ssize_t from, Py_ssize_t to, int half) {
    const void *const y = p->y;
    void *const x = p->x;
    PIXELS(p, from, to, {
        Floats upper = larger(load(y, four[0], half), load(y, four[1], half));
        put(x, small, larger(upper, larger(load(y, four[2], half), load(y, four[3], half))), half);
    });
}
WORK(pooled, const Pixels)

/* Gives each of the four, in `into`, what came for their largest, if it was the first that large. */
INLINE void unpooled_of(const Pixels *p, Py_ssize_t from, Py_ssize_t to, int half) {
    const void *const x = p->x, *const y = p->y;
    void *const into = p->into;
    PIXELS(p, from, to, {
        Floats values[4];
        for (int i = 0; i < 4; i++) values[i] = load(y, four[i], half);
        Floats left = load(x, small, half);
        Floats most = larger(larger(larger(values[0], values[1]), values[2]), values[3]);
        for (int i = 0; i < 4; i++) {
            Flags here = (values[i] == most) | (values[i] != values[i]);
            put(into, four[i], (Floats)((Flags)left & here), half);
            left = (Floats)((Flags)left & ~here);
        }
    });
}
WORK(unpooled, const Pixels)

/* ------------------------------------------------------------------ squared distance of moments */

/* The norms of some rows: several at a time, or each sum would wait for itself. */
INLINE void norms(const Match *m, Py_ssize_t row, int many, int half, int rectify) {
    const Py_ssize_t width = m->width;
    void *const phi = m->phi;
    double sums1[4] = {0}, sums2[4] = {0};
    for (Py_ssize_t at = 0; at < width; at += BLOCK) {
        Py_ssize_t end = least(at + BLOCK, width);
        Floats first[4] = {{0}}, second[4] = {{0}};
        for (Py_ssize_t c = at; c < end; c += LANES)
            for (int r = 0; r < many; r++) {
                Floats value = load(phi, (row + r) * width + c, half);
                if (rectify) {
                    value = rectified(value);
                    put(phi, (row + r) * width + c, value, half);
                }
                Floats square = value * value;
                first[r] += square;
                second[r] += square * square;
            }
        for (int r = 0; r < many; r++) {
            sums1[r] += folded(first[r]);
            sums2[r] += folded(second[r]);
        }
    }
    for (int r = 0; r < many; r++) {
        m->scales[4 * (row + r)] = (float)(m->scale1 * inverse(sums1[r]));
        m->scales[4 * (row + r) + 2] = (float)(m->scale2 * inverse(sums2[r]));
    }
}

/* Sums of a group less its goal over `many` sixteens of columns; adds their squares. */
INLINE Floats rests(const Match *m, Py_ssize_t group, Py_ssize_t c, int many, Floats square, int half, int seconds) {
    const Py_ssize_t width = m->width, place = group * width + c, last = m->starts[group + 1];
    const float *const scales = m->scales;
    const void *const phi = m->phi;
    Floats rests1[4] = {{0}}, rests2[4] = {{0}};
    for (int i = 0; i < many; i++) {
        rests1[i] = -load(m->goals1, place + i * LANES, 0);
        if (seconds) rests2[i] = -load(m->goals2, place + i * LANES, 0);
    }
    for (Py_ssize_t row = m->starts[group]; row < last; row++)
        for (int i = 0; i < many; i++) {
            Floats value = load(phi, row * width + c + i * LANES, half);
            rests1[i] += scales[4 * row] * value;
            if (seconds) rests2[i] += scales[4 * row + 2] * (value * value);
        }
    for (int i = 0; i < many; i++) {
        store(m->rests1, place + i * LANES, rests1[i], 0);
        if (seconds) store(m->rests2, place + i * LANES, rests2[i], 0);
        square += rests1[i] * rests1[i] + rests2[i] * rests2[i];
    }
    return square;
}

/* The products of some rows' columns with their group's rests. */
INLINE void alongs(const Match *m, Py_ssize_t group, Py_ssize_t row, int many, Py_ssize_t at, Py_ssize_t end,
                   double *along, int half, int seconds) {
    const Py_ssize_t width = m->width;
    const float *const rests1 = m->rests1 + group * width, *const rests2 = m->rests2 + group * width * seconds;
    const void *const phi = m->phi;
    Floats first[4] = {{0}}, second[4] = {{0}};
    for (Py_ssize_t c = at; c < end; c += LANES) {
        Floats rest1 = load(rests1, c, 0), rest2 = {0};
        if (seconds) rest2 = load(rests2, c, 0);
        for (int r = 0; r < many; r++) {
            Floats value = load(phi, (row + r) * width + c, half);
            first[r] += value * rest1;
            if (seconds) second[r] += value * value * rest2;
        }
    }
    for (int r = 0; r < many; r++) {
        along[2 * r] = folded(first[r]);
        along[2 * r + 1] = folded(second[r]);
    }
}

/* The first pass: of rows, whose pooled maps are made while they are near. */
INLINE void rows_met_of(const Match *m, Py_ssize_t from, Py_ssize_t to, int half, int rectify) {
    FOURS(row, from, to, 1, {
        norms(m, row, many, half, rectify);
        if (m->pixels.x) pooled((void *)&m->pixels, row * m->lines, (row + many) * m->lines);
    });
}
WORK_BY(rows_met, const Match, g->rectify)

/* The second pass: of blocks of columns, in one group or in all. */
INLINE void blocks_met_of(const Match *m, Py_ssize_t from, Py_ssize_t to, int half, int seconds) {
    for (Py_ssize_t group = m->group; group < m->last; group++) {
        Py_ssize_t begin = m->starts[group], end = m->starts[group + 1];
        for (Py_ssize_t block = from; block < to && begin < end; block++) {
            Py_ssize_t at = block * BLOCK, stop = least(at + BLOCK, m->width);
            double *along = m->along + 2 * block * m->starts[m->groups];
            Floats square = {0};
            FOURS(c, at, stop, LANES, square = rests(m, group, c, many, square, half, seconds));
            m->squares[group * m->blocks + block] = folded(square);
            FOURS(row, begin, end, 1, alongs(m, group, row, many, at, stop, along + 2 * row, half, seconds));
        }
    }
}
WORK_BY(blocks_met, const Match, g->goals2 != NULL)

/* Squared norm of the goal of a group without rows: nothing of it is needed later. */
static double unmet(const Match *m, Py_ssize_t group) {
    int seconds = m->goals2 != NULL;
    double total = 0;
    for (Py_ssize_t at = 0; at < m->width; at += BLOCK) {
        Floats square = {0};
        for (Py_ssize_t c = at; c < least(at + BLOCK, m->width); c += LANES) {
            Floats goal = load(m->goals1, group * m->width + c, 0);
            square += goal * goal;
            if (seconds) goal = load(m->goals2, group * m->width + c, 0), square += goal * goal;
        }
        total += folded(square);
    }
    return total;
}

/* A group's factor times the gradient of its squared distance, and what comes from later layers: as such, or, of a
 * map that was pooled, for the pooled one. */
INLINE void unmatch_of(const Match *m, Py_ssize_t from, Py_ssize_t to, int half, int seconds) {
    const Py_ssize_t width = m->width;
    const int rectify = m->rectify;
    const void *const phi = m->phi, *const later = m->pixels.x ? m->pixels.into : m->later;
    void *const into = m->pixels.into;
    Py_ssize_t group = 0;
    for (Py_ssize_t row = from; row < to; row++) {
        while (m->starts[group + 1] <= row) group++;
        const float *const rests1 = m->rests1 + group * width, *const rests2 = m->rests2 + group * width * seconds;
        const float *scale = m->scales + 4 * row, factor = 2 * m->totals[group];
        const float by1 = factor * scale[0], along1 = factor * scale[1];
        const float by2 = 2 * factor * scale[2], along2 = 2 * factor * scale[3];
        if (m->pixels.x) unpooled((void *)&m->pixels, row * m->lines, (row + 1) * m->lines);
        for (Py_ssize_t c = 0; c < width; c += LANES) {
            Py_ssize_t here = row * width + c;
            Floats value = load(phi, here, half);
            Floats found = by1 * load(rests1, c, 0) - along1 * value;
            if (seconds) found += value * (by2 * load(rests2, c, 0) - along2 * (value * value));
            if (later) found += load(later, here, half);
            store(into, here, rectify ? passed(found, value) : found, half);
        }
    }
}
WORK_BY(unmatch, const Match, g->goals2 != NULL)

/* ------------------------------------------------------------------ batch normalisation with ReLU */

/* Adds up `many` sixteens of columns from c on over a stretch of tiles, into `lanes` [2, tile]: spreads about a number
 * and their squares; or back, what came for values that the ReLU let pass, and its products with the values. */
INLINE void some_sums(const Norm *n, float *lanes, Py_ssize_t c, int many, Py_ssize_t begin, Py_ssize_t end, int half,
                      int back) {
    const void *const x = n->x, *const given = n->given;
    const Py_ssize_t tile = n->tile;
    Floats first[4] = {{0}}, second[4] = {{0}}, middle[4], scale[4];
    for (int i = 0; i < many; i++) {
        middle[i] = load(back ? n->mean : n->about, c + i * LANES, 0);
        if (back) scale[i] = load(n->inverse, c + i * LANES, 0);
    }
    for (Py_ssize_t at = begin + c; at < end; at += tile)
        for (int i = 0; i < many; i++) {
            Floats one = load(x, at + i * LANES, half) - middle[i], other = one;
            if (back) {
                other = one * scale[i];
                one = passed(load(given, at + i * LANES, half), other);
            }
            first[i] += one;
            second[i] += other * one;
        }
    for (int i = 0; i < many; i++) {
        store(lanes, c + i * LANES, first[i], 0);
        store(lanes, tile + c + i * LANES, second[i], 0);
    }
}

INLINE void some_normed(const Norm *n, Py_ssize_t c, int many, Py_ssize_t begin, Py_ssize_t end, int half) {
    const void *const x = n->x;
    void *const into = n->into;
    const Py_ssize_t tile = n->tile;
    Floats mean[4], scale[4];
    for (int i = 0; i < many; i++) {
        mean[i] = load(n->mean, c + i * LANES, 0);
        scale[i] = load(n->inverse, c + i * LANES, 0);
    }
    for (Py_ssize_t at = begin + c; at < end; at += tile)
        for (int i = 0; i < many; i++) {
            Floats value = (load(x, at + i * LANES, half) - mean[i]) * scale[i];
            store(into, at + i * LANES, rectified(value), half);
        }
}

/* With what comes for x itself added, where something does. */
INLINE void some_unnormed(const Norm *n, Py_ssize_t c, int many, Py_ssize_t begin, Py_ssize_t end, int half, int more) {
    const void *const x = n->x, *const given = n->given, *const beside = n->beside;
    void *const into = n->into;
    const Py_ssize_t tile = n->tile;
    Floats mean[4], scale[4], pulled[4], slope[4];
    for (int i = 0; i < many; i++) {
        mean[i] = load(n->mean, c + i * LANES, 0);
        scale[i] = load(n->inverse, c + i * LANES, 0);
        pulled[i] = load(n->pulls, c + i * LANES, 0);
        slope[i] = load(n->pulls, tile + c + i * LANES, 0);
    }
    for (Py_ssize_t at = begin + c; at < end; at += tile)
        for (int i = 0; i < many; i++) {
            Floats value = (load(x, at + i * LANES, half) - mean[i]) * scale[i];
            Floats pull = passed(load(given, at + i * LANES, half), value);
            Floats found = scale[i] * (pull - pulled[i] - value * slope[i]);
            if (more) found = reread(found, half) + load(beside, at + i * LANES, half);
            store(into, at + i * LANES, found, half);
        }
}

/* Does something for each four sixteens of columns of each of some stretches, which stay near. */
#define STRETCHES(n, from, to, ...)                                                                   \
    for (Py_ssize_t stretch = (from); stretch < (to); stretch++) {                                    \
        Py_ssize_t begin = stretch * STRETCH * (n)->tile;                                             \
        Py_ssize_t end = least(begin + STRETCH * (n)->tile, (n)->rows * (n)->channels);               \
        FOURS(c, 0, (n)->tile, LANES, __VA_ARGS__);                                                   \
    }

INLINE void summed_of(const Norm *n, Py_ssize_t from, Py_ssize_t to, int half, int back) {
    STRETCHES(n, from, to, some_sums(n, n->lanes + 2 * stretch * n->tile, c, many, begin, end, half, back));
}
WORK_BY(summed, const Norm, g->given != NULL)

INLINE void normed_of(const Norm *n, Py_ssize_t from, Py_ssize_t to, int half) {
    STRETCHES(n, from, to, some_normed(n, c, many, begin, end, half));
}
WORK(normed, const Norm)

INLINE void unnormed_of(const Norm *n, Py_ssize_t from, Py_ssize_t to, int half, int more) {
    STRETCHES(n, from, to, some_unnormed(n, c, many, begin, end, half, more));
}
WORK_BY(unnormed, const Norm, g->beside != NULL)

static void begun(const Norm *n) {
    for (Py_ssize_t c = 0; c < n->tile; c++) n->about[c] = single(n->x, c % n->channels, n->half);
}

/* Mean and 1 / deviation from the sums about the first row. */
static void settled(const Norm *n, double epsilon) {
    for (Py_ssize_t c = 0; c < n->tile; c++) {
        double shift = n->sums[c % n->channels] / n->rows;
        double variance = n->sums[n->channels + c % n->channels] / n->rows - shift * shift;
        n->mean[c] = (float)(n->about[c] + shift);
        n->inverse[c] = (float)(1 / sqrt((variance < 0 ? 0 : variance) + epsilon));
    }
}

/* ------------------------------------------------------------------ scores */

/* One step of Adam (Kingma, Ba 2015): scores -= rate · first / (sqrt(second / correction) + tiny). */
static void adam(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Adam a = *(const Adam *)given;
    for (Py_ssize_t i = from; i < to; i++) {
        float g = a.gradient[i];
        a.first[i] += (1 - a.beta1) * (g - a.first[i]);
        a.second[i] = a.beta2 * a.second[i] + (1 - a.beta2) * g * g;
        a.scores[i] -= a.rate * a.first[i] / (sqrtf(a.second[i] / a.correction) + a.tiny);
    }
}

#include "_depthwise.h"

const Kernels KERNELS = {
    .adam = adam, .each = each, .doubled = doubled, .halved = halved, .rows_met = rows_met,
    .blocks_met = blocks_met, .unmatch = unmatch, .unmet = unmet, .summed = summed, .normed = normed,
    .unnormed = unnormed, .begun = begun, .settled = settled};
