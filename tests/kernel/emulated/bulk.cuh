// bulk.cuh in the emulation of a GPU; see device.cuh here.
#pragma once
#include <map>

#include "device.cuh"

using Arrival = uint64_t;

namespace emulated {

struct Phase {
    long number = 0;
    int arrivals = 1, arrived = 0;
    long expected = 0, bytes = 0;
    std::vector<std::function<void()>> open;  // copies that have not happened
};
inline std::map<Arrival*, Phase> phases;

inline Phase& phase_of(Arrival* at) {
    if (phases.count(at) == 0) machine.problem = "copies to a place that was not prepared";
    return phases[at];
}
inline void arrive_at(Phase& phase) {
    if (phase.arrived++ == phase.arrivals) {
        machine.problem = "a phase begins before the last one ended";
    }
    ++machine.moves;
}
// Whether the phase that is not over ends now.
inline bool ends(Phase& phase) {
    if (phase.arrived < phase.arrivals || phase.bytes != phase.expected) return false;
    for (const auto& copy : phase.open) copy();
    phase = {phase.number + 1, phase.arrivals};
    ++machine.moves;
    return true;
}
inline void copy_to(Arrival* at, int bytes, std::function<void()> copy) {
    Phase& phase = phase_of(at);
    phase.bytes += bytes;
    if (machine.eager_copies) {
        copy();
    } else {
        phase.open.push_back(std::move(copy));
    }
    ++machine.moves;
}

}  // namespace emulated

inline void prepare(Arrival* at, int arrivals = 1) {
    emulated::phases[at] = {0, arrivals};
}
inline void expect(Arrival* at, int bytes) {
    emulated::Phase& phase = emulated::phase_of(at);
    phase.expected += bytes;
    emulated::arrive_at(phase);
}
inline void copy_bulk(void* shared, const void* global, int bytes, Arrival* at) {
    using namespace emulated;
    const auto to = static_cast<unsigned char*>(shared) - shared_memory();
    if (!known(global, bytes)) return;
    check_waited(global, bytes);
    if (to < 0 || to + bytes > static_cast<long>(kShared)) {
        machine.problem = "a copy to outside of shared memory";
    }
    if (to % 16 || reinterpret_cast<uintptr_t>(global) % 16 || bytes % 16 || bytes == 0) {
        machine.problem = "a copy off 16 bytes";
    }
    if (!machine.problem.empty()) return;
    copy_to(at, bytes, [=] { std::memcpy(shared, global, bytes); });
}
inline void wait_for(Arrival* at, int number) {
    using namespace emulated;
    Phase& phase = phase_of(at);
    while (phase.number % 2 == number) {
        if (!ends(phase)) give_way();
    }
}
inline bool is_over(Arrival* at, int number) {
    emulated::give_way();  // who asks asks again
    return emulated::phase_of(at).number % 2 != number;
}
inline void release(Arrival* at) {
    emulated::Phase& phase = emulated::phase_of(at);
    emulated::arrive_at(phase);
    if (phase.expected == 0) emulated::ends(phase);
}
