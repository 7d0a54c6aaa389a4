// Layer normalisation of rows, `(x - mean) / sqrt(variance + epsilon) * scale + shift`, and what stands before it in the
// BERT family: the embedding, or the residual sum. A warp a row; a row stays in registers, sums are f32.
//
// CPU twins: src/compute/rowwise/layer_norm.rs, `Bert::embed` in src/compute/forward/bert.rs, the residual finish of src/compute/matmul/gemm.rs.

constexpr int ROWS = 4;

// Normalises the row that a warp holds: chunk c of lane l has the columns (32 c + l) 8 and the seven after it.
template <int CHUNKS>
__device__ __forceinline__ void normalize(float (&x)[CHUNKS][8], const float* scale, const float* shift, bf16* out,
                                          int width, float epsilon) {
    const int lane = threadIdx.x % 32;
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
#pragma unroll
        for (int i = 0; i < 8; i++) sum += x[c][i];
    }
    const float mean = warp_sum(sum) / width;
    float square = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if ((c * 32 + lane) * 8 < width) {
#pragma unroll
            for (int i = 0; i < 8; i++) square += (x[c][i] - mean) * (x[c][i] - mean);
        }
    }
    const float inverse = rsqrtf(warp_sum(square) / width + epsilon);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int column = (c * 32 + lane) * 8;
        if (column < width) {
            float a[8], b[8];
            load8(a, scale + column);
            load8(b, shift + column);
#pragma unroll
            for (int i = 0; i < 8; i++) a[i] = (x[c][i] - mean) * inverse * a[i] + b[i];
            store8(out + column, a);
        }
    }
}

// x[c] = first + second, zero beyond the width.
template <int CHUNKS>
__device__ __forceinline__ void sum_of(float (&x)[CHUNKS][8], const bf16* first, const bf16* second, int width) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int column = (c * 32 + lane) * 8;
        if (column < width) {
            float b[8];
            load8(x[c], first + column);
            load8(b, second + column);
#pragma unroll
            for (int i = 0; i < 8; i++) x[c][i] += b[i];
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) x[c][i] = 0.0f;
        }
    }
}

// Rows of words[ids] + positions[places], normalised. The positions hold the embedding of token type 0 already.
template <int CHUNKS>
__device__ __forceinline__ void embed(const u32* ids, const u32* places, const bf16* words, const bf16* positions,
                                      const float* scale, const float* shift, bf16* out, u32 rows, u32 width,
                                      float epsilon) {
    const u32 row = blockIdx.x * ROWS + threadIdx.x / 32;
    if (row >= rows) return;
    float x[CHUNKS][8];
    sum_of(x, words + (u64)ids[row] * width, positions + (u64)places[row] * width, width);
    normalize(x, scale, shift, out + (u64)row * width, width, epsilon);
}

// x = normalised x + y, row by row.
template <int CHUNKS>
__device__ __forceinline__ void residual(bf16* x, const bf16* y, const float* scale, const float* shift, u32 rows,
                                         u32 width, float epsilon) {
    const u32 row = blockIdx.x * ROWS + threadIdx.x / 32;
    if (row >= rows) return;
    float sums[CHUNKS][8];
    sum_of(sums, x + (u64)row * width, y + (u64)row * width, width);
    normalize(sums, scale, shift, x + (u64)row * width, width, epsilon);
}

// Widths up to 256 x CHUNKS, multiples of 8. Grid: rows / 4, blocks of 128 threads.
#define LAYER_NORM(CHUNKS)                                                                                          \
    extern "C" __global__ void __launch_bounds__(128)                                                               \
        embed_layer_norm_##CHUNKS(const u32* ids, const u32* places, const bf16* words, const bf16* positions,      \
                                  const float* scale, const float* shift, bf16* out, u32 rows, u32 width,           \
                                  float epsilon) {                                                                  \
        embed<CHUNKS>(ids, places, words, positions, scale, shift, out, rows, width, epsilon);                      \
    }                                                                                                               \
    extern "C" __global__ void __launch_bounds__(128)                                                               \
        residual_layer_norm_##CHUNKS(bf16* x, const bf16* y, const float* scale, const float* shift, u32 rows,      \
                                     u32 width, float epsilon) {                                                    \
        residual<CHUNKS>(x, y, scale, shift, rows, width, epsilon);                                                 \
    }

LAYER_NORM(2)
LAYER_NORM(4)
LAYER_NORM(8)
LAYER_NORM(16)
