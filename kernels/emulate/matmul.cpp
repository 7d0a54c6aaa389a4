// The part of cublasLt that src/compute/cuda/matmul.rs uses: D = A^T B (column-major, bf16 in, f32 sums, bf16 or f32 out)
// with the epilogues bias, bias and GELU by tanh, bias and ReLU. Attributes by their numbers in cublasLt.h.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

extern "C" int emulate_submit(void* stream, const std::function<void()>* call);

namespace {

constexpr int F32 = 0, BF16 = 14;
constexpr int TRANSPOSE_A = 3, TRANSPOSE_B = 4, EPILOGUE = 7, BIAS = 8;
constexpr int DEFAULT = 1, RELU = 2, BIASED = 4, RELU_BIAS = 6, GELU_BIAS = 36;
constexpr int NOT_SUPPORTED = 15;

struct Description {
    int transpose_a = 0, transpose_b = 0, epilogue = DEFAULT;
    const uint16_t* bias = nullptr;
};
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t stride;
};
struct Algorithm {
    uint64_t words[8];
};
struct Heuristic {
    Algorithm algorithm;
    size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

float number(uint16_t bits) {
    const uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}

uint16_t rounded(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (std::isnan(value)) return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

bool supported(const Description& d, const Layout& a, const Layout& b, const Layout& out) {
    const bool epilogue = d.epilogue == DEFAULT || d.epilogue == BIASED || d.epilogue == RELU_BIAS ||
                          d.epilogue == GELU_BIAS;
    return d.transpose_a == 1 && d.transpose_b == 0 && epilogue && a.type == BF16 && b.type == BF16 &&
           (out.type == BF16 || out.type == F32) && a.rows == b.rows && a.columns == out.rows &&
           b.columns == out.columns && a.stride >= (int64_t)a.rows && b.stride >= (int64_t)b.rows &&
           out.stride >= (int64_t)out.rows && a.stride % 8 == 0 && b.stride % 8 == 0 && out.stride % 8 == 0;
}

}  // namespace

extern "C" {

int cublasLtCreate(void** handle) { return *handle = (void*)1, 0; }
int cublasLtDestroy(void*) { return 0; }
size_t cublasLtGetVersion() { return 130000; }
int cublasLtMatmulDescCreate(Description** description, int compute, int scale) {
    return *description = new Description, compute == 68 && scale == F32 ? 0 : NOT_SUPPORTED;
}
int cublasLtMatmulDescDestroy(Description* description) { return delete description, 0; }
int cublasLtMatmulDescSetAttribute(Description* d, int attribute, const void* value, size_t bytes) {
    int word = 0;
    if (bytes == 4) memcpy(&word, value, 4);
    switch (attribute) {
        case TRANSPOSE_A: return d->transpose_a = word, bytes == 4 ? 0 : 7;
        case TRANSPOSE_B: return d->transpose_b = word, bytes == 4 ? 0 : 7;
        case EPILOGUE: return d->epilogue = word, bytes == 4 ? 0 : 7;
        case BIAS: return memcpy(&d->bias, value, 8), bytes == 8 ? 0 : 7;
        default: return NOT_SUPPORTED;
    }
}
int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    return *layout = new Layout{type, rows, columns, stride}, 0;
}
int cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, 0; }
int cublasLtMatmulPreferenceCreate(void** preference) { return *preference = (void*)1, 0; }
int cublasLtMatmulPreferenceDestroy(void*) { return 0; }
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return 0; }
int cublasLtMatmulAlgoConfigGetAttribute(const Algorithm*, int, void* value, size_t bytes, size_t* written) {
    memset(value, 0, bytes);
    if (written) *written = bytes;
    return 0;
}
int cublasLtMatmulAlgoGetHeuristic(void*, Description* d, Layout* a, Layout* b, Layout*, Layout* out, void*, int,
                                   Heuristic* heuristic, int* count) {
    *count = supported(*d, *a, *b, *out) ? 1 : 0;
    if (*count) *heuristic = {{{42}}, 0, 0, 1.0f, {}};
    return *count ? 0 : NOT_SUPPORTED;
}
int cublasLtMatmulAlgoCheck(void*, Description* d, Layout* a, Layout* b, Layout*, Layout* out,
                            const Algorithm* algorithm, Heuristic* heuristic) {
    if (!supported(*d, *a, *b, *out) || algorithm->words[0] != 42) return NOT_SUPPORTED;
    return *heuristic = {*algorithm, 0, 0, 1.0f, {}}, 0;
}
int cublasLtMatmul(void*, Description* d, const float* alpha, const uint16_t* a, Layout* a_layout, const uint16_t* b,
                   Layout* b_layout, const float* beta, const void*, Layout*, void* out, Layout* out_layout,
                   const Algorithm* algorithm, void*, size_t, void* stream) {
    if (!supported(*d, *a_layout, *b_layout, *out_layout) || *alpha != 1.0f || *beta != 0.0f ||
        (algorithm && algorithm->words[0] != 42)) {
        return NOT_SUPPORTED;
    }
    const Description description = *d;
    const Layout left = *a_layout, right = *b_layout, target = *out_layout;
    const std::function<void()> call = [=] {
        const size_t inner = left.rows;
        std::vector<float> row(inner), weights(inner);
        std::vector<float> all(left.columns * inner);
        for (size_t m = 0; m < left.columns; m++) {
            for (size_t k = 0; k < inner; k++) all[m * inner + k] = number(a[m * left.stride + k]);
        }
        for (size_t n = 0; n < right.columns; n++) {
            for (size_t k = 0; k < inner; k++) row[k] = number(b[n * right.stride + k]);
            for (size_t m = 0; m < left.columns; m++) {
                const float* w = &all[m * inner];
                float parts[16] = {};
                size_t k = 0;
                for (; k + 16 <= inner; k += 16) {
                    for (int i = 0; i < 16; i++) parts[i] += w[k + i] * row[k + i];
                }
                float sum = 0.0f;
                for (float part : parts) sum += part;
                for (; k < inner; k++) sum += w[k] * row[k];
                if (description.epilogue != DEFAULT && description.bias) sum += number(description.bias[m]);
                if (description.epilogue == RELU_BIAS) sum = std::max(sum, 0.0f);
                if (description.epilogue == GELU_BIAS) {
                    sum = 0.5f * sum * (1.0f + tanhf(0.7978845608f * (sum + 0.044715f * sum * sum * sum)));
                }
                if (target.type == F32) ((float*)out)[n * target.stride + m] = sum;
                else ((uint16_t*)out)[n * target.stride + m] = rounded(sum);
            }
        }
    };
    return emulate_submit(stream, &call) == 0 ? 0 : 13;
}
}
