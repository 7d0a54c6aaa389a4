// Stands in for libcuda, libnvrtc and libcublasLt in tests on machines without a card: the calls that src/compute/cuda/
// makes, with one device whose memory is the host's and whose kernels run in device.h.
//
// Every stream works at once, in the caller's thread; a capture keeps the calls and a graph repeats them. Device memory
// is poisoned when it is allocated and guarded at both ends. Tests reach the switches at the end by name.
//
// Not thread-safe: tests take turns.

#include "kernels.h"

#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>

namespace {

enum Result { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, INVALID_IMAGE = 200, NOT_FOUND = 500,
              ILLEGAL_ADDRESS = 700, LAUNCH_FAILED = 719, UNAVAILABLE = 46 };

using emulate::Call;
struct Module {};
struct Graph {
    std::vector<Call> calls;
};
struct Stream {
    bool capturing = false;
    Graph graph;
};
struct Event {
    std::chrono::steady_clock::time_point at;
};

constexpr size_t GUARD = 256;
const char MAGIC[] = "emulated kernels";

size_t capacity = (size_t)4 << 30, used = 0;
bool lost = false;
int sticky = SUCCESS;
std::map<uintptr_t, size_t> allocations;
std::atomic<uint64_t> compilations{0}, launches{0}, graph_launches{0};

// The name of a file while which exists the card is lost, for tests whose card is in another process.
const char* lost_file = getenv("EMULATE_LOST_FILE");

int state() { return lost || (lost_file && access(lost_file, F_OK) == 0) ? UNAVAILABLE : sticky; }

int submit(Stream* stream, Call call) {
    if (state()) return state();
    if (stream->capturing) stream->graph.calls.push_back(std::move(call));
    else call();
    return state();
}

bool is_inside(uintptr_t address, size_t bytes) {
    auto next = allocations.upper_bound(address);
    if (next == allocations.begin()) return false;
    --next;
    return address >= next->first && address + bytes <= next->first + next->second;
}

}  // namespace

extern "C" {

int cuInit(unsigned) { return SUCCESS; }
int cuDriverGetVersion(int* version) { return *version = 13000, SUCCESS; }
int cuDeviceGetCount(int* count) { return *count = 1, SUCCESS; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, ordinal == 0 ? SUCCESS : 101; }
int cuDeviceGetName(char* name, int length, int) { return snprintf(name, length, "emulated card"), SUCCESS; }
int cuDeviceTotalMem_v2(size_t* bytes, int) { return *bytes = capacity, SUCCESS; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
    // Multiprocessors, compute capability, the most shared memory of a block that asks for it.
    *value = attribute == 16 ? 4 : attribute == 75 ? 9 : attribute == 76 ? 0 : attribute == 97 ? 232448 : -1;
    return *value < 0 ? INVALID_VALUE : SUCCESS;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = (void*)MAGIC, state(); }
int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }
int cuCtxSetCurrent(void*) { return state(); }
int cuGetErrorName(int error, const char** name) {
    return *name = error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR", SUCCESS;
}
int cuGetErrorString(int, const char** text) { return *text = "an error of the emulated card", SUCCESS; }

int cuStreamCreate(Stream** stream, unsigned) { return *stream = new Stream, state(); }
int cuStreamDestroy_v2(Stream* stream) { return delete stream, SUCCESS; }
int cuStreamSynchronize(Stream* stream) { return stream->capturing ? INVALID_VALUE : state(); }
int cuEventCreate(Event** event, unsigned) { return *event = new Event, state(); }
int cuEventRecord(Event* event, Stream*) { return event->at = std::chrono::steady_clock::now(), state(); }
int cuEventQuery(Event*) { return state(); }
int cuEventSynchronize(Event*) { return state(); }
int cuEventDestroy_v2(Event* event) { return delete event, SUCCESS; }
int cuEventElapsedTime_v2(float* milliseconds, Event* start, Event* end) {
    return *milliseconds = std::chrono::duration<float, std::milli>(end->at - start->at).count(), state();
}

