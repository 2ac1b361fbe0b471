/* The kernels of _fast.c, which includes this once for each kind of processor: NAMED gives every function of this
 * file a name of its own each time. */

#define adam NAMED(adam)
#define alongs NAMED(alongs)
#define doubled NAMED(doubled)
#define doubled_of NAMED(doubled_of)
#define folded NAMED(folded)
#define halved NAMED(halved)
#define halved_of NAMED(halved_of)
#define kept NAMED(kept)
#define kept_of NAMED(kept_of)
#define kept_some NAMED(kept_some)
#define larger NAMED(larger)
#define load NAMED(load)
#define match NAMED(match)
#define match_of NAMED(match_of)
#define met NAMED(met)
#define norm NAMED(norm)
#define norm_of NAMED(norm_of)
#define norms NAMED(norms)
#define part NAMED(part)
#define passed NAMED(passed)
#define pooled NAMED(pooled)
#define pooled_of NAMED(pooled_of)
#define put NAMED(put)
#define rectified NAMED(rectified)
#define reread NAMED(reread)
#define rests NAMED(rests)
#define rounded NAMED(rounded)
#define scored NAMED(scored)
#define single NAMED(single)
#define some_normed NAMED(some_normed)
#define some_sums NAMED(some_sums)
#define some_unnormed NAMED(some_unnormed)
#define store NAMED(store)
#define summed NAMED(summed)
#define tripled NAMED(tripled)
#define widened NAMED(widened)
#define narrowed NAMED(narrowed)
#define unmatch NAMED(unmatch)
#define unmatch_of NAMED(unmatch_of)
#define unmet NAMED(unmet)
#define unnorm NAMED(unnorm)
#define unnorm_of NAMED(unnorm_of)
#define unpooled NAMED(unpooled)
#define unpooled_of NAMED(unpooled_of)
#define untripled NAMED(untripled)

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
    __asm__("vmaxps %1, %2, %0" : "=v"(found) : "v"(values), "v"(nothing)); /* the first, where one is NaN */
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

/* Runs `work` for each sixteen channels of each pixel of a small map `[lines, width, channels]`: `small` is where
 * they are, `large` where the first of their four is in a map of twice the size, `below` how much later its second
 * line is. */
#define PIXELS(lines, width, channels, ...)                                            \
    do {                                                                              \
        const Py_ssize_t below = 2 * (width) * (channels);                            \
        Py_ssize_t small = 0;                                                         \
        for (Py_ssize_t line = 0; line < (lines); line++)                             \
            for (Py_ssize_t column = 0; column < (width); column++) {                 \
                Py_ssize_t large = 2 * (line * below + column * (channels));          \
                for (Py_ssize_t c = 0; c < (channels); c += LANES) {                  \
                    __VA_ARGS__;                                                      \
                    small += LANES, large += LANES;                                   \
                }                                                                     \
            }                                                                         \
    } while (0)

/* y [images, 2 height, 2 width, channels] += x [images, height, width, channels], each entry of x four times, with an
 * image's shift [images, channels] where there is one. */
INLINE void doubled_of(const void *x, const void *shift, void *y, Py_ssize_t lines, Py_ssize_t height,
                       Py_ssize_t width, Py_ssize_t channels, int half) {
    PIXELS(lines, width, channels, {
        const Py_ssize_t places[4] = {large, large + channels, large + below, large + below + channels};
        Floats value = load(x, small, half);
        if (shift) value = reread(value + load(shift, line / height * channels + c, half), half);
        for (int p = 0; p < 4; p++) store(y, places[p], load(y, places[p], half) + value, half);
    });
}

static void doubled(const void *x, const void *shift, void *y, Py_ssize_t lines, Py_ssize_t height, Py_ssize_t width,
                    Py_ssize_t channels, int half) {
    half ? doubled_of(x, shift, y, lines, height, width, channels, 1)
         : doubled_of(x, shift, y, lines, height, width, channels, 0);
}

/* x = sums of the four entries of y that came of each. */
INLINE void halved_of(const void *y, void *x, Py_ssize_t lines, Py_ssize_t width, Py_ssize_t channels, int half) {
    PIXELS(lines, width, channels, {
        Floats above = load(y, large, half) + load(y, large + channels, half);
        Floats under = load(y, large + below, half) + load(y, large + below + channels, half);
        store(x, small, above + under, half);
    });
}

