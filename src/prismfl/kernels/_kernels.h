/* The kernels of _fast.c, which includes this once for each kind of processor: NAMED gives every function of this
 * file a name of its own each time. */

#define adam NAMED(adam)
#define alongs NAMED(alongs)
#define averaged NAMED(averaged)
#define begun NAMED(begun)
#define blocks_met NAMED(blocks_met)
#define blocks_of NAMED(blocks_of)
#define capped NAMED(capped)
#define channels_of NAMED(channels_of)
#define chosen NAMED(chosen)
#define convolved NAMED(convolved)
#define doubled NAMED(doubled)
#define doubled_of NAMED(doubled_of)
#define each NAMED(each)
#define eaches NAMED(eaches)
#define entered NAMED(entered)
#define folded NAMED(folded)
#define gathered NAMED(gathered)
#define halved NAMED(halved)
#define halved_of NAMED(halved_of)
#define kept NAMED(kept)
#define kept_of NAMED(kept_of)
#define kept_some NAMED(kept_some)
#define larger NAMED(larger)
#define load NAMED(load)
#define multiplied NAMED(multiplied)
#define narrowed NAMED(narrowed)
#define normed NAMED(normed)
#define norms NAMED(norms)
#define part NAMED(part)
#define passed NAMED(passed)
#define placed NAMED(placed)
#define pooled NAMED(pooled)
#define pooled_of NAMED(pooled_of)
#define product NAMED(product)
#define put NAMED(put)
#define rectified NAMED(rectified)
#define reread NAMED(reread)
#define rests NAMED(rests)
#define rounded NAMED(rounded)
#define rows_met NAMED(rows_met)
#define rows_of NAMED(rows_of)
#define scored NAMED(scored)
#define scored_of NAMED(scored_of)
#define settled NAMED(settled)
#define single NAMED(single)
#define some_normed NAMED(some_normed)
#define some_sums NAMED(some_sums)
#define some_unnormed NAMED(some_unnormed)
#define store NAMED(store)
#define summed NAMED(summed)
#define summed_of NAMED(summed_of)
#define tapped NAMED(tapped)
#define tripled NAMED(tripled)
#define tripled_of NAMED(tripled_of)
#define uneach NAMED(uneach)
#define unmatch NAMED(unmatch)
#define unmatch_of NAMED(unmatch_of)
#define unmet NAMED(unmet)
#define unnormed NAMED(unnormed)
#define unnormed_of NAMED(unnormed_of)
#define unpooled NAMED(unpooled)
#define unpooled_of NAMED(unpooled_of)
#define untripled NAMED(untripled)
#define untripled_of NAMED(untripled_of)
#define widened NAMED(widened)
#define within NAMED(within)
#define written NAMED(written)

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
 * `small` is where they are, `large` where the first of their four is in a map of twice the size, `below` how much
 * later its second line is. */
#define PIXELS(p, from, to, ...)                                                         \
    do {                                                                                 \
        const Py_ssize_t width = (p)->width, channels = (p)->channels;                   \
        const Py_ssize_t below = 2 * width * channels;                                   \
        Py_ssize_t small = (from) * width * channels;                                    \
        for (Py_ssize_t line = (from); line < (to); line++)                              \
            for (Py_ssize_t column = 0; column < width; column++) {                      \
                Py_ssize_t large = 2 * (line * below + column * channels);               \
                for (Py_ssize_t c = 0; c < channels; c += LANES) {                       \
                    __VA_ARGS__;                                                         \
                    small += LANES, large += LANES;                                      \
                }                                                                        \
            }                                                                            \
    } while (0)

/* Each of four large pixels gets the small one added, with its image's shift where there is one. */
INLINE void doubled_of(const Pixels *p, Py_ssize_t from, Py_ssize_t to, int half) {
    const void *const x = p->x, *const shift = p->shift;
    void *const y = p->y;
    PIXELS(p, from, to, {
        const Py_ssize_t places[4] = {large, large + channels, large + below, large + below + channels};
        Floats value = load(x, small, half);
        if (shift) value = reread(value + load(shift, line / p->height * channels + c, half), half);
        for (int i = 0; i < 4; i++) store(y, places[i], load(y, places[i], half) + value, half);
    });
}

static void doubled(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Pixels *p = given;
    p->half ? doubled_of(p, from, to, 1) : doubled_of(p, from, to, 0);
}

/* The small pixel becomes the sum of the four. */
INLINE void halved_of(const Pixels *p, Py_ssize_t from, Py_ssize_t to, int half) {
    const void *const y = p->y;
    void *const x = p->x;
    PIXELS(p, from, to, {
        Floats above = load(y, large, half) + load(y, large + channels, half);
        Floats under = load(y, large + below, half) + load(y, large + below + channels, half);
        store(x, small, above + under, half);
    });
}

