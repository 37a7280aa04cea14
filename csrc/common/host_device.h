// Marks for functions that exist on both sides, so that a formula is written once.
#pragma once

#if defined(__CUDACC__)
#define BRITTLE_HD __host__ __device__ __forceinline__
#else
#define BRITTLE_HD inline __attribute__((always_inline))
#endif
