/* The loops of the wire code that NumPy does in many passes: cells of contexts, sorting flags by rung, and the
 * range coder itself, with the tables of constriction's models.  Its bytes are those of constriction's RangeEncoder
 * with 32-bit words, a 64-bit state and 24-bit probabilities.
 *
 * Arrays come through the buffer protocol.  A value from an array that is an index is read once, checked, and kept in
 * memory of our own: callers' arrays may change while the interpreter is released. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define PRECISION 24                 /* bits of a probability */
#define SYMBOLS 256                  /* of eight flags */
#define CUTS (SYMBOLS + 1)           /* where the symbols of a rung begin, and the end of the last */
#define BUCKET_BITS 10               /* leading bits of a quantile that say at which symbol to start looking */
#define BUCKETS (1 << BUCKET_BITS)
#define RUNGS 256
#define BLOCK 512                    /* entries whose cells are computed before some are kept: what stays in the L1 */
#define BINS 16                      /* of differences of log-odds */

/* ------------------------------------------------------------------------------------------------ arguments */

typedef struct {
    Py_buffer views[12];
    int count;
    void *at[12];          /* of each argument: its memory, if it is an array (NULL for None), */
    Py_ssize_t items[12];  /* its length, or its value, if it is an integer */
} Args;

static PyObject *end(Args *a, PyObject *result) {
    while (a->count) PyBuffer_Release(&a->views[--a->count]);
    return result;
}

static int array(Args *a, int k, PyObject *object, Py_ssize_t size, int writable) {
    Py_buffer *view = &a->views[a->count];
    if (PyObject_GetBuffer(object, view, writable ? PyBUF_CONTIG : PyBUF_CONTIG_RO) < 0) return 0;
    a->count++;
    a->at[k] = view->buf;
    a->items[k] = view->len / size;
    if (view->itemsize == size && (uintptr_t)view->buf % (size_t)size == 0) return 1;
    PyErr_Format(PyExc_TypeError, "items of %zd bytes, aligned, are needed, not of %zd", size, view->itemsize);
    return 0;
}

/* One letter an argument: n an integer; b, h, i, q arrays of 1, 2, 4, 8 bytes, in capitals to be written to;
 * t is h, a table; z is Q or None. */
static int parse(Args *a, PyObject *const *args, Py_ssize_t given, const char *kinds) {
    if (given != (Py_ssize_t)strlen(kinds)) return PyErr_SetString(PyExc_TypeError, "a wrong number of arguments"), 0;
    for (int k = 0; k < given; k++) {
        char kind = kinds[k];
        int none = kind == 'z' && args[k] == Py_None;
        if (kind == 'n') {
            a->items[k] = PyLong_AsSsize_t(args[k]);
            if (a->items[k] == -1 && PyErr_Occurred()) return 0;
        } else if (!none) {
            Py_ssize_t size = strchr("bB", kind) ? 1 : strchr("hHt", kind) ? 2 : strchr("iI", kind) ? 4 : 8;
            if (!array(a, k, args[k], size, kind < 'a' || kind == 'z')) return 0;
        }
    }
    return 1;
}

static int must(int holds, const char *what) {
    if (!holds && !PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, what);
    return holds;
}

/* The same of arrays of one length, that of the first argument, but for tables. */
static int parse_even(Args *a, PyObject *const *args, Py_ssize_t given, const char *kinds) {
    int even = parse(a, args, given, kinds);
    for (int k = 0; even && k < given; k++) even = strchr("nt", kinds[k]) || a->items[k] == a->items[0];
    return must(even, "arrays of different lengths");
}

/* ----------------------------------------------------------------------------------------------- range coder */

typedef struct {
    uint64_t lower, range;
    uint64_t held;  /* words held back: the first one, then all ones, until it is known whether one is carried */
    uint64_t first;
    unsigned char *out;
} Writer;

static inline void word(Writer *w, uint32_t value) {
    for (int byte = 0; byte < 4; byte++) *w->out++ = (unsigned char)(value >> 8 * byte);
}

