// Activations between the two products of a feed-forward block, where the matrix library cannot fuse them.
//
// CPU twin: src/compute/rowwise/activation.rs (GELU exact and by tanh, ReLU); SwiGLU is of the decoder family.
// A thread 8 numbers.

__device__ __forceinline__ float gelu(float x) { return 0.5f * x * (1.0f + erff(x * 0.70710678118654752440f)); }

// x/2 (1 + tanh u) = x - x / (e^2u + 1); for large u the exponential is infinite and the quotient 0.
__device__ __forceinline__ float gelu_tanh(float x) {
    const float u = 0.79788456080286535588f * (x + 0.044715f * x * x * x);
    return x - x / (exp2_fast(2.0f * LOG2_E * u) + 1.0f);
}

// x sigmoid(x)
__device__ __forceinline__ float silu(float x) { return x / (1.0f + exp2_fast(-LOG2_E * x)); }

// x = f(x + bias), f: 0 exact GELU, 1 GELU by tanh, 2 ReLU. The bias may be null. Width: a multiple of 8.
extern "C" __global__ void __launch_bounds__(256) bias_activation(bf16* x, const bf16* bias, u32 rows, u32 width, u32 f) {
    const u64 at = (u64)blockIdx.x * 256 + threadIdx.x;
    if (at >= (u64)rows * (width / 8)) return;
    float numbers[8];
    load8(numbers, x + at * 8);
    if (bias) {
        float shift[8];
        load8(shift, bias + at % (width / 8) * 8);
#pragma unroll
        for (int i = 0; i < 8; i++) numbers[i] += shift[i];
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float number = numbers[i];
        numbers[i] = f == 0 ? gelu(number) : f == 1 ? gelu_tanh(number) : fmaxf(number, 0.0f);
    }
    store8(x + at * 8, numbers);
}

// out = silu(gate) * up: rows of 2 width numbers (gate, then up) to rows of width numbers. Width: a multiple of 8.
extern "C" __global__ void __launch_bounds__(256) swiglu(const bf16* gate_up, bf16* out, u32 rows, u32 width) {
    const u64 at = (u64)blockIdx.x * 256 + threadIdx.x;
    const u32 chunks = width / 8;
    if (at >= (u64)rows * chunks) return;
    const u64 row = at / chunks, column = at % chunks * 8;
    float gate[8], up[8];
    load8(gate, gate_up + row * 2 * width + column);
    load8(up, gate_up + row * 2 * width + width + column);
#pragma unroll
    for (int i = 0; i < 8; i++) gate[i] = silu(gate[i]) * up[i];
    store8(out + row * width + column, gate);
}
