/* Each channel's own convolution, between two clamps; a part of _kernels.h. */

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

/* Sixteen channels of an image, where a kernel's taps find them: forwards clamped; back what came for the map and for
 * the averaged one, where the clamp let pass. */
INLINE void gathered(const Each *e, Py_ssize_t image, Py_ssize_t c, Floats *room, int half, int back) {
    const Py_ssize_t pixels = e->rows.sources * e->columns.sources, channels = e->channels;
    const Py_ssize_t bits = (image * channels + c) / LANES * pixels, first = image * pixels / e->square * channels + c;
    const Floats shift = e->before ? load(e->before, c, 0) : (Floats){0};
    const float share = 1.0f / (float)e->square;
    for (Py_ssize_t y = 0, at = 0; y < e->rows.sources; y++) {
        Floats *line = room + (y + e->rows.lead) * e->columns.room + e->columns.lead;
        for (Py_ssize_t x = 0; x < e->columns.sources; x++, at++) {
            Floats value = {0};
            if (e->from) value = load(e->from, (image * pixels + at) * channels + c, half);
            if (back) {
                if (e->small) value += share * load(e->small, first + e->cells[at] * channels, half);
                value = chosen(value, e->outer[bits + at]);
            } else if (e->before) {
                value += shift;
                if (e->inner) e->inner[bits + at] = within(value);
                value = capped(rectified(value));
            }
            line[x] = value;
        }
    }
}

/* `many` results of some taps. */
INLINE void tapped(const Floats *const *starts, const Floats *weights, const Py_ssize_t *steps, Py_ssize_t taps,
                   Floats *found, int many) {
    Floats sums[8];
    for (int i = 0; i < many; i++) sums[i] = (Floats){0};
    for (Py_ssize_t tap = 0; tap < taps; tap++)
        for (int i = 0; i < many; i++) sums[i] += weights[tap] * starts[i][steps[tap]];
    for (int i = 0; i < many; i++) found[i] = sums[i];
}

/* A result to where it belongs: forwards with its bias and clamped, and added to its average; back as the first clamp
 * lets it. */
INLINE void placed(const Each *e, Py_ssize_t image, Py_ssize_t c, Py_ssize_t pixel, Floats value, Floats shift,
                   Floats *averages, int half, int back) {
    const Py_ssize_t pixels = e->rows.results * e->columns.results, channels = e->channels;
    const Py_ssize_t bits = (image * channels + c) / LANES * pixels + pixel;
    if (back) {
        if (e->inner) value = chosen(value, e->inner[bits]);
    } else {
        value += shift;
        if (e->outer) e->outer[bits] = within(value);
        value = capped(rectified(value));
        if (e->small) averages[e->cells[pixel]] += reread(value, half);
    }
    if (e->into) store(e->into, (image * pixels + pixel) * channels + c, value, half);
}

/* All results of sixteen channels of an image, phase by phase. */
INLINE void each_of(const Each *e, Py_ssize_t image, Py_ssize_t c, Floats *room, Floats *averages, int half,
                    int back) {
    const Floats shift = back ? (Floats){0} : load(e->after, c, 0);
    gathered(e, image, c, room, half, back);
    for (int phase = 0; phase < e->phases; phase++) {
        const Phase *p = e->phase + phase;
        Floats weights[MOST_TAPS];
        for (Py_ssize_t tap = 0; tap < p->taps; tap++) weights[tap] = load(e->weights, p->tap[tap] * e->channels + c, 0);
        for (Py_ssize_t at = p->begin, many; at < p->end; at += many) {
            const Floats *starts[8];
            Floats found[8];
            many = p->end - at >= 8 ? 8 : p->end - at >= 4 ? 4 : 1;
            for (int i = 0; i < many; i++) starts[i] = room + e->starts[at + i];
            if (many == 8) tapped(starts, weights, p->step, p->taps, found, 8);
            else if (many == 4) tapped(starts, weights, p->step, p->taps, found, 4);
            else tapped(starts, weights, p->step, p->taps, found, 1);
            for (int i = 0; i < many; i++)
                placed(e, image, c, e->places[at + i], found[i], shift, averages, half, back);
        }
    }
}

/* The averaged map of sixteen channels of an image; the sums are 0 afterwards. */
INLINE void averaged(const Each *e, Py_ssize_t image, Py_ssize_t c, Floats *averages, int half) {
    const Py_ssize_t many = e->rows.results * e->columns.results / e->square;
    const float share = 1.0f / (float)e->square;
    for (Py_ssize_t pixel = 0; pixel < many; pixel++) {
        store(e->small, (image * many + pixel) * e->channels + c, share * averages[pixel], half);
        averages[pixel] = (Floats){0};
    }
}

INLINE void eaches(Each *e, Py_ssize_t from, Py_ssize_t to, int half, int back) {
    const Py_ssize_t vectors = e->channels / LANES, many = e->rows.room * e->columns.room;
    Floats *room = aligned_alloc(sizeof(Floats), (many + e->rows.results * e->columns.results) * sizeof(Floats));
    if (!room) {
        e->failed = 1;
        return;
    }
    memset(room, 0, (many + e->rows.results * e->columns.results) * sizeof(Floats));
    for (Py_ssize_t at = from; at < to; at++) {
        each_of(e, at / vectors, at % vectors * LANES, room, room + many, half, back);
        if (!back && e->small) averaged(e, at / vectors, at % vectors * LANES, room + many, half);
    }
    free(room);
}

static void each(void *given, Py_ssize_t from, Py_ssize_t to) {
    Each *e = given;
    e->half ? eaches(e, from, to, 1, 0) : eaches(e, from, to, 0, 0);
}

static void uneach(void *given, Py_ssize_t from, Py_ssize_t to) {
    Each *e = given;
    e->half ? eaches(e, from, to, 1, 1) : eaches(e, from, to, 0, 1);
}
