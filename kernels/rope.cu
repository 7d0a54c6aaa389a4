// Rotary position embedding of queries and keys in place, halves paired (number i with i + size / 2), after the
// root-mean-square normalisation of each head where the model has one (Qwen3).
//
// CPU twin: the decoder family's forward pass below src/compute/. A warp a head of a token.

constexpr int HEADS = 4;

// qkv: rows of (heads + 2 key_heads) x size numbers. table: rows of size / 2 cosines and size / 2 sines, one a position.
// query_scale and key_scale: `size` numbers each, or null for no normalisation. size: even, at most 128.
// Grid: tokens x (heads + key_heads) / 4, blocks of 128 threads.
extern "C" __global__ void __launch_bounds__(128)
    rope(bf16* qkv, const u32* places, const float* table, const float* query_scale, const float* key_scale,
         u32 tokens, u32 heads, u32 key_heads, u32 size, float epsilon) {
    const u64 task = (u64)blockIdx.x * HEADS + threadIdx.x / 32;
    const u32 lane = threadIdx.x % 32, turned = heads + key_heads, half = size / 2;
    if (task >= (u64)tokens * turned) return;
    const u32 token = (u32)(task / turned), head = (u32)(task % turned);
    bf16* x = qkv + ((u64)token * (turned + key_heads) + head) * size;
    const float* scale = head < heads ? query_scale : key_scale;
    const float* angles = table + (u64)places[token] * size;
    float low[2], high[2], square = 0.0f;
#pragma unroll
    for (int part = 0; part < 2; part++) {
        const u32 i = part * 32 + lane;
        low[part] = i < half ? to_f32(x[i]) : 0.0f;
        high[part] = i < half ? to_f32(x[i + half]) : 0.0f;
        square += low[part] * low[part] + high[part] * high[part];
    }
    const float inverse = scale ? rsqrtf(warp_sum(square) / size + epsilon) : 1.0f;
#pragma unroll
    for (int part = 0; part < 2; part++) {
        const u32 i = part * 32 + lane;
        if (i < half) {
            const float a = low[part] * inverse * (scale ? scale[i] : 1.0f);
            const float b = high[part] * inverse * (scale ? scale[i + half] : 1.0f);
            const float cosine = angles[i], sine = angles[half + i];
            x[i] = to_bf16(a * cosine - b * sine);
            x[i + half] = to_bf16(b * cosine + a * sine);
        }
    }
}
