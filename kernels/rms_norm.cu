// Root-mean-square normalisation, `x / sqrt(mean(x^2) + epsilon) * scale`, after the residual sum; and the embedding
// that begins a decoder. The residual stream is f32, because it grows from layer to layer and is never normalised itself.
//
// CPU twin: the decoder family's forward pass below src/compute/. A warp a row; a row stays in registers.

constexpr int ROWS = 4;

// x += y where y is not null; out = normalised x.
template <int CHUNKS>
__device__ __forceinline__ void residual(float* x, const bf16* y, const float* scale, bf16* out, u32 rows, u32 width,
                                         float epsilon) {
    const u32 row = blockIdx.x * ROWS + threadIdx.x / 32;
    const int lane = threadIdx.x % 32;
    if (row >= rows) return;
    x += (u64)row * width;
    out += (u64)row * width;
    if (y) y += (u64)row * width;
    float sums[CHUNKS][8];
    float square = 0.0f;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int column = (c * 32 + lane) * 8;
        if (column < (int)width) {
            load8(sums[c], x + column);
            if (y) {
                float b[8];
                load8(b, y + column);
#pragma unroll
                for (int i = 0; i < 8; i++) sums[c][i] += b[i];
                store8(x + column, sums[c]);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) square += sums[c][i] * sums[c][i];
        }
    }
    const float inverse = rsqrtf(warp_sum(square) / width + epsilon);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        const int column = (c * 32 + lane) * 8;
        if (column < (int)width) {
            float a[8];
            load8(a, scale + column);
#pragma unroll
            for (int i = 0; i < 8; i++) a[i] *= sums[c][i] * inverse;
            store8(out + column, a);
        }
    }
}

// Widths up to 256 x CHUNKS, multiples of 8. Grid: rows / 4, blocks of 128 threads.
#define RMS_NORM(CHUNKS)                                                                                            \
    extern "C" __global__ void __launch_bounds__(128)                                                               \
        residual_rms_norm_##CHUNKS(float* x, const bf16* y, const float* scale, bf16* out, u32 rows, u32 width,     \
                                   float epsilon) {                                                                 \
        residual<CHUNKS>(x, y, scale, out, rows, width, epsilon);                                                   \
    }

RMS_NORM(2)
RMS_NORM(4)
RMS_NORM(8)
RMS_NORM(16)

// Rows of words[ids] as f32. A thread 8 numbers; grid: rows x width / 8 / 256.
extern "C" __global__ void __launch_bounds__(256)
    embed_tokens(const u32* ids, const bf16* words, float* out, u32 rows, u32 width) {
    const u64 at = (u64)blockIdx.x * 256 + threadIdx.x;
    const u32 chunks = width / 8;
    if (at >= (u64)rows * chunks) return;
    const u32 row = (u32)(at / chunks), column = (u32)(at % chunks) * 8;
    float x[8];
    load8(x, words + (u64)ids[row] * width + column);
    store8(out + (u64)row * width + column, x);
}
