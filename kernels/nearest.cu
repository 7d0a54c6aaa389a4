// The nearest centroid of every row, by the largest `<x, c> - |c|^2 / 2`, and the squared distance to it.
//
// CPU twin: src/compute/vectors/nearest_centroid.rs. All in f32 on the ordinary units: which of two centroids is nearer is decided by the
// last bits, and tensor cores round their inputs. A block takes 64 rows past all centroids, 64 at a time; a thread has a
// square of 4 rows x 4 centroids. Of equally near centroids the first is taken.

constexpr int SIDE = 64, DEPTH = 16, PITCH = SIDE + 4;

// Components k..k+15 of 64 rows from `first`, component by component; what is not there is 0.
__device__ __forceinline__ void load_part(float* to, const float* from, u32 first, u32 count, u32 dimensions, u32 k) {
#pragma unroll
    for (int i = threadIdx.x; i < SIDE * DEPTH; i += 256) {
        const u32 row = first + i / DEPTH, column = k + i % DEPTH;
        to[i % DEPTH * PITCH + i / DEPTH] =
            row < count && column < dimensions ? from[(u64)row * dimensions + column] : 0.0f;
    }
}

// rows: count x dimensions. centroids: centroid_count x dimensions, half_norms: half their squared lengths. Grid:
// count / 64, blocks of 256 threads. Dynamic shared memory: 2 x 16 x 68 x 4 bytes.
extern "C" __global__ void __launch_bounds__(256)
    nearest_centroid(const float* rows, const float* centroids, const float* half_norms, u32* nearest, float* distances,
                     u32 count, u32 centroid_count, u32 dimensions) {
    DYNAMIC_SHARED(memory);
    float* const left = (float*)memory;
    float* const right = left + DEPTH * PITCH;
    const u32 first_row = blockIdx.x * SIDE;
    const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float best[4], norms[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    u32 place[4] = {0, 0, 0, 0};
#pragma unroll
    for (int r = 0; r < 4; r++) best[r] = -INFINITY_F;
    for (u32 first = 0; first < centroid_count; first += SIDE) {
        float sums[4][4];
#pragma unroll
        for (int r = 0; r < 4; r++) {
#pragma unroll
            for (int c = 0; c < 4; c++) sums[r][c] = 0.0f;
        }
        for (u32 k = 0; k < dimensions; k += DEPTH) {
            __syncthreads();
            load_part(left, rows, first_row, count, dimensions, k);
            load_part(right, centroids, first, centroid_count, dimensions, k);
            __syncthreads();
#pragma unroll
            for (int i = 0; i < DEPTH; i++) {
                const Floats4 a = *(const Floats4*)(left + i * PITCH + ty * 4);
                const Floats4 b = *(const Floats4*)(right + i * PITCH + tx * 4);
                const float x[4] = {a.x, a.y, a.z, a.w}, y[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
                for (int r = 0; r < 4; r++) {
#pragma unroll
                    for (int c = 0; c < 4; c++) sums[r][c] += x[r] * y[c];
                    if (first == 0) norms[r] += x[r] * x[r];
                }
            }
        }
#pragma unroll
        for (int c = 0; c < 4; c++) {
            const u32 centroid = first + tx * 4 + c;
            if (centroid < centroid_count) {
                const float half = half_norms[centroid];
#pragma unroll
                for (int r = 0; r < 4; r++) {
                    const float value = sums[r][c] - half;
                    if (value > best[r]) {
                        best[r] = value;
                        place[r] = centroid;
                    }
                }
            }
        }
    }
    // The 16 threads of a row are half a warp.
#pragma unroll
    for (int r = 0; r < 4; r++) {
#pragma unroll
        for (int mask = 8; mask > 0; mask /= 2) {
            const float value = shuffle_xor(best[r], mask);
            const u32 other = shuffle_xor(place[r], mask);
            if (value > best[r] || (value == best[r] && other < place[r])) {
                best[r] = value;
                place[r] = other;
            }
        }
        const u32 row = first_row + ty * 4 + r;
        if (tx == 0 && row < count) {
            nearest[row] = place[r];
            distances[row] = fmaxf(norms[r] - 2.0f * best[r], 0.0f);
        }
    }
}
