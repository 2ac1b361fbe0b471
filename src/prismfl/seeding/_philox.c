/* Philox4x32-10 (Salmon et al., SC 2011), many blocks at a time: what seeding.py does in NumPy, some thirty times as
 * fast. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define ROUNDS 10
#define LOW 0xFFFFFFFFu
#define TOGETHER 2 /* vectors of blocks: one waits for its products while the other multiplies */

typedef struct {
    uint32_t fixed[3]; /* words 1 … 3 of every counter */
    uint32_t key[2];
} Stream;

/* name: `count` words of blocks `block`, `block` + 1, …; once for each kind of processor.  A lane of a vector is a word of
 * one block in its low half; TIMES multiplies low halves, so that nobody cares for what is in the others. */
#define FILL(name, vector, TIMES)                                                                                     \
    static void name(uint32_t *out, Py_ssize_t count, uint32_t block, const Stream *stream) {                         \
        enum { LANES = sizeof(vector) / 8, WORDS = 4 * LANES * TOGETHER };                                            \
        vector c[TOGETHER][4], lanes = {0}, first, third;                                                             \
        uint32_t found[WORDS];                                                                                        \
        for (int i = 0; i < LANES; i++) lanes[i] = (uint64_t)i;                                                       \
        for (Py_ssize_t at = 0; at < count; at += WORDS, block += WORDS / 4) {                                        \
            uint32_t k0 = stream->key[0], k1 = stream->key[1];                                                        \
            for (int v = 0; v < TOGETHER; v++) {                                                                      \
                c[v][0] = lanes + (block + (uint64_t)(v * LANES));                                                    \
                for (int word = 1; word < 4; word++) c[v][word] = lanes - lanes + stream->fixed[word - 1];            \
            }                                                                                                         \
            for (int round = 0; round < ROUNDS; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)                        \
                for (int v = 0; v < TOGETHER; v++) {                                                                  \
                    vector p0 = TIMES(c[v][0], 0xD2511F53u), p1 = TIMES(c[v][2], 0xCD9E8D57u);                        \
                    first = p1 >> 32 ^ c[v][1] ^ k0, third = p0 >> 32 ^ c[v][3] ^ k1;                                 \
                    c[v][0] = first, c[v][1] = p1, c[v][2] = third, c[v][3] = p0;                                     \
                }                                                                                                     \
            for (int i = 0; i < LANES * TOGETHER; i++)                                                                \
                for (int word = 0; word < 4; word++) found[4 * i + word] = (uint32_t)c[i / LANES][word][i % LANES];   \
            memcpy(out + at, found, 4 * (size_t)(count - at < WORDS ? count - at : WORDS));                           \
        }                                                                                                             \
    }

#if defined(__GNUC__)
typedef uint64_t Two __attribute__((vector_size(16)));
#define ANY(a, b) (((a) & LOW) * (b))
FILL(fill_any, Two, ANY)
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
typedef uint64_t Eight __attribute__((vector_size(64)));
typedef uint64_t Four __attribute__((vector_size(32)));
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq")
#define EIGHT(a, b) ((Eight)_mm512_mul_epu32((__m512i)(a), _mm512_set1_epi64(b)))
FILL(fill_512, Eight, EIGHT)
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2")
#define FOUR(a, b) ((Four)_mm256_mul_epu32((__m256i)(a), _mm256_set1_epi64x(b)))
FILL(fill_256, Four, FOUR)
#pragma GCC pop_options

static void fill_best(uint32_t *out, Py_ssize_t count, uint32_t block, const Stream *s) {
    if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        fill_512(out, count, block, s);
    else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2"))
        fill_256(out, count, block, s);
    else
        fill_any(out, count, block, s);
}
#else
#define fill_best fill_any
#endif

static PyObject *words(PyObject *Py_UNUSED(self), PyObject *args) {
    Py_buffer out;
    Py_ssize_t block;
    Stream stream;
    if (!PyArg_ParseTuple(args, "w*nIIIII", &out, &block, &stream.fixed[0], &stream.fixed[1], &stream.fixed[2],
                          &stream.key[0], &stream.key[1]))
        return NULL;
    if (out.itemsize != 4 || (uintptr_t)out.buf % 4 || block < 0 || block > UINT32_MAX ||
        out.len / 16 > UINT32_MAX - block) {
        PyBuffer_Release(&out);
        return PyErr_Format(PyExc_ValueError, "aligned words of 4 bytes are needed, of blocks below 2^32");
    }
    Py_BEGIN_ALLOW_THREADS
    fill_best(out.buf, out.len / 4, (uint32_t)block, &stream);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&out);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"words", words, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "prismfl.seeding._philox", .m_size = 0, .m_methods = methods};
PyMODINIT_FUNC PyInit__philox(void) { return PyModuleDef_Init(&module); }
