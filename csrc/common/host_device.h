// Marks for functions that exist on both sides, so that a formula is written once.
#pragma once

#if defined(__CUDACC__)
#define BRITTLE_HD __host__ __device__ __forceinline__
// For what is called from many kernels and is too long to stand in each.
#define BRITTLE_HD_CALL inline __host__ __device__ __noinline__
#else
#define BRITTLE_HD_CALL inline
#define BRITTLE_HD inline __attribute__((always_inline))
#endif
