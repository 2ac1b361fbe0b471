/* The kernels for processors with AVX-512. */
#include "_fast.h"
#ifdef KINDS
#pragma GCC target("arch=skylake-avx512,prefer-vector-width=512")
#define WHOLE
#define KERNELS kernels_512
#include "_kernels.h"
#endif