static void halved(const void *y, void *x, Py_ssize_t lines, Py_ssize_t width, Py_ssize_t channels, int half) {
    half ? halved_of(y, x, lines, width, channels, 1) : halved_of(y, x, lines, width, channels, 0);
}

/* The larger, and NaN of NaN. */
INLINE Floats larger(Floats a, Floats b) {
    Flags other = (b > a) | (b != b);
    return (Floats)(((Flags)b & other) | ((Flags)a & ~other));
}

INLINE void pooled_of(const void *y, void *x, Py_ssize_t lines, Py_ssize_t width, Py_ssize_t channels, int half) {
    PIXELS(lines, width, channels, {
        Floats above = larger(load(y, large, half), load(y, large + channels, half));
        Floats under = larger(load(y, large + below, half), load(y, large + below + channels, half));
        put(x, small, larger(above, under), half);
    });
}

static void pooled(const void *y, void *x, Py_ssize_t lines, Py_ssize_t width, Py_ssize_t channels, int half) {
    half ? pooled_of(y, x, lines, width, channels, 1) : pooled_of(y, x, lines, width, channels, 0);
}

/* Gives each of four pixels what came for their largest, if it was the first that large. */
INLINE void unpooled_of(const void *y, const void *given, void *into, Py_ssize_t lines, Py_ssize_t width,
                        Py_ssize_t channels, int half) {
    PIXELS(lines, width, channels, {
        const Py_ssize_t places[4] = {large, large + channels, large + below, large + below + channels};
        Floats values[4];
        for (int p = 0; p < 4; p++) values[p] = load(y, places[p], half);
        Floats left = load(given, small, half);
        Floats most = larger(larger(larger(values[0], values[1]), values[2]), values[3]);
        for (int p = 0; p < 4; p++) {
            Flags here = (values[p] == most) | (values[p] != values[p]);
            put(into, places[p], (Floats)((Flags)left & here), half);
            left = (Floats)((Flags)left & ~here);
        }
    });
}

static void unpooled(const void *y, const void *given, void *into, Py_ssize_t lines, Py_ssize_t width,
                     Py_ssize_t channels, int half) {
    half ? unpooled_of(y, given, into, lines, width, channels, 1)
         : unpooled_of(y, given, into, lines, width, channels, 0);
}

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

/* Adds the products of some rows' columns with their group's rests. */
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
        along[2 * r] += folded(first[r]);
        along[2 * r + 1] += folded(second[r]);
    }
}

