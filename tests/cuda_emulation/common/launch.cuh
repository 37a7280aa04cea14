// Stands in for csrc/common/launch.cuh so that the kernels' own source runs on the CPU.
//
// A block's threads are fibers on one operating-system thread, resumed in turn; a fiber runs until
// it ends or reaches a barrier or a shuffle. Blocks run one after another. What is checked:
// indexing, tails, launch shapes, barriers that every thread reaches (a missing one is reported),
// the data flow of shuffles. What is not: races between barriers, memory coalescing, device
// arithmetic.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static  // one block runs at a time, so one copy is the block's copy
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

namespace brittle::emulation {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 64 << 10;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[kStackBytes]};
  dim3 index{0, 0, 0};
  bool done = false;
  bool at_barrier = false;
  bool at_shuffle = false;
  uint64_t offered = 0;  // the value a shuffle publishes
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  size_t running = 0;
  std::function<void()> kernel;
  std::exception_ptr error;
};

inline Block* current = nullptr;
inline dim3 thread_index, block_index, block_dim, grid_dim;

inline void yield() {
  Fiber& self = current->fibers[current->running];
  swapcontext(&self.context, &current->scheduler);
}

inline void barrier() {
  current->fibers[current->running].at_barrier = true;
  yield();
}

// Every lane publishes, all wait, each reads the lane it asked for.
template <class T>
T shuffle(T value, unsigned source_lane) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  const size_t self = current->running;
  Fiber& fiber = current->fibers[self];
  std::memcpy(&fiber.offered, &value, sizeof(T));
  fiber.at_shuffle = true;
  yield();
  const size_t source = self / kWarp * kWarp + source_lane;
  T result = value;
  if (source_lane < kWarp && source < current->fibers.size()) {
    std::memcpy(&result, &current->fibers[source].offered, sizeof(T));
  }
  fiber.at_shuffle = true;  // nobody may publish again before all have read
  yield();
  return result;
}

inline void enter() {
  try {
    current->kernel();
  } catch (...) {
    current->error = std::current_exception();
  }
  current->fibers[current->running].done = true;
}

inline void run_block(Block& block) {
  current = &block;
  const size_t count = block.fibers.size();
  for (size_t t = 0; t < count; ++t) {
    Fiber& fiber = block.fibers[t];
    fiber.done = fiber.at_barrier = fiber.at_shuffle = false;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = &block.scheduler;
    makecontext(&fiber.context, enter, 0);
  }
  for (;;) {
    bool any_ran = false;
    for (size_t t = 0; t < count; ++t) {
      Fiber& fiber = block.fibers[t];
      if (fiber.done || fiber.at_barrier || fiber.at_shuffle) continue;
      block.running = t;
      thread_index = fiber.index;
      swapcontext(&block.scheduler, &fiber.context);
      any_ran = true;
      if (block.error) std::rethrow_exception(block.error);
    }
    // A warp whose lanes have all arrived at a shuffle goes on.
    for (size_t warp = 0; warp < count; warp += kWarp) {
      const size_t end = std::min<size_t>(warp + kWarp, count);
      size_t live = 0, waiting = 0;
      for (size_t t = warp; t < end; ++t) {
        live += !block.fibers[t].done;
        waiting += block.fibers[t].at_shuffle;
      }
      if (live == 0 || waiting != live) continue;
      for (size_t t = warp; t < end; ++t) block.fibers[t].at_shuffle = false;
      any_ran = true;
    }
    size_t live = 0, waiting = 0;
    for (const Fiber& fiber : block.fibers) {
      live += !fiber.done;
      waiting += fiber.at_barrier;
    }
    if (live == 0) return;
    if (waiting == live) {
      if (live != count)
        throw std::runtime_error(
            "emulated CUDA: a thread ended before a barrier that others wait at");
      for (Fiber& fiber : block.fibers) fiber.at_barrier = false;
      continue;
    }
    if (!any_ran)
      throw std::runtime_error(
          "emulated CUDA: deadlock: threads wait at different barriers or shuffles");
  }
}

}  // namespace brittle::emulation

#define threadIdx brittle::emulation::thread_index
#define blockIdx brittle::emulation::block_index
#define blockDim brittle::emulation::block_dim
#define gridDim brittle::emulation::grid_dim

inline void __syncthreads() {
  brittle::emulation::barrier();
}

inline unsigned emulated_lane() {
  return static_cast<unsigned>(brittle::emulation::current->running) % brittle::emulation::kWarp;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return brittle::emulation::shuffle(value, emulated_lane() ^ static_cast<unsigned>(mask));
}

template <class T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
  return brittle::emulation::shuffle(value, emulated_lane() + delta);
}

template <class T>
T __shfl_sync(unsigned, T value, int lane) {
  return brittle::emulation::shuffle(value, static_cast<unsigned>(lane));
}

// Fibers only ever stop at barriers and shuffles, so a plain addition is atomic.
template <class T>
T atomicAdd(T* target, T value) {
  const T old = *target;
  *target += value;
  return old;
}

namespace brittle {

class CurrentDevice {
 public:
  explicit CurrentDevice(int) {}
};

// Few, so that small inputs already make the grid stride. EMULATED_MULTIPROCESSORS changes it.
inline int multiprocessors(int) {
  const char* count = std::getenv("EMULATED_MULTIPROCESSORS");
  return count ? std::atoi(count) : 1;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, void*,
            const Arguments&... arguments) {
  using namespace emulation;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535 ||
      block.x * block.y * block.z == 0 || block.x * block.y * block.z > 1024) {
    throw std::runtime_error("emulated CUDA: invalid launch configuration");
  }
  Block state;
  state.fibers = std::vector<Fiber>(size_t{block.x} * block.y * block.z);
  state.kernel = [&] { kernel(arguments...); };
  size_t t = 0;
  for (unsigned z = 0; z < block.z; ++z)
    for (unsigned y = 0; y < block.y; ++y)
      for (unsigned x = 0; x < block.x; ++x) state.fibers[t++].index = dim3(x, y, z);
  grid_dim = grid;
  block_dim = block;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block_index = dim3(x, y, z);
        run_block(state);
      }
}

}  // namespace brittle
