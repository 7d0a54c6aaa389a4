// Attention over packed sequences: softmax(Q K^T / sqrt d) V, one block a tile of query rows of one head.
//
// CPU twin: src/compute/attention/packed.rs. Both products run on tensor cores (bf16 in, f32 sums), the softmax is the online
// one in f32 (Milakov and Gimelshein, arXiv 1805.02867; tiled as in Dao, arXiv 2307.08691). Keys and values pass
// through shared memory in tiles of 64, the next tile is copied while one is used. Rows of a tile are padded by 16
// bytes, so that the eight rows of an ldmatrix lie in different banks for every head size here.
//
// A row's result depends on its own sequence alone, and not on how many warps a block has: each warp has 16 query rows
// and walks over the keys in the same order; a tile that the causal mask hides wholly leaves sums and maximum unchanged.

// One block's work: the sequence's first token, its length, the first query row within it. Length 0: nothing.
struct alignas(16) Tile {
    u32 start, length, row, unused;
};

constexpr int KEYS = 64;

// Starts to copy `ROWS` rows of HEAD numbers, from row `first` of `length`; rows beyond the sequence become zeros.
template <int HEAD, int ROWS, int THREADS>
__device__ __forceinline__ void copy_rows(bf16* to, const bf16* from, u64 stride, int first, int length) {
    constexpr int CHUNKS = HEAD / 8;
    constexpr int PITCH = HEAD + 8;
#pragma unroll
    for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, chunk = i % CHUNKS;
        const bool present = first + row < length;
        const u64 at = present ? (u64)(first + row) * stride + chunk * 8 : 0;
        copy_async(to + row * PITCH + chunk * 8, from + at, present);
    }
}

template <int HEAD, bool CAUSAL, int WARPS>
__device__ __forceinline__ void attend(const bf16* qkv, bf16* out, const Tile* tiles, u32 heads, u32 key_heads,
                                       float scale, u32 window) {
    constexpr int THREADS = WARPS * 32, ROWS = WARPS * 16, PITCH = HEAD + 8;
    DYNAMIC_SHARED(memory);
    // Two stages of keys and values; the queries pass through the first stage before the keys need it.
    bf16* const keys = (bf16*)memory;
    bf16* const values = keys + KEYS * PITCH;
    constexpr int STAGE = 2 * KEYS * PITCH;

    const Tile tile = tiles[blockIdx.x];
    const int length = (int)tile.length, first_row = (int)tile.row;
    if (first_row >= length) return;
    const u32 head = blockIdx.y, key_head = head / (heads / key_heads);
    const u64 stride = (u64)(heads + 2 * key_heads) * HEAD;
    const bf16* sequence = qkv + tile.start * stride;
    const bf16* key_rows = sequence + (u64)(heads + key_head) * HEAD;
    const bf16* value_rows = key_rows + (u64)key_heads * HEAD;

    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int group = lane / 4, pair = lane % 4;

    copy_rows<HEAD, ROWS, THREADS>(keys, sequence + (u64)head * HEAD, stride, first_row, length);
    copies_commit();
    copies_wait<0>();
    __syncthreads();
    u32 queries[HEAD / 16][4];
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) {
        load_tiles(queries[k], keys + (warp * 16 + lane % 16) * PITCH + k * 16 + lane / 16 * 8);
    }
    __syncthreads();

    // The first key row that no query of this tile sees.
    const int end = CAUSAL ? min(length, first_row + ROWS) : length;
    const int steps = (end + KEYS - 1) / KEYS;
    // The first tile with a key that a window still shows to the tile's first row.
    const int reach = CAUSAL ? (int)min(window, 0x7fffffffu) : 0x7fffffff;
    const int first_step = CAUSAL && first_row >= reach ? (first_row - reach + 1) / KEYS : 0;
    copy_rows<HEAD, KEYS, THREADS>(keys, key_rows, stride, first_step * KEYS, length);
    copy_rows<HEAD, KEYS, THREADS>(values, value_rows, stride, first_step * KEYS, length);
    copies_commit();

    float sums[HEAD / 8][4];