static void halved(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Pixels *p = given;
    p->half ? halved_of(p, from, to, 1) : halved_of(p, from, to, 0);
}

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
        Floats above = larger(load(y, large, half), load(y, large + channels, half));
        Floats under = larger(load(y, large + below, half), load(y, large + below + channels, half));
        put(x, small, larger(above, under), half);
    });
}

static void pooled(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Pixels *p = given;
    p->half ? pooled_of(p, from, to, 1) : pooled_of(p, from, to, 0);
}

/* Gives each of the four, in `into`, what came for their largest, if it was the first that large. */
INLINE void unpooled_of(const Pixels *p, Py_ssize_t from, Py_ssize_t to, int half) {
    const void *const x = p->x, *const y = p->y;
    void *const into = p->into;
    PIXELS(p, from, to, {
        const Py_ssize_t places[4] = {large, large + channels, large + below, large + below + channels};
        Floats values[4];
        for (int i = 0; i < 4; i++) values[i] = load(y, places[i], half);
        Floats left = load(x, small, half);
        Floats most = larger(larger(larger(values[0], values[1]), values[2]), values[3]);
        for (int i = 0; i < 4; i++) {
            Flags here = (values[i] == most) | (values[i] != values[i]);
            put(into, places[i], (Floats)((Flags)left & here), half);
            left = (Floats)((Flags)left & ~here);
        }
    });
}

