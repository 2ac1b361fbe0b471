/* The kernels for processors with AVX2. */
#include "_fast.h"
#ifdef KINDS
#pragma GCC target("arch=haswell")
#define KERNELS kernels_256
#include "_kernels.h"
#endif
