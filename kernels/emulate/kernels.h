// All kernels as C++ functions, and a table of them by name with their parameters unpacked from the array of addresses
// that a launch passes.
#pragma once

#include "device.h"

#include "../common.cuh"

#include <map>
#include <string>
#include <tuple>
#include <utility>

namespace activation {
#include "../activation.cu"
}
namespace attention {
#include "../attention.cu"
}
namespace layer_norm {
#include "../layer_norm.cu"
}
namespace nearest {
#include "../nearest.cu"
}
namespace pooling {
#include "../pooling.cu"
}
namespace rabitq {
#include "../rabitq.cu"
}
namespace rms_norm {
#include "../rms_norm.cu"
}
namespace rope_file {
#include "../rope.cu"
}

namespace emulate {

// A kernel whose parameters were copied when it was launched, as the driver does.
using Call = std::function<void()>;
using Bind = std::function<Call(void**)>;

template <class... A, size_t... I>
Bind binding_at(void (*kernel)(A...), std::index_sequence<I...>) {
    return [kernel](void** parameters) -> Call {
        const std::tuple<A...> arguments(*(A*)parameters[I]...);
        return [kernel, arguments] { std::apply(kernel, arguments); };
    };
}

template <class... A>
Bind binding(void (*kernel)(A...)) {
    return binding_at(kernel, std::index_sequence_for<A...>());
}

#define KERNEL(room, name) {#name, binding(room::name)}
#define SIZES(room, name) \
    KERNEL(room, name##_2), KERNEL(room, name##_4), KERNEL(room, name##_8), KERNEL(room, name##_16)
#define WARPS(name) KERNEL(attention, name##_4), KERNEL(attention, name##_8)

inline const std::map<std::string, Bind> kernels = {
    KERNEL(activation, bias_activation),
    KERNEL(activation, swiglu),
    WARPS(attention_32),
    WARPS(attention_64),
    WARPS(attention_96),
    WARPS(attention_128),
    WARPS(attention_causal_32),
    WARPS(attention_causal_64),
    WARPS(attention_causal_96),
    WARPS(attention_causal_128),
    SIZES(layer_norm, embed_layer_norm),
    SIZES(layer_norm, residual_layer_norm),
    KERNEL(nearest, nearest_centroid),
    KERNEL(pooling, pool_spans),
    KERNEL(rabitq, rotate),
    KERNEL(rabitq, encode),
    SIZES(rms_norm, residual_rms_norm),
    KERNEL(rms_norm, embed_tokens),
    KERNEL(rope_file, rope),
};

}  // namespace emulate
