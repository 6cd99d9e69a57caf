#include "launch.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "report.h"
#include "settings.h"

namespace emulation {

// Fewer threads than this are not worth waking a worker.
static constexpr u64 shared_from = 1024;

namespace {

// A launch on its way.
struct Work {
    Launch launch;
    u64 clusters;
    std::atomic<u64> next{0};
    std::atomic<bool> has_failed{false};
    std::string failure;
    std::mutex failing;
};

// Workers that wait for launches. They stay until the process ends.
class Pool {
public:
    static Pool& get() {
        static Pool* pool = new Pool;
        return *pool;
    }

    void run(Work& work, bool is_shared) {
        if (is_shared) {
            std::lock_guard lock(changes);
            current = &work;
            turn++;
            busy = helpers;
            wake.notify_all();
        }
        take_clusters(*own, work);
        if (!is_shared) return;
        std::unique_lock lock(changes);
        done.wait(lock, [this] { return busy == 0; });
    }

private:
    Pool() : own(new Worker(0)) {
        unsigned wanted = settings().workers ? settings().workers : std::thread::hardware_concurrency();
        helpers = wanted > 1 ? wanted - 1 : 0;
        for (unsigned i = 1; i <= helpers; i++) std::thread([this, i] { serve(i); }).detach();
    }

    void serve(size_t index) {
        auto* worker = new Worker(index);
        for (u64 seen = 0;;) {
            std::unique_lock lock(changes);
            wake.wait(lock, [&] { return turn != seen; });
            seen = turn;
            Work& work = *current;
            lock.unlock();
            take_clusters(*worker, work);
            lock.lock();
            if (--busy == 0) done.notify_one();
        }
    }

    static void take_clusters(Worker& worker, Work& work) {
        for (u64 cluster; (cluster = work.next++) < work.clusters && !work.has_failed;) {
            if (worker.run(work.launch, cluster)) continue;
            std::lock_guard lock(work.failing);
            if (!work.has_failed.exchange(true)) work.failure = describe(worker);
        }
    }

    Worker* own;
    unsigned helpers = 0;
    std::mutex changes;
    std::condition_variable wake, done;
    Work* current = nullptr;
    u64 turn = 0;
    unsigned busy = 0;
};

} // namespace

static std::atomic<bool> are_complete{true};

void complete_launches() { are_complete = true; }

std::string run(Launch launch) {
    static std::mutex one_at_a_time;
    // Of the launch before: what was complete when it started, and when it let the next one start.
    static u32 serial = 0, complete = 0;
    static Start next;
    std::lock_guard lock(one_at_a_time);
    // Who starts behind a wait of the one before it starts when all before that are complete.
    const bool is_behind_all = are_complete || !launch.starts_early || (!next.is_let && next.is_written_out);
    launch.complete = is_behind_all ? serial : next.is_early ? complete : serial - 1;
    are_complete = false;
    launch.serial = ++serial;
    complete = launch.complete;
    launch.next = &next;
    next.is_early = next.is_let = next.is_written_out = false;
    u64 blocks = u64{launch.grid.x} * launch.grid.y * launch.grid.z;
    Work work{launch, blocks / launch.cluster, {}, {}, {}, {}};
    u64 threads = blocks * launch.block.x * launch.block.y * launch.block.z;
    Pool::get().run(work, work.clusters > 1 && threads >= shared_from);
    return work.failure;
}

} // namespace emulation
