/* Frozen blocks of matrix products and each channel's own convolution between two clamps; a part of _kernels.h. */

#ifdef WHOLE
#define TALL 12 /* rows of a product that are in registers at a time */
#else
#define TALL 3
#endif

/* Values where they are below 6, else 6; of NaN, NaN. */
INLINE Floats capped(Floats values) {
    const Floats most = (Floats){0} + 6;
#ifdef WHOLE
    Floats found;
    __asm__("vminps %1, %2, %0" : "=v"(found) : "v"(values), "v"(most)); /* of NaN, the values */
    return found;
#else
    Flags above = values > most;
    return (Floats)(((Flags)most & above) | ((Flags)values & ~above));
#endif
}

/* A bit for each value between 0 and 6. */
INLINE uint16_t within(Floats values) {
#ifdef WHOLE
    const Floats least = {0}, most = least + 6;
    uint16_t above, found;
    __asm__("vcmpps $0x1e, %1, %2, %0" : "=Yk"(above) : "v"(least), "v"(values));
    __asm__("vcmpps $0x11, %1, %2, %0%{%3%}" : "=Yk"(found) : "v"(most), "v"(values), "Yk"(above));
    return found;
#else
    Flags inside = (values > 0) & (values < 6);
    unsigned found = 0;
    for (int l = 0; l < LANES; l++) found |= (unsigned)(inside[l] & 1) << l;
    return (uint16_t)found;
#endif
}

/* Values whose bits are set, else 0. */
INLINE Floats chosen(Floats values, uint16_t bits) {
#ifdef WHOLE
    Floats found;
    __asm__("vmovaps %1, %0%{%2%}%{z%}" : "=v"(found) : "v"(values), "Yk"(bits));
    return found;
#else
    const Flags each = {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768};
    return (Floats)((Flags)values & ((((Flags){0} + bits) & each) != 0));
#endif
}

/* ------------------------------------------------------------------ matrix products */

/* Three rows at a time, or one, times one or two panels of sixteen columns; rows and panels are `depth` long. */
INLINE void multiplied(const float *rows, const float *panel, Py_ssize_t depth, int many, int panels, Floats *found) {
    const int high = many < 3 ? many : 3;
    const float *starts[TALL / 3];
    Floats sums[2 * TALL];
    for (int i = 0; i < many * panels; i++) sums[i] = (Floats){0};
    for (int i = 0; i < many; i += 3) starts[i / 3] = rows + i * depth;
    for (Py_ssize_t k = 0; k < depth; k++) {
        Floats one = load(panel, k * LANES, 0), other = {0};
        if (panels == 2) other = load(panel, (depth + k) * LANES, 0);
        for (int i = 0; i < many; i++) {
            float value = starts[i / 3][i % high * depth];
            sums[i * panels] += value * one;
            if (panels == 2) sums[i * panels + 1] += value * other;
        }
        for (int i = 0; i < many; i += 3) starts[i / 3]++;
    }
    for (int i = 0; i < many * panels; i++) found[i] = sums[i];
}

/* Does something for each `TALL`, then three, then one of some rows. */
#define TALLS(at, end, ...)                                                                      \
    do {                                                                                         \
        Py_ssize_t at = 0;                                                                       \
        for (; at + TALL <= (end); at += TALL) { enum { many = TALL }; __VA_ARGS__; }            \
        if (TALL > 3) for (; at + 3 <= (end); at += 3) { enum { many = 3 }; __VA_ARGS__; }       \
        for (; at < (end); at++) { enum { many = 1 }; __VA_ARGS__; }                             \
    } while (0)

/* Some rows of a product to where they belong, with something added; the last panel may be partly used. */
INLINE void written(const float *rows, const Product *p, Py_ssize_t panel, const float *plus, float *into, int many,
                    int panels) {
    const float *const matrix = p->panels + panel * p->depth * LANES;
    Floats found[2 * TALL];
    multiplied(rows, matrix, p->depth, many, panels, found);
    for (int i = 0; i < many; i++)
        for (int j = 0; j < panels; j++) {
            Py_ssize_t left = p->width - (panel + j) * LANES, here = i * p->width + (panel + j) * LANES;
            float lanes[LANES] = {0};
            if (left >= LANES) {
                store(into, here, plus ? found[i * panels + j] + load(plus, here, 0) : found[i * panels + j], 0);
                continue;
            }
            if (plus) memcpy(lanes, plus + here, left * sizeof(float));
            store(lanes, 0, found[i * panels + j] + load(lanes, 0, 0), 0);
            memcpy(into + here, lanes, left * sizeof(float));
        }
}

