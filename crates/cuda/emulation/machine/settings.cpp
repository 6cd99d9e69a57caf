#include "settings.h"

#include <cstdio>
#include <cstdlib>
#include <sstream>

namespace emulation {

static Settings read() {
    Settings all;
    const char* text = getenv("EMULATED_CARD");
    std::istringstream items(text ? text : "");
    for (std::string item; std::getline(items, item, ',');) {
        size_t equals = item.find('=');
        std::string name = item.substr(0, equals), value = equals == std::string::npos ? "" : item.substr(equals + 1);
        if (name == "cards") {
            all.cards = std::stoi(value);
        } else if (name == "capability") {
            sscanf(value.c_str(), "%d.%d", &all.major, &all.minor);
        } else if (name == "memory") {
            all.memory = std::stoull(value);
        } else if (name == "fail") {
            all.fail = value;
        } else if (name == "trace") {
            all.trace = value == "all" || value == "only";
            all.idle = value == "only";
        } else if (name == "pinned") {
            all.has_no_pinned = value == "none";
        } else if (name == "workers") {
            all.workers = static_cast<unsigned>(std::stoul(value));
        } else {
            fprintf(stderr, "emulation: EMULATED_CARD knows no %s\n", name.c_str());
            abort();
        }
    }
    return all;
}

const Settings& settings() {
    static const Settings all = read();
    return all;
}

} // namespace emulation
