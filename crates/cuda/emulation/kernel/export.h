// What a module tells of its kernels: the sizes of parameters, and how to call each with values of any type. Behind the source,
// the compiler writes EMULATED_KERNEL for each kernel that it finds in it.
#pragma once

template <__SIZE_TYPE__... I> struct EmulatedIndices {};

template <class... P> struct EmulatedParameters {
    unsigned sizes[sizeof...(P) + 1] = {(unsigned)sizeof(P)..., 0};
    unsigned offsets[sizeof...(P) + 1] = {};

    // Parameters lie one after another, each at a multiple of its alignment.
    constexpr EmulatedParameters() {
        const unsigned alignments[] = {(unsigned)alignof(P)..., 1};
        for (unsigned i = 0, next = 0; i < sizeof...(P); i++) {
            offsets[i] = (next + alignments[i] - 1) / alignments[i] * alignments[i];
            next = offsets[i] + sizes[i];
        }
    }
};

template <auto kernel, class... P> struct EmulatedCall {
    static constexpr EmulatedParameters<P...> parameters{};

    // Not watched: where parameters lie is no memory of the card.
    template <__SIZE_TYPE__... I> __attribute__((no_sanitize("thread"))) static void with(void** values) {
        kernel(*(P*)values[I]...);
    }
    template <__SIZE_TYPE__... I>
    static constexpr emulation::Kernel describe(unsigned cluster, unsigned threads_max, EmulatedIndices<I...>) {
        return {cluster, threads_max, sizeof...(P), parameters.sizes, parameters.offsets, &with<I...>};
    }
};

template <auto kernel, class... P> constexpr emulation::Kernel emulated_kernel(void (*)(P...), unsigned cluster, unsigned threads_max) {
    return EmulatedCall<kernel, P...>::describe(cluster, threads_max, EmulatedIndices<__integer_pack(sizeof...(P))...>{});
}

// How many threads a block may have, where __launch_bounds__ names it.
constexpr unsigned emulated_bound() { return 1024; }
constexpr unsigned emulated_bound(unsigned threads, unsigned = 0, unsigned = 0) { return threads; }

#define EMULATED_KERNEL(name, cluster, ...)                                                   \
    extern "C" {                                                                              \
    extern EXPORTED const emulation::Kernel emulated_##name =                                 \
        emulated_kernel<&name>(&name, cluster, emulated_bound(__VA_ARGS__));                  \
    }

// The module's shared memory of fixed size. Weak: a module may have none.
extern "C" {
extern unsigned char __start_shared_memory[] __attribute__((weak));
extern unsigned char __stop_shared_memory[] __attribute__((weak));
extern EXPORTED unsigned char* const emulated_shared[2] = {__start_shared_memory, __stop_shared_memory};
}