int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
    return *free_bytes = capacity > used ? capacity - used : 0, *total = capacity, state();
}
int cuMemAlloc_v2(uintptr_t* address, size_t bytes) {
    if (state()) return state();
    if (bytes == 0) return INVALID_VALUE;
    if (used + bytes > capacity) return OUT_OF_MEMORY;
    char* memory = (char*)aligned_alloc(256, (bytes + 2 * GUARD + 255) / 256 * 256);
    memset(memory, 0xff, bytes + 2 * GUARD);
    memset(memory, 0xa5, GUARD);
    memset(memory + GUARD + bytes, 0xa5, GUARD);
    *address = (uintptr_t)memory + GUARD;
    allocations[*address] = bytes;
    used += bytes;
    return SUCCESS;
}
int cuMemFree_v2(uintptr_t address) {
    const auto found = allocations.find(address);
    if (found == allocations.end()) return INVALID_VALUE;
    const unsigned char* memory = (const unsigned char*)address;
    for (size_t i = 1; i <= GUARD; i++) {
        if (*(memory - i) != 0xa5 || memory[found->second + i - 1] != 0xa5) {
            fprintf(stderr, "a kernel wrote outside its memory\n");
            abort();
        }
    }
    used -= found->second;
    allocations.erase(found);
    free((void*)(address - GUARD));
    return SUCCESS;
}
int cuMemHostAlloc(void** memory, size_t bytes, unsigned) {
    *memory = calloc(1, bytes);
    return *memory ? state() : OUT_OF_MEMORY;
}
int cuMemFreeHost(void* memory) { return free(memory), SUCCESS; }
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t bytes, Stream* stream) {
    if (!is_inside(to, bytes)) return INVALID_VALUE;
    return submit(stream, [=] { memcpy((void*)to, from, bytes); });
}
int cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t bytes, Stream* stream) {
    if (!is_inside(from, bytes)) return INVALID_VALUE;
    return submit(stream, [=] { memcpy(to, (const void*)from, bytes); });
}
int cuMemsetD8Async(uintptr_t to, unsigned char value, size_t bytes, Stream* stream) {
    if (!is_inside(to, bytes)) return INVALID_VALUE;
    return submit(stream, [=] { memset((void*)to, value, bytes); });
}

int cuModuleLoadData(Module** module, const void* image) {
    if (state()) return state();
    // Machine code of the real compiler is taken for ours: so the real compiler can be tried without a card.
    if (memcmp(image, MAGIC, sizeof(MAGIC)) != 0 && memcmp(image, "\x7f" "ELF", 4) != 0) return INVALID_IMAGE;
    return *module = new Module, SUCCESS;
}
int cuModuleUnload(Module* module) { return delete module, SUCCESS; }
int cuModuleGetFunction(const emulate::Bind** function, Module*, const char* name) {
    const auto found = emulate::kernels.find(name);
    if (found == emulate::kernels.end()) return NOT_FOUND;
    return *function = &found->second, state();
}
int cuFuncSetAttribute(const emulate::Bind*, int, int) { return state(); }
int cuLaunchKernel(const emulate::Bind* function, unsigned x, unsigned y, unsigned z, unsigned threads,
                   unsigned threads_y, unsigned threads_z, unsigned shared, Stream* stream, void** parameters, void**) {
    if (x == 0 || y == 0 || z == 0 || threads == 0 || threads > 1024 || threads_y != 1 || threads_z != 1) {
        return INVALID_VALUE;
    }
    if (shared > 232448) return INVALID_VALUE;
    launches++;
    const Call call = (*function)(parameters);
    const emulate::Index grid{x, y, z};
    return submit(stream, [=] {
        if (!emulate::run_grid(grid, (int)threads, shared, call)) sticky = LAUNCH_FAILED;
    });
}

int cuStreamBeginCapture_v2(Stream* stream, int) {
    stream->capturing = true;
    stream->graph.calls.clear();
    return state();
}
int cuStreamEndCapture(Stream* stream, Graph** graph) {
    if (!stream->capturing) return INVALID_VALUE;
    stream->capturing = false;
    return *graph = new Graph(std::move(stream->graph)), state();
}
int cuGraphInstantiateWithFlags(Graph** executable, Graph* graph, unsigned long long) {
    return *executable = new Graph(*graph), state();
}
int cuGraphLaunch(Graph* executable, Stream* stream) {
    graph_launches++;
    return submit(stream, [=] {
        for (const Call& call : executable->calls) call();
    });
}
int cuGraphDestroy(Graph* graph) { return delete graph, SUCCESS; }
int cuGraphExecDestroy(Graph* executable) { return delete executable, SUCCESS; }

// The compiler: what it makes of any source is the magic word.

int nvrtcVersion(int* major, int* minor) { return *major = 13, *minor = 0, 0; }
int nvrtcCreateProgram(void** program, const char*, const char*, int, const void*, const void*) {
    return *program = (void*)MAGIC, 0;
}
int nvrtcCompileProgram(void*, int, const char* const*) { return compilations++, 0; }
int nvrtcGetCUBINSize(void*, size_t* bytes) { return *bytes = sizeof(MAGIC), 0; }
int nvrtcGetCUBIN(void*, char* image) { return memcpy(image, MAGIC, sizeof(MAGIC)), 0; }
int nvrtcGetProgramLogSize(void*, size_t* bytes) { return *bytes = 1, 0; }
int nvrtcGetProgramLog(void*, char* log) { return *log = 0, 0; }
int nvrtcDestroyProgram(void**) { return 0; }
const char* nvrtcGetErrorString(int) { return "an error of the emulated compiler"; }

// Switches of the tests.

void emulate_set_memory(size_t bytes) { capacity = bytes; }
void emulate_lose(bool value) { lost = value; }
size_t emulate_used_memory() { return used; }
uint64_t emulate_compilations() { return compilations; }
uint64_t emulate_graph_launches() { return graph_launches; }

// For matmul.cpp: work on a stream.
int emulate_submit(void* stream, const std::function<void()>* call) { return submit((Stream*)stream, *call); }
}
