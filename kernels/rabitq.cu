// RaBitQ's 1-bit codes: the random rotation of vectors, and what is stored of a rotated vector in its list.
//
// CPU twins: src/compute/vectors/rotation.rs and `encode` in src/index/rabitq.rs, where the formulas stand. The rotation does the
// twin's steps in the twin's order on each number. Sums of the code are f64, a warp a vector.

constexpr int ROUNDS = 4, THREADS = 256;

// vectors: count x dimensions. signs: ROUNDS x padded numbers, 1 or -1. scale: 1 / sqrt(power), power the largest power of
// two up to `padded`. out: count x padded. A block a vector. Dynamic shared memory: 4 bytes a padded component.
extern "C" __global__ void __launch_bounds__(THREADS)
    rotate(const float* vectors, const float* signs, float* out, u32 dimensions, u32 padded, u32 power, float scale) {
    DYNAMIC_SHARED(memory);
    float* const x = (float*)memory;
    const float* from = vectors + (u64)blockIdx.x * dimensions;
    for (u32 i = threadIdx.x; i < padded; i += THREADS) x[i] = i < dimensions ? from[i] : 0.0f;
    // A thread loads, and gives signs to, the same components.
    for (int round = 0; round < ROUNDS; round++) {
        for (u32 i = threadIdx.x; i < padded; i += THREADS) x[i] *= signs[round * padded + i];
        __syncthreads();
        float* const part = round % 2 == 0 ? x : x + (padded - power);
        for (u32 width = 1; width < power; width *= 2) {
            for (u32 pair = threadIdx.x; pair < power / 2; pair += THREADS) {
                const u32 low = pair / width * 2 * width + pair % width;
                const float a = part[low], b = part[low + width];
                part[low] = a + b;
                part[low + width] = a - b;
            }
            __syncthreads();
        }
        for (u32 i = threadIdx.x; i < power; i += THREADS) part[i] *= scale;
        __syncthreads();
        if (power != padded) {
            const u32 half = padded / 2;
            for (u32 i = threadIdx.x; i < half; i += THREADS) {
                const float a = x[i], b = x[i + half];
                x[i] = (a + b) * 0.70710678118654752440f;
                x[i + half] = (a - b) * 0.70710678118654752440f;
            }
            __syncthreads();
        }
    }
    for (u32 i = threadIdx.x; i < padded; i += THREADS) out[(u64)blockIdx.x * padded + i] = x[i];
}

// rotated: count x padded, less the origin. centroids: lists x padded, lists: the list of each vector. factors: add, scale and
// error of each vector. codes: padded / 32 words a vector, bit i of word w for component 32 w + i.
// Grid: count / 8, blocks of 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    encode(const float* rotated, const float* centroids, const u32* lists, float* factors, u32* codes, u32 count,
           u32 padded, u32 inner_product) {
    const u32 vector = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (vector >= count) return;
    const float* from = rotated + (u64)vector * padded;
    const float* centroid = centroids + (u64)lists[vector] * padded;
    double square = 0.0, along = 0.0, signs = 0.0, product = 0.0;
    for (u32 word = 0; word < padded / 32; word++) {
        const float center = centroid[word * 32 + lane];
        const float residual = from[word * 32 + lane] - center;
        const u32 bits = warp_bits(residual > 0.0f);
        if (lane == 0) codes[(u64)vector * (padded / 32) + word] = bits;
        const double r = residual, c = center;
        square += r * r;
        along += fabs(r);
        signs += residual > 0.0f ? c : -c;
        product += r * c;
    }
    square = warp_sum(square);
    along = warp_sum(along);
    signs = warp_sum(signs);
    product = warp_sum(product);
    if (lane != 0) return;
    double factor = 0.0, deviation = 0.0;
    if (square > 0.0) {
        double cosine_squared = along * along / (square * padded);
        if (cosine_squared > 1.0) cosine_squared = 1.0;
        const double free_dimensions = padded > 2 ? padded - 1.0 : 1.0;
        factor = square / along;
        deviation = sqrt(square) * sqrt((1.0 - cosine_squared) / cosine_squared) / sqrt(free_dimensions);
    }
    const double twice = inner_product ? 1.0 : 2.0;
    float add = (float)(inner_product ? factor * signs - product : square + 2.0 * factor * signs);
    float scale = (float)(-twice * factor), error = (float)(twice * deviation);
    // Beyond f32: a bound below everything, so that the vector is always ranked exactly.
    if (!(fabsf(add) < INFINITY_F && fabsf(scale) < INFINITY_F && fabsf(error) < INFINITY_F)) {
        add = -INFINITY_F;
        scale = error = 0.0f;
    }
    factors[(u64)vector * 3] = add;
    factors[(u64)vector * 3 + 1] = scale;
    factors[(u64)vector * 3 + 2] = error;
}
