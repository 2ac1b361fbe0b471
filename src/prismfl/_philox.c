/* Philox4x32-10 (Salmon et al., SC 2011), many blocks at a time: what seeding.py does in NumPy, some thirty times as
 * fast. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define ROUNDS 10
#define LANES 16 /* blocks that are worked on together; loops over them are left to the compiler's vectors */

typedef struct {
    uint32_t fixed[3]; /* words 1 … 3 of every counter */
    uint32_t key[2];
} Stream;

/* fill: `count` words of blocks `block`, `block` + 1, …; once for each kind of processor. */
#define FILL(name)                                                                                                    \
    static void name(uint32_t *out, Py_ssize_t count, uint32_t block, const Stream *stream) {                         \
        uint32_t c0[LANES], c1[LANES], c2[LANES], c3[LANES];                                                          \
        for (Py_ssize_t at = 0; at < count; at += 4 * LANES, block += LANES) {                                        \
            uint32_t k0 = stream->key[0], k1 = stream->key[1];                                                        \
            for (int i = 0; i < LANES; i++) {                                                                         \
                c0[i] = block + (uint32_t)i, c1[i] = stream->fixed[0];                                                \
                c2[i] = stream->fixed[1], c3[i] = stream->fixed[2];                                                   \
            }                                                                                                         \
            for (int round = 0; round < ROUNDS; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u)                        \
                for (int i = 0; i < LANES; i++) {                                                                     \
                    uint64_t p0 = (uint64_t)c0[i] * 0xD2511F53u, p1 = (uint64_t)c2[i] * 0xCD9E8D57u;                  \
                    c0[i] = (uint32_t)(p1 >> 32) ^ c1[i] ^ k0, c1[i] = (uint32_t)p1;                                  \
                    c2[i] = (uint32_t)(p0 >> 32) ^ c3[i] ^ k1, c3[i] = (uint32_t)p0;                                  \
                }                                                                                                     \
            uint32_t found[4 * LANES];                                                                                \
            for (int i = 0; i < LANES; i++) {                                                                         \
                found[4 * i] = c0[i], found[4 * i + 1] = c1[i];                                                       \
                found[4 * i + 2] = c2[i], found[4 * i + 3] = c3[i];                                                   \
            }                                                                                                         \
            memcpy(out + at, found, 4 * (size_t)(count - at < 4 * LANES ? count - at : 4 * LANES));                   \
        }                                                                                                             \
    }

FILL(fill_any)

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC target("arch=skylake-avx512,prefer-vector-width=512")
FILL(fill_512)
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("arch=haswell")
FILL(fill_256)
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
    if (out.itemsize != 4 || (uintptr_t)out.buf % 4 || block < 0 || block > UINT32_MAX || out.len / 16 > UINT32_MAX - block) {
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
    PyModuleDef_HEAD_INIT, .m_name = "prismfl._philox", .m_size = 0, .m_methods = methods};
PyMODINIT_FUNC PyInit__philox(void) { return PyModuleDef_Init(&module); }
