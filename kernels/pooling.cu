// One vector out of a range of token vectors: the mean or the largest of each column, to unit length where asked.
//
// CPU twin: src/compute/rowwise/pooling.rs. Sums run over the tokens in order, in f32; the length's square is summed in f64.
// First and last token are ranges of one token.

// A range of tokens, its end excluded, and 0 for the mean, 1 for the largest.
struct alignas(16) Span {
    u32 start, end, largest, unit;
};

// x: rows of `width` numbers. out: a row of `width` numbers a span. One block of 256 threads a span.
// Dynamic shared memory: 64 bytes.
extern "C" __global__ void __launch_bounds__(256) pool_spans(const bf16* x, const Span* spans, float* out, u32 width) {
    DYNAMIC_SHARED(memory);
    double* squares = (double*)memory;
    const Span span = spans[blockIdx.x];
    out += (u64)blockIdx.x * width;
    double square = 0.0;
    for (u32 pair = threadIdx.x; pair < width / 2; pair += 256) {
        float a = 0.0f, b = 0.0f;
        if (span.largest && span.start < span.end) a = b = -INFINITY_F;
        const bf16* from = x + pair * 2;
#pragma unroll 4
        for (u32 token = span.start; token < span.end; token++) {
            const u32 numbers = *(const u32*)(from + (u64)token * width);
            if (span.largest) {
                a = fmaxf(a, low_half(numbers));
                b = fmaxf(b, high_half(numbers));
            } else {
                a += low_half(numbers);
                b += high_half(numbers);
            }
        }
        if (!span.largest) {
            const float factor = 1.0f / (span.end > span.start ? span.end - span.start : 1);
            a *= factor;
            b *= factor;
        }
        out[pair * 2] = a;
        out[pair * 2 + 1] = b;
        square += (double)a * a + (double)b * b;
    }
    if (!span.unit) return;
    square = warp_sum(square);
    if (threadIdx.x % 32 == 0) squares[threadIdx.x / 32] = square;
    __syncthreads();
    square = 0.0;
#pragma unroll
    for (int i = 0; i < 8; i++) square += squares[i];
    const double length = sqrt(square);
    if (!(length > 0.0)) return;
    for (u32 pair = threadIdx.x; pair < width / 2; pair += 256) {
        out[pair * 2] = (float)(out[pair * 2] / length);
        out[pair * 2 + 1] = (float)(out[pair * 2 + 1] / length);
    }
}
