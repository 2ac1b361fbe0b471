/* The kernels for any processor. */
#include "_fast.h"
#define KERNELS kernels_any
#include "_kernels.h"
