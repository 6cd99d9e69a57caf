// Of a kernel that looks up ahead of its turn what its rows see: it may, for the host sends a step before its first launch. So all words of
// a step are read around L1 (step.cuh), which may hold what an earlier launch had read in the same place.
#define STEP_WORD(at) load_anew(at)
