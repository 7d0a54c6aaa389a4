// A processor of CUDA blocks for tests: the kernels' sources compile as C++ and run one block after the other, a fibre a
// thread. What common.cuh takes from the tensor cores and the copy engine is here written out from the instructions'
// documented register layouts, so a wrong fragment, a missing wait or a missing barrier shows as a wrong number.
//
// - All 32 lanes of a warp meet in every warp instruction; fibres that wait for something that can never come end the launch
//   with an error. A warp runs as far as it can before the next one, in even blocks first to last, in odd ones last to
//   first, so that an order which only happens to work does not pass.
// - An asynchronous copy poisons its target and is done by the wait that covers it, as late as the hardware may.
// - Shared memory is poisoned (NaN) before each block.
#pragma once

#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <ucontext.h>
#include <vector>

#define SITU_EMULATED
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define DYNAMIC_SHARED(name) u8* const name = emulate::shared.data()
#define threadIdx (emulate::current->thread)
#define blockIdx (emulate::block)

namespace emulate {

struct Index {
    uint32_t x, y, z;
};

struct Copy {
    void* to;
    const void* from;
    bool present;
};

constexpr int LANES = 32;
constexpr size_t STACK = 128 << 10;

// What the lanes of a warp bring to an instruction and take from it.
struct Warp {
    int arrived = 0;
    uint64_t generation = 0;
    uint64_t in[LANES][16];
    uint64_t out[LANES][16];
};

struct Fibre {
    jmp_buf context;
    bool begun = false, done = false;
    // The fibre can go on when *waits_for is no longer `seen`.
    const uint64_t* waits_for = nullptr;
    uint64_t seen = 0;
    Index thread;
    int warp, lane;
    std::vector<Copy> copies;
    // Ends of the closed groups within `copies`.
    std::vector<size_t> groups;
    std::vector<char> stack;
};

inline Fibre* current = nullptr;
inline Index block;
inline std::vector<uint8_t> shared;
inline std::vector<Fibre> fibres;
inline std::vector<Warp> warps;
inline jmp_buf scheduler;
inline size_t running, at_barrier;
inline uint64_t barrier_generation;
inline const std::function<void()>* body;

inline void yield() {
    if (_setjmp(current->context) == 0) _longjmp(scheduler, 1);
}

inline void wait(const uint64_t& generation) {
    current->waits_for = &generation;
    current->seen = generation;
    yield();
    current->waits_for = nullptr;
}

// A barrier of all threads that have not ended.
inline void release_barrier() {
    if (at_barrier > 0 && at_barrier == running) {
        at_barrier = 0;
        barrier_generation++;
    }
}

inline void barrier() {
    at_barrier++;
    const uint64_t before = barrier_generation;
    release_barrier();
    if (barrier_generation == before) wait(barrier_generation);
}

// All lanes bring up to 16 words; the last to come computes what each takes.
template <class Compute>
inline const uint64_t* meet(const uint64_t* words, int count, Compute compute) {
    Fibre& fibre = *current;
    Warp& warp = warps[fibre.warp];
    memcpy(warp.in[fibre.lane], words, count * sizeof(uint64_t));
    if (++warp.arrived == LANES) {
        compute(warp);
        warp.arrived = 0;
        warp.generation++;
    } else {
        wait(warp.generation);
    }
    return warp.out[fibre.lane];
}

inline void entry() {
    (*body)();
    current->done = true;
    running--;
    release_barrier();
    _longjmp(scheduler, 1);
}

// Lets each lane of a warp run until it waits; false where none could.
inline bool step(int warp, int threads) {
    static ucontext_t here, start;
    bool moved = false;
    for (int i = warp * LANES; i < threads && i < (warp + 1) * LANES; i++) {
        Fibre& fibre = fibres[i];
        if (fibre.done || (fibre.waits_for && *fibre.waits_for == fibre.seen)) continue;
        moved = true;
        current = &fibre;
        if (_setjmp(scheduler) != 0) continue;
        if (fibre.begun) _longjmp(fibre.context, 1);
        fibre.begun = true;
        getcontext(&start);
        start.uc_stack.ss_sp = fibre.stack.data();
        start.uc_stack.ss_size = STACK;
        start.uc_link = nullptr;
        makecontext(&start, entry, 0);
        swapcontext(&here, &start);
    }
    return moved;
}

// Runs a block's fibres to their end; false where they wait for each other.
inline bool run_block(int threads, bool reversed) {
    running = threads;
    at_barrier = 0;
    warps.assign((threads + LANES - 1) / LANES, Warp());
    if (fibres.size() < (size_t)threads) fibres.resize(threads);
    for (int i = 0; i < threads; i++) {
        Fibre& fibre = fibres[i];
        fibre.begun = fibre.done = false;
        fibre.waits_for = nullptr;
        fibre.thread = {(uint32_t)i, 0, 0};
        fibre.warp = i / LANES;
        fibre.lane = i % LANES;
        fibre.copies.clear();
        fibre.groups.clear();
        fibre.stack.resize(STACK);
    }
    const int count = (int)warps.size();
    while (running > 0) {
        bool moved = false;
        // A warp runs as far as it can before the next one does.
        for (int i = 0; i < count; i++) {
            while (step(reversed ? count - 1 - i : i, threads)) moved = true;
        }
        if (!moved) return false;
    }
    return true;
}

// Runs a grid of blocks of `threads` threads in x; false where a block's threads wait for each other.
inline bool run_grid(Index grid, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
    body = &kernel;
    for (block.z = 0; block.z < grid.z; block.z++) {
        for (block.y = 0; block.y < grid.y; block.y++) {
            for (block.x = 0; block.x < grid.x; block.x++) {
                // A place behind the block's own memory stays poisoned: reading there gives NaN.
                shared.assign(shared_bytes + 4096, 0xff);
                if (!run_block(threads, (block.x + block.y) % 2 == 1)) return false;
                for (size_t i = shared_bytes; i < shared.size(); i++) {
                    if (shared[i] != 0xff) return false;
                }
            }
        }
    }
    return true;
}

}  // namespace emulate