static void unpooled(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Pixels *p = given;
    p->half ? unpooled_of(p, from, to, 1) : unpooled_of(p, from, to, 0);
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
INLINE void rows_of(const Match *m, Py_ssize_t from, Py_ssize_t to, int half, int rectify) {
    FOURS(row, from, to, 1, {
        norms(m, row, many, half, rectify);
        if (m->pixels.x) pooled((void *)&m->pixels, row * m->lines, (row + many) * m->lines);
    });
}

static void rows_met(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Match *m = given;
    if (m->half) m->rectify ? rows_of(m, from, to, 1, 1) : rows_of(m, from, to, 1, 0);
    else m->rectify ? rows_of(m, from, to, 0, 1) : rows_of(m, from, to, 0, 0);
}

/* The second pass: of blocks of columns, in one group or in all. */
INLINE void blocks_of(const Match *m, Py_ssize_t from, Py_ssize_t to, int half, int seconds) {
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

static void blocks_met(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Match *m = given;
    int seconds = m->goals2 != NULL;
    if (m->half) seconds ? blocks_of(m, from, to, 1, 1) : blocks_of(m, from, to, 1, 0);
    else seconds ? blocks_of(m, from, to, 0, 1) : blocks_of(m, from, to, 0, 0);
}

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
INLINE void unmatch_of(const Match *m, Py_ssize_t from, Py_ssize_t to, int half, int seconds, int rectify) {
    const Py_ssize_t width = m->width;
    const void *const phi = m->phi, *const later = m->pixels.x ? m->pixels.into : m->later;
    void *const into = m->pixels.into;
    Py_ssize_t group = 0;
    for (Py_ssize_t row = from; row < to; row++) {
        while (m->starts[group + 1] <= row) group++;
        const float *const rests1 = m->rests1 + group * width, *const rests2 = m->rests2 + group * width * seconds;
        const float *scale = m->scales + 4 * row, factor = 2 * m->factors[group];
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

static void unmatch(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Match *m = given;
    int seconds = m->goals2 != NULL;
    if (m->half && seconds && m->rectify) unmatch_of(m, from, to, 1, 1, 1); /* the usual case, by itself */
    else if (m->half) seconds ? unmatch_of(m, from, to, 1, 1, m->rectify) : unmatch_of(m, from, to, 1, 0, m->rectify);
    else seconds ? unmatch_of(m, from, to, 0, 1, m->rectify) : unmatch_of(m, from, to, 0, 0, m->rectify);
}

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

static void summed(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Norm *n = given;
    if (n->half) n->given ? summed_of(n, from, to, 1, 1) : summed_of(n, from, to, 1, 0);
    else n->given ? summed_of(n, from, to, 0, 1) : summed_of(n, from, to, 0, 0);
}

static void normed(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Norm *n = given;
    if (n->half) STRETCHES(n, from, to, some_normed(n, c, many, begin, end, 1))
    else STRETCHES(n, from, to, some_normed(n, c, many, begin, end, 0))
}

INLINE void unnormed_of(const Norm *n, Py_ssize_t from, Py_ssize_t to, int half, int more) {
    STRETCHES(n, from, to, some_unnormed(n, c, many, begin, end, half, more));
}

static void unnormed(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Norm *n = given;
    if (n->half) n->beside ? unnormed_of(n, from, to, 1, 1) : unnormed_of(n, from, to, 1, 0);
    else n->beside ? unnormed_of(n, from, to, 0, 1) : unnormed_of(n, from, to, 0, 0);
}

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

/* ------------------------------------------------------------------ grey as three equal channels */

INLINE void tripled_of(const void *x, void *y, Py_ssize_t from, Py_ssize_t to, int half) {
    for (Py_ssize_t i = from; i < to; i++)
        for (int c = 0; c < 3; c++) {
            if (half) ((uint16_t *)y)[3 * i + c] = ((const uint16_t *)x)[i];
            else ((float *)y)[3 * i + c] = ((const float *)x)[i];
        }
}

static void tripled(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Pixels *p = given;
    p->half ? tripled_of(p->x, p->y, from, to, 1) : tripled_of(p->x, p->y, from, to, 0);
}

/* x = sums of the three entries of y that came of each; sixteen of them at a time, the rest by a copy. */
INLINE void untripled_of(void *x, const void *y, Py_ssize_t from, Py_ssize_t to, int half) {
    for (Py_ssize_t at = from; at < to; at += LANES) {
        Py_ssize_t many = least(LANES, to - at);
        float sums[LANES] = {0}, rest[LANES];
        for (int l = 0; l < many; l++) {
            Py_ssize_t here = 3 * (at + l);
            sums[l] = single(y, here, half) + single(y, here + 1, half) + single(y, here + 2, half);
        }
        store(many == LANES ? part(x, at, half) : rest, 0, load(sums, 0, 0), half);
        if (many < LANES) memcpy(part(x, at, half), rest, many * (half ? 2 : 4));
    }
}

static void untripled(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Pixels *p = given;
    p->half ? untripled_of(p->x, p->y, from, to, 1) : untripled_of(p->x, p->y, from, to, 0);
}

/* ------------------------------------------------------------------ scores */

/* Weights that a draw keeps, w [u < theta]; the tail of fewer than sixteen goes by a copy. */
INLINE void kept_some(const float *weights, const float *theta, const float *uniform, void *into, Py_ssize_t at,
                      int half) {
    Floats where = load(theta, at, 0) - load(uniform, at, 0);
    store(into, at, passed(load(weights, at, 0), where), half);
}

INLINE void kept_of(const Scores *s, Py_ssize_t from, Py_ssize_t to, int half) {
    Py_ssize_t whole = to - (to - from) % LANES, rest = to - whole;
    for (Py_ssize_t at = from; at < whole; at += LANES) kept_some(s->weights, s->theta, s->uniform, s->into, at, half);
    float tails[3][LANES] = {{0}}, found[LANES];
    memcpy(tails[0], s->weights + whole, rest * sizeof(float));
    memcpy(tails[1], s->theta + whole, rest * sizeof(float));
    memcpy(tails[2], s->uniform + whole, rest * sizeof(float));
    kept_some(tails[0], tails[1], tails[2], found, 0, half);
    memcpy(part(s->into, whole, half), found, rest * (half ? 2 : 4));
}

static void kept(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Scores *s = given;
    s->half ? kept_of(s, from, to, 1) : kept_of(s, from, to, 0);
}

/* The gradient by the scores, g w theta (1 - theta). */
INLINE void scored_of(const Scores *s, Py_ssize_t from, Py_ssize_t to, int half) {
    const float *const weights = s->weights, *const theta = s->theta;
    const void *const gradient = s->gradient;
    float *const into = s->into;
    for (Py_ssize_t i = from; i < to; i++) into[i] = single(gradient, i, half) * weights[i] * theta[i] * (1 - theta[i]);
}

static void scored(void *given, Py_ssize_t from, Py_ssize_t to) {
    const Scores *s = given;
    s->half ? scored_of(s, from, to, 1) : scored_of(s, from, to, 0);
}

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

#undef FOURS
#undef PIXELS
#undef STRETCHES
#undef adam
#undef alongs
#undef averaged
#undef begun
#undef blocks_met
#undef blocks_of
#undef capped
#undef channels_of
#undef chosen
#undef convolved
#undef doubled
#undef doubled_of
#undef each
#undef eaches
#undef entered
#undef folded
#undef gathered
#undef halved
#undef halved_of
#undef kept
#undef kept_of
#undef kept_some
#undef larger
#undef load
#undef multiplied
#undef narrowed
#undef normed
#undef norms
#undef part
#undef passed
#undef placed
#undef pooled
#undef pooled_of
#undef product
#undef put
#undef rectified
#undef reread
#undef rests
#undef rounded
#undef rows_met
#undef rows_of
#undef scored
#undef scored_of
#undef settled
#undef single
#undef some_normed
#undef some_sums
#undef some_unnormed
#undef store
#undef summed
#undef summed_of
#undef tapped
#undef tripled
#undef tripled_of
#undef uneach
#undef unmatch
#undef unmatch_of
#undef unmet
#undef unnormed
#undef unnormed_of
#undef unpooled
#undef unpooled_of
#undef untripled
#undef untripled_of
#undef widened
#undef within
#undef written