/* `[count, depth]` times a matrix of panels, with something added: `[count, width]`. */
INLINE void product(const float *rows, const Product *p, const float *plus, float *into, Py_ssize_t count) {
    const Py_ssize_t panels = (p->width + LANES - 1) / LANES;
    for (Py_ssize_t panel = 0; panel < panels; panel += 2) {
        if (panel + 1 < panels)
            TALLS(row, count, written(rows + row * p->depth, p, panel, plus ? plus + row * p->width : NULL,
                                      into + row * p->width, many, 2));
        else
            TALLS(row, count, written(rows + row * p->depth, p, panel, plus ? plus + row * p->width : NULL,
                                      into + row * p->width, many, 1));
    }
}

/* ------------------------------------------------------------------ each channel's own convolution */

/* A value of a channel to where a kernel's taps find it: forwards with its bias and clamped; back with what came for
 * the averaged map, as far as the clamp lets it.  bit: its place among the clamps' bits. */
INLINE void entered(const Each *e, Floats value, Floats *room, Py_ssize_t row, Py_ssize_t first, Py_ssize_t c,
                    Py_ssize_t bits, Floats shift, Floats share, int half, int back) {
    if (back) {
        if (e->small) value += share * load(e->small, (first / e->square + e->cells[row]) * e->channels + c, half);
        value = chosen(value, e->outer[bits + row]);
    } else if (e->before) {
        value += shift;
        if (e->inner) e->inner[bits + row] = within(value);
        value = capped(rectified(value));
    }
    room[e->spots[row]] = value;
}

/* Channels of some images from pixel `first` on, to their rooms: as they are, or made by a product. */
INLINE void gathered(const Each *e, Py_ssize_t first, Py_ssize_t count, Py_ssize_t c, Floats *room, int panels, int half,
                     int back) {
    const Floats share = (Floats){0} + 1.0f / (float)e->square;
    const Py_ssize_t bits = c / LANES * e->images * e->sources + first, more = e->images * e->sources;
    Floats shift[2] = {{0}};
    for (int j = 0; j < panels && e->before; j++) shift[j] = load(e->before, c + j * LANES, 0);
    if (e->made.panels) {
        const float *const rows = (const float *)e->from + first * e->made.depth;
        const float *const matrix = e->made.panels + c * e->made.depth;
        TALLS(row, count, {
            Floats found[2 * TALL];
            multiplied(rows + row * e->made.depth, matrix, e->made.depth, many, panels, found);
            for (int i = 0; i < many; i++)
                for (int j = 0; j < panels; j++)
                    entered(e, found[i * panels + j], room + j * e->space, row + i, first, c + j * LANES,
                            bits + j * more, shift[j], share, half, back);
        });
        return;
    }
    for (Py_ssize_t row = 0; row < count; row++)
        for (int j = 0; j < panels; j++) {
            Floats value = {0};
            if (e->from) value = load(e->from, (first + row) * e->channels + c + j * LANES, half);
            entered(e, value, room + j * e->space, row, first, c + j * LANES, bits + j * more, shift[j], share, half,
                    back);
        }
}

/* `many` results of some taps. */
INLINE void tapped(const Floats *const *starts, const Floats *weights, const int64_t *steps, Py_ssize_t taps,
                   Floats *found, int many) {
    Floats sums[8];
    for (int i = 0; i < many; i++) sums[i] = (Floats){0};
    for (Py_ssize_t tap = 0; tap < taps; tap++)
        for (int i = 0; i < many; i++) sums[i] += weights[tap] * starts[i][steps[tap]];
    for (int i = 0; i < many; i++) found[i] = sums[i];
}

/* A result to where it belongs: forwards with its bias and clamped, and added to its average; back as the first clamp
 * lets it. */
INLINE void placed(const Each *e, void *into, Py_ssize_t pixel, Py_ssize_t bit, Floats value, Floats shift,
                   Floats *averages, int half, int back) {
    if (back) {
        if (e->inner) value = chosen(value, e->inner[bit]);
    } else {
        value += shift;
        if (e->outer) e->outer[bit] = within(value);
        value = capped(rectified(value));
        if (e->small) averages[e->cells[pixel]] += reread(value, half);
    }
    store(into, pixel * e->channels, value, half);
}