inline void __syncthreads() { emulate::barrier(); }
inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

template <class T>
inline T shuffle_xor(T value, int mask) {
    uint64_t word = 0;
    memcpy(&word, &value, sizeof(T));
    const uint64_t* out = emulate::meet(&word, 1, [mask](emulate::Warp& warp) {
        for (int lane = 0; lane < emulate::LANES; lane++) warp.out[lane][0] = warp.in[lane ^ mask][0];
    });
    memcpy(&value, out, sizeof(T));
    return value;
}

inline uint32_t warp_bits(bool bit) {
    const uint64_t word = bit;
    return (uint32_t)*emulate::meet(&word, 1, [](emulate::Warp& warp) {
        uint64_t bits = 0;
        for (int lane = 0; lane < emulate::LANES; lane++) bits |= warp.in[lane][0] << lane;
        for (int lane = 0; lane < emulate::LANES; lane++) warp.out[lane][0] = bits;
    });
}

inline float from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

inline uint32_t to_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
}

inline float exp2_fast(float x) {
    const float value = exp2f(x);
    return std::fpclassify(value) == FP_SUBNORMAL ? 0.0f : value;
}

// Rounded to nearest even; NaN stays NaN.
inline uint32_t bf16_bits(float value) {
    const uint32_t bits = to_bits(value);
    if (std::isnan(value)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline uint32_t pack(float low, float high) { return bf16_bits(low) | bf16_bits(high) << 16; }

inline void copy_async(void* shared, const void* global, bool present) {
    if ((uintptr_t)shared % 16 != 0 || (uintptr_t)global % 16 != 0) {
        fprintf(stderr, "a copy that is not aligned to 16 bytes\n");
        abort();
    }
    memset(shared, 0xff, 16);
    emulate::current->copies.push_back({shared, global, present});
}

inline void copies_commit() { emulate::current->groups.push_back(emulate::current->copies.size()); }

template <int PENDING>
inline void copies_wait() {
    emulate::Fibre& fibre = *emulate::current;
    if (fibre.groups.size() <= (size_t)PENDING) return;
    const size_t closed = fibre.groups.size() - PENDING;
    const size_t end = fibre.groups[closed - 1];
    for (size_t i = 0; i < end; i++) {
        const emulate::Copy& copy = fibre.copies[i];
        if (copy.present) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    fibre.copies.erase(fibre.copies.begin(), fibre.copies.begin() + end);
    fibre.groups.erase(fibre.groups.begin(), fibre.groups.begin() + closed);
    for (size_t& group : fibre.groups) group -= end;
}

inline void tiles_from_rows(uint32_t (&tiles)[4], const void* row, bool transposed) {
    const uint64_t word = (uint64_t)row;
    const uint64_t* out = emulate::meet(&word, 1, [transposed](emulate::Warp& warp) {
        for (int tile = 0; tile < 4; tile++) {
            uint16_t numbers[8][8];
            for (int i = 0; i < 8; i++) {
                const uint64_t address = warp.in[tile * 8 + i][0];
                if (address % 16 != 0) {
                    fprintf(stderr, "a row of a tile that is not aligned to 16 bytes\n");
                    abort();
                }
                memcpy(numbers[i], (const void*)address, 16);
            }
            for (int lane = 0; lane < emulate::LANES; lane++) {
                const int g = lane / 4, t = lane % 4;
                const uint32_t low = transposed ? numbers[2 * t][g] : numbers[g][2 * t];
                const uint32_t high = transposed ? numbers[2 * t + 1][g] : numbers[g][2 * t + 1];
                warp.out[lane][tile] = low | high << 16;
            }
        }
    });
    for (int tile = 0; tile < 4; tile++) tiles[tile] = (uint32_t)out[tile];
}

inline void load_tiles(uint32_t (&tiles)[4], const void* row) { tiles_from_rows(tiles, row, false); }
inline void load_tiles_transposed(uint32_t (&tiles)[4], const void* row) { tiles_from_rows(tiles, row, true); }

inline void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    uint64_t words[10] = {a[0], a[1], a[2], a[3], b0, b1};
    for (int i = 0; i < 4; i++) words[6 + i] = to_bits(sums[i]);
    const uint64_t* out = emulate::meet(words, 10, [](emulate::Warp& warp) {
        float left[16][16], right[16][8];
        const auto half = [](uint64_t pair, int which) { return from_bits((uint32_t)(pair >> 16 * which & 0xffff) << 16); };
        for (int lane = 0; lane < emulate::LANES; lane++) {
            const int g = lane / 4, t = lane % 4;
            for (int which = 0; which < 2; which++) {
                for (int i = 0; i < 4; i++) {
                    left[g + i % 2 * 8][2 * t + i / 2 * 8 + which] = half(warp.in[lane][i], which);
                }
                for (int i = 0; i < 2; i++) right[2 * t + i * 8 + which][g] = half(warp.in[lane][4 + i], which);
            }
        }
        for (int lane = 0; lane < emulate::LANES; lane++) {
            for (int i = 0; i < 4; i++) {
                const int row = lane / 4 + i / 2 * 8, column = 2 * (lane % 4) + i % 2;
                float sum = from_bits((uint32_t)warp.in[lane][6 + i]);
                for (int k = 0; k < 16; k++) sum += left[row][k] * right[k][column];
                warp.out[lane][i] = to_bits(sum);
            }
        }
    });
    for (int i = 0; i < 4; i++) sums[i] = from_bits((uint32_t)out[i]);
}