#pragma unroll
    for (int n = 0; n < HEAD / 8; n++) sums[n][0] = sums[n][1] = sums[n][2] = sums[n][3] = 0.0f;
    float largest[2] = {-INFINITY_F, -INFINITY_F}, total[2] = {0.0f, 0.0f};
    const float scale2 = scale * LOG2_E;

    for (int step = first_step; step < steps; step++) {
        const int stage = (step - first_step) % 2 * STAGE, other = STAGE - stage;
        if (step + 1 < steps) {
            copy_rows<HEAD, KEYS, THREADS>(keys + other, key_rows, stride, (step + 1) * KEYS, length);
            copy_rows<HEAD, KEYS, THREADS>(values + other, value_rows, stride, (step + 1) * KEYS, length);
        }
        copies_commit();
        copies_wait<1>();
        __syncthreads();

        float scores[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) scores[n][0] = scores[n][1] = scores[n][2] = scores[n][3] = 0.0f;
#pragma unroll
        for (int k = 0; k < HEAD / 16; k++) {
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                u32 part[4];
                const int row = n * 16 + lane / 16 * 8 + lane % 8;
                load_tiles(part, keys + stage + row * PITCH + k * 16 + lane / 8 % 2 * 8);
                multiply_add(scores[2 * n], queries[k], part[0], part[1]);
                multiply_add(scores[2 * n + 1], queries[k], part[2], part[3]);
            }
        }

        const int first_key = step * KEYS;
        const int row0 = first_row + warp * 16 + group;
        const bool hidden = CAUSAL && (first_key + KEYS > first_row + warp * 16 ||
                                       first_row + warp * 16 + 15 - first_key >= reach);
        if (first_key + KEYS > length || hidden) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int key = first_key + n * 8 + pair * 2 + i % 2;
                    const int row = row0 + i / 2 * 8;
                    if (key >= length || (CAUSAL && (key > row || row - key >= reach))) scores[n][i] = -INFINITY_F;
                }
            }
        }

#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = largest[half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
            top = fmaxf(top, shuffle_xor(top, 1));
            top = fmaxf(top, shuffle_xor(top, 2));
            // Behind a window a row may have seen no key yet.
            const float shift = top == -INFINITY_F ? 0.0f : top * scale2;
            const float correction = exp2_fast(largest[half] * scale2 - shift);
            largest[half] = top;
            float sum = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    scores[n][i] = exp2_fast(scores[n][i] * scale2 - shift);
                    sum += scores[n][i];
                }
            }
            total[half] = total[half] * correction + sum;
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++) {
                sums[n][2 * half] *= correction;
                sums[n][2 * half + 1] *= correction;
            }
        }

#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            const u32 weights[4] = {pack(scores[2 * k][0], scores[2 * k][1]), pack(scores[2 * k][2], scores[2 * k][3]),
                                    pack(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                                    pack(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
            for (int n = 0; n < HEAD / 16; n++) {
                u32 part[4];
                const int row = k * 16 + lane % 16;
                load_tiles_transposed(part, values + stage + row * PITCH + n * 16 + lane / 16 * 8);
                multiply_add(sums[2 * n], weights, part[0], part[1]);
                multiply_add(sums[2 * n + 1], weights, part[2], part[3]);
            }
        }
        // The next turn's copies overwrite this stage.
        __syncthreads();
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = total[half];
        sum += shuffle_xor(sum, 1);
        sum += shuffle_xor(sum, 2);
        const float inverse = 1.0f / sum;
        const int row = first_row + warp * 16 + group + half * 8;
        if (row < length) {
            bf16* to = out + ((u64)(tile.start + row) * heads + head) * HEAD + pair * 2;
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++) {
                *(u32*)(to + n * 8) = pack(sums[n][2 * half] * inverse, sums[n][2 * half + 1] * inverse);
            }
        }
    }
}

// Blocks that one multiprocessor should hold at least, where that costs no spills: it limits a thread's registers.
__device__ constexpr int blocks_at_once(int head, bool causal, int warps) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (head == 64 && !causal) return 16 / warps;
#endif
    return head == 32 ? 16 / warps : 1;
}

// qkv: rows of (heads + 2 key_heads) x HEAD numbers: queries, keys, values. out: rows of heads x HEAD.
// window: keys that a causal row sees, itself included; 0xffffffff: all. Grid: tiles x heads. Dynamic shared memory: 4 x 64 x (HEAD + 8) x 2 bytes.
#define ATTENTION(NAME, HEAD, CAUSAL, WARPS)                                                                   \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, blocks_at_once(HEAD, CAUSAL, WARPS))              \
        NAME(const bf16* qkv, bf16* out, const Tile* tiles, u32 heads, u32 key_heads, float scale,   \
             u32 window) {                                                                                     \
        attend<HEAD, CAUSAL, WARPS>(qkv, out, tiles, heads, key_heads, scale, window);                         \
    }

ATTENTION(attention_32_4, 32, false, 4)
ATTENTION(attention_32_8, 32, false, 8)
ATTENTION(attention_64_4, 64, false, 4)
ATTENTION(attention_64_8, 64, false, 8)
ATTENTION(attention_96_4, 96, false, 4)
ATTENTION(attention_96_8, 96, false, 8)
ATTENTION(attention_128_4, 128, false, 4)
ATTENTION(attention_128_8, 128, false, 8)
ATTENTION(attention_causal_32_4, 32, true, 4)
ATTENTION(attention_causal_32_8, 32, true, 8)
ATTENTION(attention_causal_64_4, 64, true, 4)
ATTENTION(attention_causal_64_8, 64, true, 8)
ATTENTION(attention_causal_96_4, 96, true, 4)
ATTENTION(attention_causal_96_8, 96, true, 8)
ATTENTION(attention_causal_128_4, 128, true, 4)
ATTENTION(attention_causal_128_8, 128, true, 8)