static inline void put(Writer *w, uint32_t left, uint32_t share) {
    uint64_t scale = w->range >> PRECISION, lower = w->lower + scale * left;
    w->range = scale * share;
    if (w->held && lower + w->range > lower) {
        uint32_t carried = lower < w->lower;
        word(w, (uint32_t)w->first + carried);
        for (uint64_t i = 1; i < w->held; i++) word(w, carried ? 0 : UINT32_MAX);
        w->held = 0;
    }
    w->lower = lower;
    if (w->range >> 32) return;
    w->lower <<= 32;
    w->range <<= 32;
    if (w->held) {
        w->held++;
    } else if (w->lower + w->range > w->lower) {
        word(w, (uint32_t)(lower >> 32));
    } else {
        w->held = 1;
        w->first = lower >> 32;
    }
}

typedef struct {
    uint64_t lower, range, point, place;  /* place: of the next word */
    const uint32_t *words;
    uint64_t count;
} Reader;

/* Where the next symbol lies, in 1 / 2^24; a number beyond for words that nobody wrote. */
static inline uint64_t quantile(const Reader *r) {
    uint64_t scale = r->range >> PRECISION;
    return scale ? (r->point - r->lower) / scale : UINT64_MAX;
}

static inline void taken(Reader *r, uint32_t left, uint32_t share) {
    uint64_t scale = r->range >> PRECISION;
    r->lower += scale * left;
    r->range = scale * share;
    if (r->range >> 32) return;
    r->lower <<= 32;
    r->range <<= 32;
    r->point <<= 32;
    if (r->place < r->count) r->point |= r->words[r->place++];
}

/* ------------------------------------------------------------------------------------------- flags by rung */

typedef struct {
    const uint32_t *cuts, *ones; /* [rungs][CUTS], and where a single set flag begins, [rungs] */
    const uint8_t *starts;       /* [rungs][BUCKETS]: the symbol in which a bucket of quantiles begins */
    const uint16_t *contexts;
    const uint8_t *of;           /* the rung of each cell */
    int64_t *seen;               /* unset and set flags of each cell in turn; or NULL */
    unsigned char *flags;
    Py_ssize_t rungs, cells, start, step, size;
    uint16_t *cell;              /* of each flag of the piece; then its rung, then the flags ordered by rung */
    uint8_t *rung, *ordered;
    Py_ssize_t ends[RUNGS];      /* of each rung among the ordered */
} Piece;

/* The piece of arguments k …: flags, contexts, start, stop, step, rungs of cells, seen, cuts, ones, starts. */
static int piece_from(Piece *p, const Args *a, int k) {
    Py_ssize_t stop = a->items[k + 3];
    *p = (Piece){.flags = a->at[k], .contexts = a->at[k + 1], .start = a->items[k + 2], .step = a->items[k + 4],
                 .of = a->at[k + 5], .cells = a->items[k + 5], .seen = a->at[k + 6], .cuts = a->at[k + 7],
                 .ones = a->at[k + 8], .rungs = a->items[k + 8], .starts = a->at[k + 9]};
    if (!must(a->items[k] == a->items[k + 1], "flags and contexts of different lengths") ||
        !must(p->start >= 0 && p->start <= stop && stop <= a->items[k] && p->step > 0, "a piece beyond the flags") ||
        !must(!p->seen || a->items[k + 6] == 2 * p->cells, "counts of other cells") ||
        !must(p->rungs <= RUNGS && a->items[k + 7] == p->rungs * CUTS && a->items[k + 9] == p->rungs * BUCKETS,
              "tables of different rungs"))
        return 0;
    p->size = stop > p->start ? (stop - p->start - 1) / p->step + 1 : 0;
    p->cell = PyMem_RawMalloc(4 * (size_t)p->size + 4);
    p->rung = (uint8_t *)(p->cell + p->size);
    p->ordered = p->rung + p->size;
    if (!p->cell) PyErr_NoMemory();
    return p->cell != NULL;
}

/* Fill in cells, rungs and ends, these one rung late: as where each begins.  0 for a cell that there is not. */
static int rank(Piece *p) {
    const uint16_t *restrict from = p->contexts + p->start;
    const uint8_t *restrict of = p->of;
    uint16_t *restrict cell_of = p->cell;
    uint8_t *restrict rung_of = p->rung;
    Py_ssize_t step = p->step, size = p->size, cells = p->cells, rungs = p->rungs;
    Py_ssize_t counts[2][RUNGS] = {{0}}; /* in turn: one sum would wait for its last addition */
    for (Py_ssize_t i = 0; i < size; i++) {
        uint16_t cell = from[i * step];
        if (cell >= cells) return 0;
        uint8_t rung = of[cell];
        if (rung >= rungs) return 0;
        cell_of[i] = cell;
        rung_of[i] = rung;
        counts[i & 1][rung]++;
    }
    for (Py_ssize_t rung = 0, sum = 0; rung < rungs; rung++) {
        p->ends[rung] = sum;
        sum += counts[0][rung] + counts[1][rung];
    }
    return 1;
}

