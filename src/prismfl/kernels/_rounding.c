/* The kernels for processors with AVX-512 that round to bfloat16 by themselves. */
#include "_fast.h"
#ifdef ROUNDING
#pragma GCC target("arch=cooperlake,prefer-vector-width=512")
#define WHOLE
#define CONVERTED
#define KERNELS kernels_rounding
#include "_kernels.h"
#endif
