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
#define passed NAMED(passed)
#define pooled NAMED(pooled)
#define pooled_of NAMED(pooled_of)
#define rectified NAMED(rectified)
#define rests NAMED(rests)
#define scored NAMED(scored)
#define single NAMED(single)
#define store NAMED(store)
#define unmatch NAMED(unmatch)
#define unmatch_of NAMED(unmatch_of)
#define unmet NAMED(unmet)
#define unnorm NAMED(unnorm)
#define unnorm_of NAMED(unnorm_of)
#define unpooled NAMED(unpooled)
#define unpooled_of NAMED(unpooled_of)

INLINE Floats load(const void *from, Py_ssize_t i, int half) {
    Floats found;
    if (half) {
        Halves raw;
        memcpy(&raw, (const uint16_t *)from + i, sizeof raw);
        Words bits = __builtin_convertvector(raw, Words) << 16;
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

INLINE void store(void *to, Py_ssize_t i, Floats values, int half) {
    if (half) {
        Words bits;
        memcpy(&bits, &values, sizeof bits);
        bits = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;          /* ties to even */
        bits = ((Words)(values == values) & bits) | ((Words)(values != values) & 0x7fc0); /* a NaN stays one */
        Halves raw = __builtin_convertvector(bits, Halves);
        memcpy((uint16_t *)to + i, &raw, sizeof raw);
    } else
        memcpy((float *)to + i, &values, sizeof values);
}

/* Values where they are above 0, else 0; of NaN, NaN. */
INLINE Floats rectified(Floats values) { return (Floats)((Flags)values & ~(values < 0)); }

/* Values where the others are above 0, else 0. */
INLINE Floats passed(Floats values, Floats where) { return (Floats)((Flags)values & (where > 0)); }

INLINE double folded(Floats lanes) {
    double sum = 0;
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

/* ------------------------------------------------------------------ squared distance of moments */

INLINE void norms(const Match *m, Py_ssize_t row, int half, int rectify) {
    Py_ssize_t start = row * m->width;
    double sum1 = 0, sum2 = 0;
    for (Py_ssize_t at = 0; at < m->width; at += BLOCK) {
        Py_ssize_t end = least(at + BLOCK, m->width);
        Floats first = {0}, second = {0};
        for (Py_ssize_t c = at; c < end; c += LANES) {
            Floats value = load(m->phi, start + c, half);
            if (rectify) {
                value = rectified(value);
                store(m->phi, start + c, value, half);
            }
            Floats square = value * value;
            first += square;
            second += square * square;
        }
        sum1 += folded(first);
        sum2 += folded(second);
    }
    m->scales[4 * row] = (float)(m->scale1 * inverse(sum1));
    m->scales[4 * row + 2] = (float)(m->scale2 * inverse(sum2));
}

/* Sums of a group less its goal over some columns, and their squared norm. */
INLINE double rests(const Match *m, Py_ssize_t group, Py_ssize_t at, Py_ssize_t end, int half, int seconds) {
    Py_ssize_t place = group * m->width;
    Floats square = {0};
    for (Py_ssize_t c = at; c < end; c += LANES) {
        Floats rest1 = -load(m->goals1, place + c, 0), rest2 = {0};
        if (seconds) rest2 = -load(m->goals2, place + c, 0);
        for (Py_ssize_t row = m->starts[group]; row < m->starts[group + 1]; row++) {
            Floats value = load(m->phi, row * m->width + c, half);
            rest1 += m->scales[4 * row] * value;
            if (seconds) rest2 += m->scales[4 * row + 2] * (value * value);
        }
        store(m->rests1, place + c, rest1, 0);
        if (seconds) store(m->rests2, place + c, rest2, 0);
        square += rest1 * rest1 + rest2 * rest2;
    }
    return folded(square);
}

/* Adds the products of a row's columns with its group's rests. */
INLINE void alongs(const Match *m, Py_ssize_t group, Py_ssize_t row, Py_ssize_t at, Py_ssize_t end, double *along,
                   int half, int seconds) {
    Floats first = {0}, second = {0};
    for (Py_ssize_t c = at; c < end; c += LANES) {
        Floats value = load(m->phi, row * m->width + c, half);
        first += value * load(m->rests1, group * m->width + c, 0);
        if (seconds) second += value * value * load(m->rests2, group * m->width + c, 0);
    }
    along[0] += folded(first);
    along[1] += folded(second);
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
    Py_ssize_t begin = m->starts[group], rows = m->starts[group + 1] - begin;
    double total = 0;
    for (Py_ssize_t row = begin; row < begin + rows; row++) norms(m, row, half, rectify);
    memset(along, 0, 2 * rows * sizeof(double));
    for (Py_ssize_t at = 0; at < m->width; at += BLOCK) {
        Py_ssize_t end = least(at + BLOCK, m->width);
        total += rests(m, group, at, end, half, seconds);
        for (Py_ssize_t row = 0; row < rows; row++)
            alongs(m, group, begin + row, at, end, along + 2 * row, half, seconds);
    }
    for (Py_ssize_t row = 0; row < rows; row++) {
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

/* A group's factor times the gradient of its squared distance, and what comes from later layers. */
INLINE void unmatch_of(const Match *m, const float *factors, const void *later, void *into, int half, int seconds,
                    int rectify) {
    for (Py_ssize_t group = 0; group < m->groups; group++)
        for (Py_ssize_t row = m->starts[group]; row < m->starts[group + 1]; row++) {
            const float *scale = m->scales + 4 * row, factor = 2 * factors[group];
            float by1 = factor * scale[0], along1 = factor * scale[1];
            float by2 = 2 * factor * scale[2], along2 = 2 * factor * scale[3];
            for (Py_ssize_t c = 0; c < m->width; c += LANES) {
                Py_ssize_t here = row * m->width + c, there = group * m->width + c;
                Floats value = load(m->phi, here, half);
                Floats found = by1 * load(m->rests1, there, 0) - along1 * value;
                if (seconds) found += value * (by2 * load(m->rests2, there, 0) - along2 * (value * value));
                if (later) found += load(later, here, half);
                store(into, here, rectify ? passed(found, value) : found, half);
            }
        }
}

static void unmatch(const Match *m, const float *factors, const void *later, void *into, int half,
                               int rectify) {
    int seconds = m->goals2 != NULL;
    if (half && seconds && rectify && later) unmatch_of(m, factors, later, into, 1, 1, 1);
    else if (half && seconds) unmatch_of(m, factors, later, into, 1, 1, rectify);
    else if (half) unmatch_of(m, factors, later, into, 1, 0, rectify);
    else if (seconds) unmatch_of(m, factors, later, into, 0, 1, rectify);
    else unmatch_of(m, factors, later, into, 0, 0, rectify);
}

/* ------------------------------------------------------------------ batch normalisation with ReLU */

/* Two sums a channel over all rows: of what `pair` makes of each sixteen numbers. */
#define SUMS(n, pair)                                                                                       \
    do {                                                                                                    \
        Py_ssize_t count = (n)->rows * (n)->channels, stretch = STRETCH * (n)->tile;                        \
        float *first = (n)->lanes, *second = first + (n)->tile;                                             \
        memset((n)->sums, 0, 2 * (n)->channels * sizeof(double));                                           \
        for (Py_ssize_t begin = 0; begin < count; begin += stretch) {                                       \
            memset(first, 0, 2 * (n)->tile * sizeof(float));                                                \
            for (Py_ssize_t at = begin; at < least(begin + stretch, count); at += (n)->tile)                \
                for (Py_ssize_t c = 0; c < least((n)->tile, count - at); c += LANES) {                      \
                    Floats one, other;                                                                      \
                    pair(at + c, c, one, other);                                                            \
                    store(first, c, load(first, c, 0) + one, 0);                                            \
                    store(second, c, load(second, c, 0) + other, 0);                                        \
                }                                                                                           \
            for (Py_ssize_t c = 0; c < (n)->tile; c++) {                                                    \
                (n)->sums[c % (n)->channels] += first[c];                                                   \
                (n)->sums[(n)->channels + c % (n)->channels] += second[c];                                  \
            }                                                                                               \
        }                                                                                                   \
    } while (0)

/* About the first row, so that squares of a large mean do not drown the variance. */
INLINE void norm_of(const Norm *n, void *y, double epsilon, int half) {
    float *about = n->lanes + 2 * n->tile;
    for (Py_ssize_t c = 0; c < n->tile; c++) about[c] = single(n->x, c % n->channels, half);
#define SPREAD(here, c, one, other) one = load(n->x, here, half) - load(about, c, 0), other = one * one
    SUMS(n, SPREAD);
    for (Py_ssize_t c = 0; c < n->tile; c++) {
        double shift = n->sums[c % n->channels] / n->rows;
        double variance = n->sums[n->channels + c % n->channels] / n->rows - shift * shift;
        n->mean[c] = (float)(about[c] + shift);
        n->inverse[c] = (float)(1 / sqrt((variance < 0 ? 0 : variance) + epsilon));
    }
    Py_ssize_t count = n->rows * n->channels;
    for (Py_ssize_t at = 0; at < count; at += n->tile)
        for (Py_ssize_t c = 0; c < least(n->tile, count - at); c += LANES) {
            Floats value = (load(n->x, at + c, half) - load(n->mean, c, 0)) * load(n->inverse, c, 0);
            store(y, at + c, rectified(value), half);
        }
}

static void norm(const Norm *n, void *y, double epsilon, int half) {
    half ? norm_of(n, y, epsilon, 1) : norm_of(n, y, epsilon, 0);
}

INLINE void unnorm_of(const Norm *n, const void *given, void *into, int half) {
    float *means = n->lanes + 2 * n->tile, *slopes = means + n->tile;
#define VALUE(here, c) (load(n->x, here, half) - load(n->mean, c, 0)) * load(n->inverse, c, 0)
#define PULL(here, c, one, other) other = VALUE(here, c), one = passed(load(given, here, half), other), other *= one
    SUMS(n, PULL);
    for (Py_ssize_t c = 0; c < n->tile; c++) {
        means[c] = (float)(n->sums[c % n->channels] / n->rows);
        slopes[c] = (float)(n->sums[n->channels + c % n->channels] / n->rows);
    }
    Py_ssize_t count = n->rows * n->channels;
    for (Py_ssize_t at = 0; at < count; at += n->tile)
        for (Py_ssize_t c = 0; c < least(n->tile, count - at); c += LANES) {
            Floats value = VALUE(at + c, c), pull = passed(load(given, at + c, half), value);
            Floats found = pull - load(means, c, 0) - value * load(slopes, c, 0);
            store(into, at + c, load(n->inverse, c, 0) * found, half);
        }
}

static void unnorm(const Norm *n, const void *given, void *into, int half) {
    half ? unnorm_of(n, given, into, 1) : unnorm_of(n, given, into, 0);
}

/* ------------------------------------------------------------------ doubling, and its transpose */

/* y [images, 2 height, 2 width, channels] += x [images, height, width, channels], each entry of x four times. */
INLINE void doubled_of(const void *x, void *y, Py_ssize_t lines, Py_ssize_t width, Py_ssize_t channels, int half) {
    for (Py_ssize_t line = 0; line < 2 * lines; line++)
        for (Py_ssize_t column = 0; column < 2 * width; column++) {
            Py_ssize_t from = ((line / 2) * width + column / 2) * channels, to = (line * 2 * width + column) * channels;
            for (Py_ssize_t c = 0; c < channels; c += LANES)
                store(y, to + c, load(y, to + c, half) + load(x, from + c, half), half);
        }
}

static void doubled(const void *x, void *y, Py_ssize_t lines, Py_ssize_t width, Py_ssize_t channels,
                               int half) {
    half ? doubled_of(x, y, lines, width, channels, 1) : doubled_of(x, y, lines, width, channels, 0);
}

/* x = sums of the four entries of y that came of each. */
INLINE void halved_of(const void *y, void *x, Py_ssize_t lines, Py_ssize_t width, Py_ssize_t channels, int half) {
    for (Py_ssize_t line = 0; line < lines; line++)
        for (Py_ssize_t column = 0; column < width; column++) {
            Py_ssize_t upper = (2 * line * 2 * width + 2 * column) * channels, lower = upper + 2 * width * channels;
            for (Py_ssize_t c = 0; c < channels; c += LANES) {
                Floats above = load(y, upper + c, half) + load(y, upper + channels + c, half);
                Floats below = load(y, lower + c, half) + load(y, lower + channels + c, half);
                store(x, (line * width + column) * channels + c, above + below, half);
            }
        }
}

static void halved(const void *y, void *x, Py_ssize_t lines, Py_ssize_t width, Py_ssize_t channels,
                              int half) {
    half ? halved_of(y, x, lines, width, channels, 1) : halved_of(y, x, lines, width, channels, 0);
}

/* ------------------------------------------------------------------ largest of four pixels */

/* The larger, and NaN of NaN. */
INLINE Floats larger(Floats a, Floats b) {
    Flags other = (b > a) | (b != b);
    return (Floats)(((Flags)b & other) | ((Flags)a & ~other));
}

INLINE void pooled_of(const void *y, void *x, Py_ssize_t lines, Py_ssize_t width, Py_ssize_t channels, int half) {
    for (Py_ssize_t line = 0; line < lines; line++)
        for (Py_ssize_t column = 0; column < width; column++) {
            Py_ssize_t upper = (2 * line * 2 * width + 2 * column) * channels, lower = upper + 2 * width * channels;
            for (Py_ssize_t c = 0; c < channels; c += LANES) {
                Floats above = larger(load(y, upper + c, half), load(y, upper + channels + c, half));
                Floats below = larger(load(y, lower + c, half), load(y, lower + channels + c, half));
                store(x, (line * width + column) * channels + c, larger(above, below), half);
            }
        }
}

static void pooled(const void *y, void *x, Py_ssize_t lines, Py_ssize_t width, Py_ssize_t channels, int half) {
    half ? pooled_of(y, x, lines, width, channels, 1) : pooled_of(y, x, lines, width, channels, 0);
}

/* Gives each of four pixels what came for their largest, if it was the first that large. */
INLINE void unpooled_of(const void *y, const void *given, void *into, Py_ssize_t lines, Py_ssize_t width,
                               Py_ssize_t channels, int half) {
    for (Py_ssize_t line = 0; line < lines; line++)
        for (Py_ssize_t column = 0; column < width; column++)
            for (Py_ssize_t c = 0; c < channels; c += LANES) {
                Py_ssize_t first = (2 * line * 2 * width + 2 * column) * channels + c, below = 2 * width * channels;
                const Py_ssize_t places[4] = {first, first + channels, first + below, first + below + channels};
                Floats left = load(given, (line * width + column) * channels + c, half), most = load(y, first, half);
                for (int p = 1; p < 4; p++) most = larger(most, load(y, places[p], half));
                for (int p = 0; p < 4; p++) {
                    Floats value = load(y, places[p], half);
                    Flags here = (value == most) | (value != value);
                    store(into, places[p], (Floats)((Flags)left & here), half);
                    left = (Floats)((Flags)left & ~here);
                }
            }
}

static void unpooled(const void *y, const void *given, void *into, Py_ssize_t lines, Py_ssize_t width,
                            Py_ssize_t channels, int half) {
    half ? unpooled_of(y, given, into, lines, width, channels, 1)
         : unpooled_of(y, given, into, lines, width, channels, 0);
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

#undef SPREAD
#undef VALUE
#undef PULL
#undef SUMS
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
#undef passed
#undef pooled
#undef pooled_of
#undef rectified
#undef rests
#undef scored
#undef single
#undef store
#undef unmatch
#undef unmatch_of
#undef unmet
#undef unnorm
#undef unnorm_of
#undef unpooled
#undef unpooled_of