/* Flags of the piece to their places among the ordered, or (back) from there, counted on the way. */
static inline void move(Piece *p, int back) {
    unsigned char *restrict flags = p->flags + p->start;
    const uint16_t *restrict cell = p->cell;
    const uint8_t *restrict rung = p->rung;
    uint8_t *restrict ordered = p->ordered;
    int64_t *restrict seen = p->seen;
    Py_ssize_t *restrict ends = p->ends, step = p->step, size = p->size;
    for (Py_ssize_t i = 0; i < size; i++) {
        Py_ssize_t place = ends[rung[i]]++;
        uint8_t flag;
        if (back) flag = flags[i * step] = ordered[place];
        else flag = ordered[place] = flags[i * step] != 0;
        if (seen) seen[2 * cell[i] + flag]++;
    }
}

static void sort(Piece *p) { move(p, 0); }

static void unsort(Piece *p) { move(p, 1); }

/* Eight flags, 0 or 1 each, as a byte and back, first flag lowest. */
static inline uint8_t packed(const uint8_t *flags) {
    uint64_t all = 0;
    for (int k = 0; k < 8; k++) all |= (uint64_t)flags[k] << 8 * k;
    return (uint8_t)(all * 0x0102040810204080u >> 56); /* flag k, at bit 8k, is carried to bit 56 + k */
}

static inline void unpacked(uint8_t *flags, unsigned symbol) {
    for (int k = 0; k < 8; k++) flags[k] = symbol >> k & 1;
}

static void write_rungs(const Piece *p, Writer *writer) {
    Writer local = *writer, *w = &local; /* a copy that no byte written can be part of stays in registers */
    Py_ssize_t at = 0;
    for (Py_ssize_t rung = 0; rung < p->rungs; rung++) {
        const uint32_t *cuts = p->cuts + rung * CUTS;
        uint32_t one = p->ones[rung];
        for (; at + 8 <= p->ends[rung]; at += 8) {
            unsigned symbol = packed(p->ordered + at);
            put(w, cuts[symbol], cuts[symbol + 1] - cuts[symbol]);
        }
        for (; at < p->ends[rung]; at++) put(w, p->ordered[at] ? one : 0, p->ordered[at] ? (1 << PRECISION) - one : one);
    }
    *writer = local;
}

/* ends: where each rung begins.  0 for words that nobody wrote. */
static int read_rungs(Piece *p, Reader *reader) {
    Reader local = *reader, *r = &local;
    Py_ssize_t at = 0;
    for (Py_ssize_t rung = 0; rung < p->rungs; rung++) {
        const uint32_t *cuts = p->cuts + rung * CUTS;
        const uint8_t *starts = p->starts + rung * BUCKETS;
        uint32_t one = p->ones[rung];
        Py_ssize_t end = rung + 1 < p->rungs ? p->ends[rung + 1] : p->size;
        for (; at + 8 <= end; at += 8) {
            uint64_t q = quantile(r);
            if (q >> PRECISION) return 0;
            unsigned symbol = starts[q >> (PRECISION - BUCKET_BITS)];
            while (symbol < SYMBOLS - 1 && cuts[symbol + 1] <= q) symbol++;
            taken(r, cuts[symbol], cuts[symbol + 1] - cuts[symbol]);
            unpacked(p->ordered + at, symbol);
        }
        for (; at < end; at++) {
            uint64_t q = quantile(r);
            if (q >> PRECISION) return 0;
            p->ordered[at] = q >= one;
            taken(r, p->ordered[at] ? one : 0, p->ordered[at] ? (1 << PRECISION) - one : one);
        }
    }
    *reader = local;
    return 1;
}

/* -------------------------------------------------------------------------------------- the coder's methods */

/* Room for so many symbols, at most a word each, and for the words that are held back; state: the first argument. */
static PyObject *room(Writer *w, const Args *a, Py_ssize_t symbols) {
    const uint64_t *state = a->at[0];
    if (!must(a->items[0] == 4 && !(state[2] >> 40), "no state of a writer")) return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, 4 * (symbols + (Py_ssize_t)state[2]));
    if (bytes) *w = (Writer){state[0], state[1], state[2], state[3], (unsigned char *)PyBytes_AS_STRING(bytes)};
    return bytes;
}

