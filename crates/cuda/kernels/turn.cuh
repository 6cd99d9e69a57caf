// A launch beside the one before it, on cards where kernels start early.
//
// By itself a launch waits until all before it is complete, and a layer is as long as its launches one after another. Where the queue
// (crates/cuda/src/queue/order.rs) finds that a launch has nothing to do with the one before it, it tells it by a word:
//
// - The second, `BESIDE`, begins when each block of the first has had its turn, or has ended, which none does before its turn: so all
//   that was enqueued before the first is complete, and lies in L2, by then. The first has such a word, too: it is no kernel that lets the
//   next start sooner.
// - It does its work at once, and waits when it ends. So whoever waits for it, waits for both, and what is enqueued later needs not know.
//
// What lies in L2 is there for every block that begins later, but for the L1 cache of its processor, which may hold what an earlier launch
// had read in the same place: memory of steps is given out again. A wait for earlier work takes care of that; without one a fence does,
// which empties L1 for whatever is read behind it, also by loads that are told that nothing changes. Loads around L1 need none.
//
// The first of the two may touch what it likes of its own, before and behind its wait: the second reads and writes nothing that the
// first writes, and writes nothing that it reads. The emulated machine holds launches to this, whatever the queue says.

#define BESIDE 1

// Another thing that the queue may tell: what a launch looks up first, the lists of its experts, was written by none that is still on its
// way when it starts. Then it reads them before its turn, and weights are asked for while the launch before it ends.
#define LISTED 2

// The first line of a kernel that can be either. At every end of the kernel stands its end. The fence comes first, where no load is on its
// way that it would wait for.
struct Turn {
    u32 beside;

    DEVICE_MEMBER explicit Turn(u32 beside) : beside(beside) {
        if (beside & BESIDE) let_next_start();
        if (beside) read_anew();
    }
    DEVICE_MEMBER ~Turn() {
        if (beside & BESIDE) after_earlier_work();
    }
};

// Waits for the earlier work that the launch needs.
DEVICE void after_earlier_work(const Turn& turn) {
    if (!(turn.beside & BESIDE)) after_earlier_work();
}
