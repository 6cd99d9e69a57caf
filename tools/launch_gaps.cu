// What lies between two launches, and what could stand in their place: the figures of docs/h200/step.md, "What lies between two launches".
//   nvcc -O3 -arch=sm_90 -o launch_gaps tools/launch_gaps.cu && ./launch_gaps
//
// A graph has LAUNCHES launches. Each thread reads what another block of the launch before wrote, adds one and writes it, so that every
// way must order what it says it orders: the sums are held to the number of launches. Times are medians, in microseconds a launch.

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <cuda_runtime.h>

constexpr int LAUNCHES = 400;
constexpr int REPEATS = 12;
// Counters are apart by a line of the second-level cache.
constexpr int APART = 32;
constexpr size_t NUMBERS = 1 << 20;

static void check(cudaError_t result, const char* what) {
    if (result == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(result));
    std::exit(1);
}

__device__ void add_one(const float* in, float* out) {
    const int count = gridDim.x * blockDim.x, own = blockIdx.x * blockDim.x + threadIdx.x;
    out[own] = __ldcg(in + (own + count / 2 + 32) % count) + 1;
}
__device__ void wait_for_earlier() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
__device__ void let_next_start() { asm volatile("griddepcontrol.launch_dependents;"); }
// Waits until so many blocks have said that they are done.
__device__ void wait_for(const unsigned* counter, unsigned blocks) {
    unsigned seen;
    do asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(seen) : "l"(counter) : "memory");
    while ((int)(seen - blocks) < 0);
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}
__device__ void say_done(unsigned* counter) { asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory"); }

// In all kernels `before` and `own` count blocks that are done, over all steps; `steps` counts these.
__global__ void one_behind_another(const float* in, float* out, unsigned*, unsigned*, const unsigned*) { add_one(in, out); }
__global__ void early(const float* in, float* out, unsigned*, unsigned*, const unsigned*) {
    wait_for_earlier();
    let_next_start();
    add_one(in, out);
}
__global__ void counted(const float* in, float* out, unsigned* before, unsigned* own, const unsigned* steps) {
    if (threadIdx.x == 0) wait_for(before, *steps * gridDim.x);
    __syncthreads();
    let_next_start();
    add_one(in, out);
    __syncthreads();
    if (threadIdx.x == 0) say_done(own);
}
// The first of a step that is counted: waits for all, and counts as a launch of as many blocks.
__global__ void begin_step(unsigned* steps, unsigned* own, unsigned blocks) {
    wait_for_earlier();
    *steps += 1;
    *own = *steps * blocks;
    __threadfence();
    let_next_start();
}
// All launches as one, whose blocks are all on the card at once.
__global__ void one_kernel(float* a, float* b, unsigned* counter) {
    for (int i = 0; i < LAUNCHES; i++) {
        add_one(i % 2 ? b : a, i % 2 ? a : b);
        __syncthreads();
        if (threadIdx.x == 0) {
            say_done(counter);
            wait_for(counter, (i + 1) * gridDim.x);
        }
        __syncthreads();
    }
}

using Kernel = void (*)(const float*, float*, unsigned*, unsigned*, const unsigned*);

struct Bench {
    float *a, *b;
    unsigned* counters;
    cudaStream_t stream;
    cudaEvent_t begin, end;

    Bench() {
        check(cudaMalloc(&a, NUMBERS * sizeof(float)), "take memory");
        check(cudaMalloc(&b, NUMBERS * sizeof(float)), "take memory");
        check(cudaMalloc(&counters, (LAUNCHES + 2) * APART * sizeof(unsigned)), "take memory");
        check(cudaStreamCreate(&stream), "open a stream");
        check(cudaEventCreate(&begin), "make an event");
        check(cudaEventCreate(&end), "make an event");
    }

    void clear() {
        check(cudaMemset(a, 0, NUMBERS * sizeof(float)), "clear");
        check(cudaMemset(b, 0, NUMBERS * sizeof(float)), "clear");
        check(cudaMemset(counters, 0, (LAUNCHES + 2) * APART * sizeof(unsigned)), "clear");
        check(cudaDeviceSynchronize(), "clear");
    }

    // The median of what `run` takes, a launch; every number must be one more for each.
    template <class Run> void measure(const char* name, int blocks, int threads, Run run) {
        clear();
        std::vector<float> times;
        for (int repeat = 0; repeat < REPEATS; repeat++) {
            cudaEventRecord(begin, stream);
            run();
            cudaEventRecord(end, stream);
            check(cudaEventSynchronize(end), name);
            float milliseconds;
            check(cudaEventElapsedTime(&milliseconds, begin, end), name);
            times.push_back(milliseconds * 1000 / LAUNCHES);
        }
        std::sort(times.begin(), times.end());
        std::vector<float> numbers(size_t{1} * blocks * threads);
        check(cudaMemcpy(numbers.data(), a, numbers.size() * sizeof(float), cudaMemcpyDeviceToHost), name);
        const float wanted = 1.0f * REPEATS * LAUNCHES;
        const bool is_right = std::all_of(numbers.begin(), numbers.end(), [&](float v) { return v == wanted; });
        std::printf("  %s %.2f%s", name, times[times.size() / 2], is_right ? "" : " WRONG");
        std::fflush(stdout);
    }

    void measure_graph(const char* name, Kernel kernel, int blocks, int threads, bool is_early, bool is_counted) {
        cudaLaunchAttribute attribute = {};
        attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute.val.programmaticStreamSerializationAllowed = 1;
        cudaLaunchConfig_t config = {};
        config.stream = stream;
        config.attrs = &attribute;
        config.numAttrs = is_early;
        check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), name);
        if (is_counted) {
            config.gridDim = config.blockDim = 1;
            check(cudaLaunchKernelEx(&config, begin_step, counters, counters + APART, (unsigned)blocks), name);
        }
        config.gridDim = blocks;
        config.blockDim = threads;
        for (int i = 0; i < LAUNCHES; i++) {
            unsigned* before = counters + APART * (i + 1);
            check(cudaLaunchKernelEx(&config, kernel, (const float*)(i % 2 ? b : a), i % 2 ? a : b, before, before + APART,
                                     (const unsigned*)counters),
                  name);
        }
        cudaGraph_t graph;
        cudaGraphExec_t executable;
        check(cudaStreamEndCapture(stream, &graph), name);
        check(cudaGraphInstantiate(&executable, graph, 0), name);
        measure(name, blocks, threads, [&] { check(cudaGraphLaunch(executable, stream), name); });
        cudaGraphExecDestroy(executable);
        cudaGraphDestroy(graph);
    }
};

int main() {
    Bench bench;
    const int shapes[][2] = {{1, 1024}, {16, 512}, {132, 256}, {264, 256}, {264, 1024}};
    for (const auto& [blocks, threads] : shapes) {
        std::printf("%d x %d:", blocks, threads);
        bench.measure_graph("one behind another", one_behind_another, blocks, threads, false, false);
        bench.measure_graph("early", early, blocks, threads, true, false);
        bench.measure_graph("counted", counted, blocks, threads, true, true);
        bench.measure("in one kernel", blocks, threads, [&, blocks = blocks, threads = threads] {
            void* args[] = {&bench.a, &bench.b, &bench.counters};
            check(cudaMemsetAsync(bench.counters, 0, sizeof(unsigned), bench.stream), "clear");
            check(cudaLaunchCooperativeKernel((void*)one_kernel, blocks, threads, args, 0, bench.stream), "one kernel");
        });
        std::printf("\n");
    }
}