static PyObject *written(const Writer *w, const Args *a, PyObject *bytes) {
    uint64_t *state = a->at[0];
    state[0] = w->lower, state[1] = w->range, state[2] = w->held, state[3] = w->first;
    _PyBytes_Resize(&bytes, (char *)w->out - PyBytes_AS_STRING(bytes));
    return bytes;
}

/* The first two arguments: state and words. */
static int reader_from(Reader *r, const Args *a) {
    const uint64_t *state = a->at[0];
    if (!must(a->items[0] == 4, "no state of a reader")) return 0;
    *r = (Reader){state[0], state[1], state[2], state[3], a->at[1], (uint64_t)a->items[1]};
    return 1;
}

static PyObject *so_far(const Reader *r, const Args *a, int fine) {
    uint64_t *state = a->at[0];
    state[0] = r->lower, state[1] = r->range, state[2] = r->point, state[3] = r->place;
    return PyBool_FromLong(fine);
}

static PyObject *no_cell(void) {
    return PyErr_SetString(PyExc_IndexError, "a context beyond the cells, or a rung beyond the rungs"), NULL;
}

#define METHOD(name) static PyObject *name(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t given)

METHOD(write_flags) {
    Args a = {.count = 0};
    Piece p;
    Writer w;
    int fine;
    if (!parse(&a, args, given, "Qbhnnnbziib") || !piece_from(&p, &a, 1)) return end(&a, NULL);
    /* Eight flags a symbol, and up to seven of each rung that are left over. */
    PyObject *bytes = room(&w, &a, p.size < 8 * p.rungs ? p.size : p.size / 8 + 7 * p.rungs);
    if (bytes) {
        Py_BEGIN_ALLOW_THREADS
        if ((fine = rank(&p))) {
            sort(&p);
            write_rungs(&p, &w);
        }
        Py_END_ALLOW_THREADS
        if (fine) bytes = written(&w, &a, bytes);
        else Py_SETREF(bytes, no_cell());
    }
    PyMem_RawFree(p.cell);
    return end(&a, bytes);
}

METHOD(read_flags) {
    Args a = {.count = 0};
    Piece p;
    Reader r;
    int ranked, fine = 0;
    if (!parse(&a, args, given, "QiBhnnnbziib") || !reader_from(&r, &a) || !piece_from(&p, &a, 2)) return end(&a, NULL);
    Py_BEGIN_ALLOW_THREADS
    if ((ranked = rank(&p)) && (fine = read_rungs(&p, &r))) unsort(&p);
    Py_END_ALLOW_THREADS
    PyMem_RawFree(p.cell);
    return end(&a, ranked ? so_far(&r, &a, fine) : no_cell());
}

METHOD(write_bits) {
    Args a = {.count = 0};
    Writer w;
    PyObject *bytes;
    if (!parse(&a, args, given, "Qqnn")) return end(&a, NULL);
    const uint64_t *values = a.at[1];
    Py_ssize_t count = a.items[1], shift = a.items[2], bits = a.items[3];
    if (!must(shift >= 0 && shift < 64 && bits >= 0 && bits <= PRECISION, "bits beyond a word's") ||
        !(bytes = room(&w, &a, count)))
        return end(&a, NULL);
    uint32_t share = 1u << (PRECISION - bits);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) put(&w, (uint32_t)(values[i] >> shift & ((1u << bits) - 1)) * share, share);
    Py_END_ALLOW_THREADS
    return end(&a, written(&w, &a, bytes));
}

METHOD(read_bits) {
    Args a = {.count = 0};
    Reader r;
    int fine = 1;
    if (!parse(&a, args, given, "QiQn") || !reader_from(&r, &a)) return end(&a, NULL);
    uint64_t *values = a.at[2];
    Py_ssize_t count = a.items[2], bits = a.items[3], below = PRECISION - bits;
    if (!must(bits >= 0 && bits <= PRECISION, "bits beyond a word's")) return end(&a, NULL);
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) {
        uint64_t q = quantile(&r);
        if (!(fine = !(q >> PRECISION))) break;
        values[i] = values[i] << bits | q >> below;
        taken(&r, (uint32_t)(q >> below << below), 1u << below);
    }
    Py_END_ALLOW_THREADS
    return end(&a, so_far(&r, &a, fine));
}