/* All results of sixteen channels of an image, phase by phase; bits: where its bits begin. */
INLINE void convolved(const Each *e, Py_ssize_t c, const Floats *room, void *into, Py_ssize_t bits, Floats *averages,
                      int half, int back) {
    const Floats shift = back ? (Floats){0} : load(e->after, c, 0);
    for (Py_ssize_t phase = 0, at = 0, from = 0; phase < e->phases; phase++) {
        const Py_ssize_t end = e->ends[2 * phase], count = e->ends[2 * phase + 1] - from;
        const int64_t *const taps = e->taps + from, *const steps = e->steps + from;
        Floats weights[MOST_TAPS];
        for (Py_ssize_t tap = 0; tap < count; tap++) weights[tap] = load(e->weights, taps[tap] * e->channels + c, 0);
        for (Py_ssize_t many; at < end; at += many) {
            const Floats *starts[8];
            Floats found[8];
            many = end - at >= 8 ? 8 : end - at >= 4 ? 4 : 1;
            for (int i = 0; i < many; i++) starts[i] = room + e->starts[at + i];
            if (many == 8) tapped(starts, weights, steps, count, found, 8);
            else if (many == 4) tapped(starts, weights, steps, count, found, 4);
            else tapped(starts, weights, steps, count, found, 1);
            for (int i = 0; i < many; i++)
                placed(e, into, e->places[at + i], bits + e->places[at + i], found[i], shift, averages, half, back);
        }
        from += count;
    }
}

/* The averaged map of sixteen channels of an image; the sums are 0 afterwards. */
INLINE void averaged(const Each *e, Py_ssize_t image, Py_ssize_t c, Floats *averages, int half) {
    const Py_ssize_t many = e->results / e->square;
    const float share = 1.0f / (float)e->square;
    for (Py_ssize_t pixel = 0; pixel < many; pixel++) {
        store(e->small, (image * many + pixel) * e->channels + c, share * averages[pixel], half);
        averages[pixel] = (Floats){0};
    }
}

/* Sixteen or thirty-two channels of some images; into: the results of the first of them. */
INLINE void channels_of(const Each *e, Py_ssize_t image, Py_ssize_t last, Py_ssize_t c, Floats *room, void *into,
                        int panels, int half, int back) {
    Floats *const averages = room + 2 * e->space;
    gathered(e, image * e->sources, (last - image) * e->sources, c, room, panels, half, back);
    for (int j = 0; j < panels; j++)
        for (Py_ssize_t one = image; one < last; one++) {
            Py_ssize_t here = c + j * LANES, bits = (here / LANES * e->images + one) * e->results;
            convolved(e, here, room + j * e->space + (one - image) * e->area,
                      part(into, (one - image) * e->results * e->channels + here, half), bits, averages, half, back);
            if (!back && e->small) averaged(e, one, here, averages, half);
        }
}

/* Some images at a time: a product, the convolution and another product, all while the maps are near. */
INLINE void each_of(Each *e, Py_ssize_t from, Py_ssize_t to, int half, int back) {
    const Py_ssize_t rooms = 2 * e->space + e->results, floats = e->into ? 0 : e->together * e->results * e->channels;
    Floats *room = aligned_alloc(sizeof(Floats), rooms * sizeof(Floats) + floats * sizeof(float));
    if (!room) {
        e->failed = 1;
        return;
    }
    memset(room, 0, rooms * sizeof(Floats));
    for (Py_ssize_t image = from; image < to; image += e->together) {
        Py_ssize_t last = least(image + e->together, to), c = 0, at = image * e->results;
        void *into = e->into ? part(e->into, at * e->channels, half) : room + rooms;
        for (; c + LANES < e->channels; c += 2 * LANES) channels_of(e, image, last, c, room, into, 2, half, back);
        if (c < e->channels) channels_of(e, image, last, c, room, into, 1, half, back);
        if (e->goes.panels)
            product(into, &e->goes, e->plus ? e->plus + at * e->goes.width : NULL, e->out + at * e->goes.width,
                    (last - image) * e->results);
    }
    free(room);
}
WORK_BY(each, Each, g->back)
