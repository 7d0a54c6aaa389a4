// What every kernel shares: number types, vector loads, tensor-core and asynchronous-copy instructions, reductions.
//
// Prepended to each kernel's source before it is compiled, at run time on the user's machine too: nothing is included,
// no CUDA header is needed. With SITU_EMULATED the same kernels are compiled by a C++ compiler; emulate/device.h then
// brings its own version of what is an instruction here.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// A bf16 number as its bits.
typedef u16 bf16;

struct alignas(16) Words4 {
    u32 x, y, z, w;
};
struct alignas(16) Floats4 {
    float x, y, z, w;
};

#ifndef SITU_EMULATED

#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) u8 name[]

__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return (u32)__cvta_generic_to_shared(pointer);
}

// Four 8 x 8 tiles of 16-bit numbers: lane i gives the address of row i % 8 of tile i / 8 and gets, of each tile, the
// two numbers at row lane / 4, columns 2 (lane % 4) and the next.
__device__ __forceinline__ void load_tiles(u32 (&tiles)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// The same with each tile transposed.
__device__ __forceinline__ void load_tiles_transposed(u32 (&tiles)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(tiles[0]), "=r"(tiles[1]), "=r"(tiles[2]), "=r"(tiles[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// sums += a b: a is 16 x 16, b is 16 x 8, sums 16 x 8. With g = lane / 4 and t = lane % 4, a lane holds of a the pairs
// (row, columns) (g, 2t), (g+8, 2t), (g, 2t+8), (g+8, 2t+8), of b the pairs (rows, column) (2t, g), (2t+8, g), of the
// sums (g, 2t), (g, 2t+1), (g+8, 2t), (g+8, 2t+1).
__device__ __forceinline__ void multiply_add(float (&sums)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
                 "{%0,%1,%2,%3};"
                 : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Starts to copy 16 bytes into shared memory, or zeros where `present` is false.
__device__ __forceinline__ void copy_async(void* shared, const void* global, bool present) {
    u32 bytes = present ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
}

// Closes the group of the copies that were started since the last call.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `PENDING` groups are under way.
template <int PENDING>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" : : "n"(PENDING) : "memory");
}

// Two f32 as bf16, rounded to nearest even; `low` stands first in memory.
__device__ __forceinline__ u32 pack(float low, float high) {
    u32 pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
}

// 2^x, relative error 2^-22; subnormal results are 0.
__device__ __forceinline__ float exp2_fast(float x) {
    float value;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(x));
    return value;
}

__device__ __forceinline__ float from_bits(u32 bits) { return __uint_as_float(bits); }

template <class T>
__device__ __forceinline__ T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Bit i is lane i's.
__device__ __forceinline__ u32 warp_bits(bool bit) { return __ballot_sync(0xffffffffu, bit); }

#endif

#define INFINITY_F from_bits(0x7f800000u)
#define LOG2_E 1.44269504088896340736f

__device__ __forceinline__ float low_half(u32 pair) { return from_bits(pair << 16); }
__device__ __forceinline__ float high_half(u32 pair) { return from_bits(pair & 0xffff0000u); }
__device__ __forceinline__ float to_f32(bf16 number) { return from_bits((u32)number << 16); }
__device__ __forceinline__ bf16 to_bf16(float number) { return (bf16)pack(number, 0.0f); }

// Eight bf16 of one 16-byte load or store.
__device__ __forceinline__ void unpack8(float (&out)[8], const Words4& words) {
    out[0] = low_half(words.x);
    out[1] = high_half(words.x);
    out[2] = low_half(words.y);
    out[3] = high_half(words.y);
    out[4] = low_half(words.z);
    out[5] = high_half(words.z);
    out[6] = low_half(words.w);
    out[7] = high_half(words.w);
}

__device__ __forceinline__ Words4 pack8(const float (&in)[8]) {
    Words4 words;
    words.x = pack(in[0], in[1]);
    words.y = pack(in[2], in[3]);
    words.z = pack(in[4], in[5]);
    words.w = pack(in[6], in[7]);
    return words;
}

__device__ __forceinline__ void load8(float (&out)[8], const bf16* from) { unpack8(out, *(const Words4*)from); }
__device__ __forceinline__ void store8(bf16* to, const float (&in)[8]) { *(Words4*)to = pack8(in); }

__device__ __forceinline__ void load8(float (&out)[8], const float* from) {
    const Floats4 a = *(const Floats4*)from;
    const Floats4 b = *(const Floats4*)(from + 4);
    out[0] = a.x;
    out[1] = a.y;
    out[2] = a.z;
    out[3] = a.w;
    out[4] = b.x;
    out[5] = b.y;
    out[6] = b.z;
    out[7] = b.w;
}

__device__ __forceinline__ void store8(float* to, const float (&in)[8]) {
    *(Floats4*)to = Floats4{in[0], in[1], in[2], in[3]};
    *(Floats4*)(to + 4) = Floats4{in[4], in[5], in[6], in[7]};
}

// The sum over a warp, the same bits in every lane.
template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
    return value;
}