/* ------------------------------------------------------------------------------------- entries, one by one */

/* Cells and near of at most a block; width: (4 … 7) << octave.  `restrict`, and nothing else, lets a compiler take
 * several entries at a time. */
static void block_cells(const uint16_t *restrict u, const uint16_t *restrict q, const uint8_t *restrict layers,
                        uint16_t depth, const int16_t *restrict levels, int octave, uint16_t inverse, Py_ssize_t size,
                        uint8_t *restrict near, uint16_t *restrict cells) {
    uint16_t far[BLOCK];
    for (Py_ssize_t i = 0; i < size; i++) {
        int32_t difference = levels[u[i]] - levels[q[i]];
        far[i] = (uint16_t)(difference < 0 ? -difference : difference);
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        uint16_t steps = far[i] >> octave, own = u[i] < q[i] ? q[i] : (uint16_t)-q[i];
        uint16_t bin = (uint16_t)((uint32_t)steps * inverse >> 16);
        cells[i] = (uint16_t)((bin << 4 | own >> 12) * depth + layers[i]);
        near[i] = bin < BINS;
    }
}

METHOD(flip_cells) { /* u, q, layers, depth, levels of log-odds, width of a bin, near, cells */
    Args a = {.count = 0};
    uint16_t block[BLOCK];
    uint8_t here[BLOCK];
    if (!parse_even(&a, args, given, "hhbntnBH") || !must(a.items[4] == 65536, "levels of other than 65536 numbers") ||
        !must(a.items[5] >= 4 && a.items[5] < 65536, "a width that bins have not"))
        return end(&a, NULL);
    const uint16_t *u = a.at[0], *q = a.at[1];
    const uint8_t *layers = a.at[2];
    const int16_t *levels = a.at[4];
    uint8_t *near = a.at[6];
    uint16_t *cells = a.at[7];
    Py_ssize_t count = a.items[0], width = a.items[5], filled = 0;
    int octave = 0;
    while (width >> octave > 7) octave++;
    /* Rounded up it divides exactly whatever is nearer than the last bin. */
    uint16_t inverse = (uint16_t)(65536 / (width >> octave) + (65536 % (width >> octave) != 0));
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t at = 0; at < count; at += BLOCK) {
        Py_ssize_t size = count - at < BLOCK ? count - at : BLOCK;
        block_cells(u + at, q + at, layers + at, (uint16_t)a.items[3], levels, octave, inverse, size, here, block);
        memcpy(near + at, here, (size_t)size);
        for (Py_ssize_t i = 0; i < size; i++) { /* what is not near is written over, which takes no branch */
            cells[filled] = block[i];
            filled += here[i];
        }
    }
    Py_END_ALLOW_THREADS
    return end(&a, PyLong_FromSsize_t(filled));
}

METHOD(pick) { /* values, chosen, found */
    Args a = {.count = 0};
    if (!parse_even(&a, args, given, "bbB")) return end(&a, NULL);
    const uint8_t *values = a.at[0], *chosen = a.at[1];
    uint8_t *found = a.at[2];
    Py_ssize_t count = a.items[0], filled = 0;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t i = 0; i < count; i++) {
        found[filled] = values[i];
        filled += chosen[i] != 0;
    }
    Py_END_ALLOW_THREADS
    return end(&a, PyLong_FromSsize_t(filled));
}

METHOD(spread) { /* chosen, found, values: as many as there are */
    Args a = {.count = 0};
    if (!parse(&a, args, given, "bBb") || !must(a.items[0] == a.items[1], "arrays of different lengths"))
        return end(&a, NULL);
    const uint8_t *chosen = a.at[0], *values = a.at[2];
    uint8_t *found = a.at[1];
    Py_ssize_t count = a.items[0], most = a.items[2], used = 0, i = 0;
    Py_BEGIN_ALLOW_THREADS
    for (; i < count && used < most; i++) { /* a value is read for each place, which takes no branch */
        uint8_t here = chosen[i] != 0;
        found[i] = values[used] & (uint8_t)-here;
        used += here;
    }
    memset(found + i, 0, (size_t)(count - i));
    Py_END_ALLOW_THREADS
    return end(&a, Py_NewRef(Py_None));
}