/* Squared norm of the goal of a group without rows: nothing of it is needed later. */
INLINE double unmet(const Match *m, Py_ssize_t group, int seconds) {
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

INLINE double met(const Match *m, Py_ssize_t group, double *along, int half, int seconds, int rectify) {
    Py_ssize_t begin = m->starts[group], last = m->starts[group + 1];
    double total = 0;
    FOURS(row, begin, last, 1, {
        norms(m, row, many, half, rectify);
        if (m->small) /* of maps that are still near */
            pooled(part(m->phi, row * m->width, half), part(m->small, row * m->width / 4, half), many * m->lines,
                   m->across, m->channels, half);
    });
    memset(along, 0, 2 * (last - begin) * sizeof(double));
    for (Py_ssize_t at = 0; at < m->width; at += BLOCK) {
        Py_ssize_t end = least(at + BLOCK, m->width);
        Floats square = {0};
        FOURS(c, at, end, LANES, square = rests(m, group, c, many, square, half, seconds));
        total += folded(square);
        FOURS(row, begin, last, 1, alongs(m, group, row, many, at, end, along + 2 * (row - begin), half, seconds));
    }
    for (Py_ssize_t row = 0; row < last - begin; row++) {
        float *scale = m->scales + 4 * (begin + row);
        scale[1] = (float)(along[2 * row] * pow(scale[0], 3) / (m->scale1 * m->scale1));
        scale[3] = seconds ? (float)(along[2 * row + 1] * pow(scale[2], 3) / (m->scale2 * m->scale2)) : 0;
    }
    return total;
}

INLINE void match_of(const Match *m, float *totals, double *along, int half, int seconds, int rectify) {
    for (Py_ssize_t group = 0; group < m->groups; group++) {
        int empty = m->starts[group] == m->starts[group + 1];
        totals[group] = (float)(empty ? unmet(m, group, seconds) : met(m, group, along, half, seconds, rectify));
    }
}

static void match(const Match *m, float *totals, double *along, int half, int rectify) {
    int seconds = m->goals2 != NULL;
    if (half && seconds && rectify) match_of(m, totals, along, 1, 1, 1); /* the usual case, by itself */
    else if (half) seconds ? match_of(m, totals, along, 1, 1, rectify) : match_of(m, totals, along, 1, 0, rectify);
    else seconds ? match_of(m, totals, along, 0, 1, rectify) : match_of(m, totals, along, 0, 0, rectify);
}

/* A group's factor times the gradient of its squared distance, and what comes from later layers: as such, or, of a
 * map that was pooled, for the pooled one. */
INLINE void unmatch_of(const Match *m, const float *factors, const void *later, void *into, int half, int seconds,
                       int rectify) {
    const Py_ssize_t width = m->width;
    const void *const phi = m->phi;
    for (Py_ssize_t group = 0; group < m->groups; group++) {
        const float *const rests1 = m->rests1 + group * width, *const rests2 = m->rests2 + group * width * seconds;
        for (Py_ssize_t row = m->starts[group]; row < m->starts[group + 1]; row++) {
            const float *scale = m->scales + 4 * row, factor = 2 * factors[group];
            const float by1 = factor * scale[0], along1 = factor * scale[1];
            const float by2 = 2 * factor * scale[2], along2 = 2 * factor * scale[3];
            const void *came = later ? part(later, row * width, half) : NULL;
            if (m->small) {
                came = m->spread;
                unpooled(part(phi, row * width, half), part(m->small, row * width / 4, half), m->spread, m->lines,
                         m->across, m->channels, half);
            }
            for (Py_ssize_t c = 0; c < width; c += LANES) {
                Floats value = load(phi, row * width + c, half);
                Floats found = by1 * load(rests1, c, 0) - along1 * value;
                if (seconds) found += value * (by2 * load(rests2, c, 0) - along2 * (value * value));
                if (came) found += load(came, c, half);
                store(into, row * width + c, rectify ? passed(found, value) : found, half);
            }
        }
    }
}

static void unmatch(const Match *m, const float *factors, const void *later, void *into, int half, int rectify) {
    int seconds = m->goals2 != NULL;
    if (half && seconds && rectify) unmatch_of(m, factors, later, into, 1, 1, 1);
    else if (half && seconds) unmatch_of(m, factors, later, into, 1, 1, rectify);
    else if (half) unmatch_of(m, factors, later, into, 1, 0, rectify);
    else if (seconds) unmatch_of(m, factors, later, into, 0, 1, rectify);
    else unmatch_of(m, factors, later, into, 0, 0, rectify);
}

/* ------------------------------------------------------------------ batch normalisation with ReLU */

/* Adds up `many` sixteens of columns from c on over some tiles, into `lanes` [2, tile]: spreads about a number and
 * their squares; or back, what came for values that the ReLU let pass, and its products with the values. */
INLINE void some_sums(const Norm *n, const void *given, const float *about, Py_ssize_t c, int many, Py_ssize_t begin,
                      Py_ssize_t end, int half) {
    const void *const x = n->x;
    const Py_ssize_t tile = n->tile;
    Floats first[4] = {{0}}, second[4] = {{0}}, middle[4], scale[4];
    for (int i = 0; i < many; i++) {
        middle[i] = load(about, c + i * LANES, 0);
        if (given) scale[i] = load(n->inverse, c + i * LANES, 0);
    }
    for (Py_ssize_t at = begin + c; at < end; at += tile)
        for (int i = 0; i < many; i++) {
            Floats one = load(x, at + i * LANES, half) - middle[i], other = one;
            if (given) {
                other = one * scale[i];
                one = passed(load(given, at + i * LANES, half), other);
            }
            first[i] += one;
            second[i] += other * one;
        }
    for (int i = 0; i < many; i++) {
        store(n->lanes, c + i * LANES, first[i], 0);
        store(n->lanes, tile + c + i * LANES, second[i], 0);
    }
}

/* Two sums a channel over all rows (see `some_sums`), a stretch of tiles that stays near after another. */
INLINE void summed(const Norm *n, const void *given, const float *about, int half) {
    Py_ssize_t count = n->rows * n->channels, stretch = STRETCH * n->tile;
    memset(n->sums, 0, 2 * n->channels * sizeof(double));
    for (Py_ssize_t begin = 0; begin < count; begin += stretch) {
        Py_ssize_t end = least(begin + stretch, count);
        FOURS(c, 0, n->tile, LANES, some_sums(n, given, about, c, many, begin, end, half));
        for (Py_ssize_t c = 0; c < n->tile; c++) {
            n->sums[c % n->channels] += n->lanes[c];
            n->sums[n->channels + c % n->channels] += n->lanes[n->tile + c];
        }
    }
}

INLINE void some_normed(const Norm *n, void *y, Py_ssize_t c, int many, Py_ssize_t begin, Py_ssize_t end, int half) {
    const void *const x = n->x;
    const Py_ssize_t tile = n->tile;
    Floats mean[4], scale[4];
    for (int i = 0; i < many; i++) {
        mean[i] = load(n->mean, c + i * LANES, 0);
        scale[i] = load(n->inverse, c + i * LANES, 0);
    }
    for (Py_ssize_t at = begin + c; at < end; at += tile)
        for (int i = 0; i < many; i++) {
            Floats value = (load(x, at + i * LANES, half) - mean[i]) * scale[i];
            store(y, at + i * LANES, rectified(value), half);
        }
}

/* About the first row, so that squares of a large mean do not drown the variance. */
INLINE void norm_of(const Norm *n, void *y, double epsilon, int half) {
    float *about = n->lanes + 2 * n->tile;
    for (Py_ssize_t c = 0; c < n->tile; c++) about[c] = single(n->x, c % n->channels, half);
    summed(n, NULL, about, half);
    for (Py_ssize_t c = 0; c < n->tile; c++) {
        double shift = n->sums[c % n->channels] / n->rows;
        double variance = n->sums[n->channels + c % n->channels] / n->rows - shift * shift;
        n->mean[c] = (float)(about[c] + shift);
        n->inverse[c] = (float)(1 / sqrt((variance < 0 ? 0 : variance) + epsilon));
    }
    Py_ssize_t count = n->rows * n->channels, stretch = STRETCH * n->tile;
    for (Py_ssize_t begin = 0; begin < count; begin += stretch)
        FOURS(c, 0, n->tile, LANES, some_normed(n, y, c, many, begin, least(begin + stretch, count), half));
}

static void norm(const Norm *n, void *y, double epsilon, int half) {
    half ? norm_of(n, y, epsilon, 1) : norm_of(n, y, epsilon, 0);
}

INLINE void some_unnormed(const Norm *n, const void *given, const void *beside, void *into, const float *means,
                          Py_ssize_t c, int many, Py_ssize_t begin, Py_ssize_t end, int half) {
    const void *const x = n->x;
    const Py_ssize_t tile = n->tile;
    Floats mean[4], scale[4], pulled[4], slope[4];
    for (int i = 0; i < many; i++) {
        mean[i] = load(n->mean, c + i * LANES, 0);
        scale[i] = load(n->inverse, c + i * LANES, 0);
        pulled[i] = load(means, c + i * LANES, 0);
        slope[i] = load(means, tile + c + i * LANES, 0);
    }
    for (Py_ssize_t at = begin + c; at < end; at += tile)
        for (int i = 0; i < many; i++) {
            Floats value = (load(x, at + i * LANES, half) - mean[i]) * scale[i];
            Floats pull = passed(load(given, at + i * LANES, half), value);
            Floats found = scale[i] * (pull - pulled[i] - value * slope[i]);
            if (beside) found = reread(found, half) + load(beside, at + i * LANES, half);
            store(into, at + i * LANES, found, half);
        }
}

/* beside: what comes for x itself, added; NULL for nothing. */
INLINE void unnorm_of(const Norm *n, const void *given, const void *beside, void *into, int half) {
    float *means = n->lanes + 2 * n->tile, *slopes = means + n->tile;
    summed(n, given, n->mean, half);
    for (Py_ssize_t c = 0; c < n->tile; c++) {
        means[c] = (float)(n->sums[c % n->channels] / n->rows);
        slopes[c] = (float)(n->sums[n->channels + c % n->channels] / n->rows);
    }
    Py_ssize_t count = n->rows * n->channels, stretch = STRETCH * n->tile;
    for (Py_ssize_t begin = 0; begin < count; begin += stretch) {
        Py_ssize_t end = least(begin + stretch, count);
        FOURS(c, 0, n->tile, LANES, some_unnormed(n, given, beside, into, means, c, many, begin, end, half));
    }
}

static void unnorm(const Norm *n, const void *given, const void *beside, void *into, int half) {
    if (!beside) half ? unnorm_of(n, given, NULL, into, 1) : unnorm_of(n, given, NULL, into, 0);
    else half ? unnorm_of(n, given, beside, into, 1) : unnorm_of(n, given, beside, into, 0);
}

/* ------------------------------------------------------------------ grey as three equal channels */

static void tripled(const void *x, void *y, Py_ssize_t count, int half) {
    for (Py_ssize_t i = 0; i < count; i++)
        for (int c = 0; c < 3; c++) {
            if (half) ((uint16_t *)y)[3 * i + c] = ((const uint16_t *)x)[i];
            else ((float *)y)[3 * i + c] = ((const float *)x)[i];
        }
}

/* x = sums of the three entries of y that came of each; sixteen of them at a time, the rest one by one. */
static void untripled(const void *y, void *x, Py_ssize_t count, int half) {
    for (Py_ssize_t at = 0; at < count; at += LANES) {
        Py_ssize_t many = least(LANES, count - at);
        Floats sums = {0};
        for (int l = 0; l < many; l++) {
            Py_ssize_t from = 3 * (at + l);
            sums[l] = single(y, from, half) + single(y, from + 1, half) + single(y, from + 2, half);
        }
        if (many == LANES) store(x, at, sums, half);
        else {
            float rest[LANES];
            store(rest, 0, sums, half);
            memcpy(part(x, at, half), rest, many * (half ? 2 : 4));
        }
    }
}

/* ------------------------------------------------------------------ scores */

/* Weights that a draw keeps, w [u < theta]; the tail of fewer than sixteen goes by a copy. */
INLINE void kept_some(const float *weights, const float *theta, const float *uniform, void *into, Py_ssize_t at,
                             int half) {
    Floats where = load(theta, at, 0) - load(uniform, at, 0);
    store(into, at, passed(load(weights, at, 0), where), half);
}

INLINE void kept_of(const float *weights, const float *theta, const float *uniform, void *into, Py_ssize_t count,
                           int half) {
    Py_ssize_t whole = count / LANES * LANES, rest = count - whole;
    for (Py_ssize_t at = 0; at < whole; at += LANES) kept_some(weights, theta, uniform, into, at, half);
    float tails[3][LANES] = {{0}}, found[LANES];
    memcpy(tails[0], weights + whole, rest * sizeof(float));
    memcpy(tails[1], theta + whole, rest * sizeof(float));
    memcpy(tails[2], uniform + whole, rest * sizeof(float));
    kept_some(tails[0], tails[1], tails[2], found, 0, half);
    memcpy((char *)into + whole * (half ? 2 : 4), found, rest * (half ? 2 : 4));
}

static void kept(const float *weights, const float *theta, const float *uniform, void *into, Py_ssize_t count,
                        int half) {
    half ? kept_of(weights, theta, uniform, into, count, 1) : kept_of(weights, theta, uniform, into, count, 0);
}

/* The gradient by the scores, g w theta (1 - theta), or g w. */
static void scored(const void *gradient, const float *weights, const float *theta, float *into, Py_ssize_t count,
                          int half, int plain) {
    for (Py_ssize_t i = 0; i < count; i++) {
        float found = single(gradient, i, half) * weights[i];
        into[i] = plain ? found : found * theta[i] * (1 - theta[i]);
    }
}

/* One step of Adam (Kingma, Ba 2015): scores -= rate · first / (sqrt(second / correction) + tiny). */
static void adam(float *scores, const float *gradient, float *first, float *second, Py_ssize_t count,
                        float beta1, float beta2, float rate, float correction, float tiny) {
    for (Py_ssize_t i = 0; i < count; i++) {
        float g = gradient[i];
        first[i] += (1 - beta1) * (g - first[i]);
        second[i] = beta2 * second[i] + (1 - beta2) * g * g;
        scores[i] -= rate * first[i] / (sqrtf(second[i] / correction) + tiny);
    }
}

#undef FOURS
#undef PIXELS
#undef adam
#undef alongs
#undef doubled
#undef doubled_of
#undef folded
#undef halved
#undef halved_of
#undef kept
#undef kept_of
#undef kept_some
#undef larger
#undef load
#undef match
#undef match_of
#undef met
#undef norm
#undef norm_of
#undef norms
#undef part
#undef passed
#undef pooled
#undef pooled_of
#undef put
#undef rectified
#undef reread
#undef rests
#undef rounded
#undef scored
#undef single
#undef some_normed
#undef some_sums
#undef some_unnormed
#undef store
#undef summed
#undef tripled
#undef widened
#undef narrowed
#undef unmatch
#undef unmatch_of
#undef unmet
#undef unnorm
#undef unnorm_of
#undef unpooled
#undef unpooled_of
#undef untripled