static void phases(const uint16_t *restrict below, const uint16_t *restrict above, const uint16_t *restrict q,
                   const uint8_t *restrict layers, uint16_t depth, uint16_t *restrict cells, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        int32_t all = below[i] + above[i] + 1, phase = 0;
        for (int32_t k = 1; k < 8; k++) phase += 8 * below[i] >= k * all; /* the quotient, by what processors have */
        cells[i] = (uint16_t)((phase << 4 | q[i] >> 12) * depth + layers[i]);
    }
}

METHOD(phase_cells) { /* below, above, q, layers, depth, cells */
    Args a = {.count = 0};
    if (!parse_even(&a, args, given, "hhhbnH")) return end(&a, NULL);
    Py_BEGIN_ALLOW_THREADS
    phases(a.at[0], a.at[1], a.at[2], a.at[3], (uint16_t)a.items[4], a.at[5], a.items[0]);
    Py_END_ALLOW_THREADS
    return end(&a, Py_NewRef(Py_None));
}

/* One more client met: counted where it sent an entry, and how near its u is; what it did not send is as far as
 * can be, which changes nothing. */
static void met(const uint16_t *restrict u, const uint16_t *restrict q, const uint16_t *restrict dealt, uint16_t part,
                uint16_t *restrict clients, uint16_t *restrict kept, uint16_t *restrict below,
                uint16_t *restrict above, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        uint16_t sent = dealt[i] == part, farthest = (uint16_t)(sent - 1), keeps = u[i] < q[i];
        uint16_t under = (uint16_t)((q[i] - u[i] - 1) | farthest), over = (uint16_t)((u[i] - q[i]) | farthest);
        clients[i] = (uint16_t)(clients[i] + sent);
        kept[i] = (uint16_t)(kept[i] + (keeps & sent));
        below[i] = under < below[i] ? under : below[i];
        above[i] = over < above[i] ? over : above[i];
    }
}

METHOD(meet) { /* u, q, dealt, part, clients, kept, below, above */
    Args a = {.count = 0};
    if (!parse_even(&a, args, given, "hhhnHHHH")) return end(&a, NULL);
    Py_BEGIN_ALLOW_THREADS
    met(a.at[0], a.at[1], a.at[2], (uint16_t)a.items[3], a.at[4], a.at[5], a.at[6], a.at[7], a.items[0]);
    Py_END_ALLOW_THREADS
    return end(&a, Py_NewRef(Py_None));
}

METHOD(surprise) { /* mask, u, q */
    Args a = {.count = 0};
    if (!parse_even(&a, args, given, "bhh")) return end(&a, NULL);
    const uint8_t *mask = a.at[0];
    const uint16_t *u = a.at[1], *q = a.at[2];
    Py_ssize_t count = a.items[0];
    int64_t sum = 0;
    Py_BEGIN_ALLOW_THREADS
    for (Py_ssize_t at = 0; at < count; at += BLOCK) {
        int32_t part = 0, size = count - at < BLOCK ? (int32_t)(count - at) : BLOCK; /* 32 bits hold a block's sum */
        for (int32_t i = 0; i < size; i++) {
            int32_t away = u[at + i] - q[at + i], flipped = (mask[at + i] != 0) ^ (away < 0);
            part += (away < 0 ? -away : away) & -flipped;
        }
        sum += part;
    }
    Py_END_ALLOW_THREADS
    return end(&a, PyLong_FromLongLong(sum));
}

static void voted(const uint8_t *restrict mask, uint64_t *restrict votes, uint64_t weight, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) votes[i] += weight & -(uint64_t)(mask[i] != 0);
}

METHOD(vote) { /* mask, votes, weight */
    Args a = {.count = 0};
    if (!parse_even(&a, args, given, "bQn")) return end(&a, NULL);
    Py_BEGIN_ALLOW_THREADS
    voted(a.at[0], a.at[1], (uint64_t)a.items[2], a.items[0]);
    Py_END_ALLOW_THREADS
    return end(&a, Py_NewRef(Py_None));
}

#define LISTED(name) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, NULL}

static PyMethodDef methods[] = {
    LISTED(write_flags), LISTED(read_flags), LISTED(write_bits), LISTED(read_bits), LISTED(flip_cells), LISTED(pick),
    LISTED(spread), LISTED(phase_cells), LISTED(meet), LISTED(surprise), LISTED(vote), {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_fast", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void) { return PyModule_Create(&module); }
