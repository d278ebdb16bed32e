// What Python reads and sets, as torch.ops.rehearsal.*: no headers of Python are needed to build it.
#include <torch/library.h>

#include "devices.h"

namespace {
using rehearsal::device;

int64_t figure(int64_t index, const std::string& name) {
  auto& on = device(c10::DeviceIndex(index));
  if (name == "kernels") return on.kernels;
  if (name == "syncs") return on.syncs;
  if (name == "uploads") return on.uploads;
  if (name == "refusals") return on.refusals;
  std::lock_guard<std::mutex> lock(on.memory);
  if (name == "limit") return on.limit;
  if (name == "allocations") return on.allocations;
  if (name == "allocated") return on.allocated;
  if (name == "reserved") return on.reserved;
  if (name == "peak_allocated") return on.peak_allocated;
  if (name == "peak_reserved") return on.peak_reserved;
  TORCH_CHECK(false, "a rehearsal device has no ", name);
}
}  // namespace

TORCH_LIBRARY(rehearsal, m) {
  using Index = c10::DeviceIndex;
  m.def("figure(int device, str name) -> int", figure);
  m.def("device_count() -> int", [] { return int64_t(rehearsal::device_count()); });
  m.def("set_device_count(int count) -> ()", [](int64_t count) { rehearsal::set_device_count(Index(count)); });
  m.def("set_limit(int device, int bytes) -> ()", [](int64_t index, int64_t bytes) {
    auto& on = device(Index(index));
    std::lock_guard<std::mutex> lock(on.memory);
    on.limit = bytes;
  });
  m.def("refuse_after(int device, int allocations) -> ()", [](int64_t index, int64_t allocations) {
    auto& on = device(Index(index));
    std::lock_guard<std::mutex> lock(on.memory);
    on.allocations_to_refusal = allocations;
  });
  m.def("lose_after(int device, int kernels, str text) -> ()", [](int64_t index, int64_t kernels, std::string text) {
    if (!text.empty()) rehearsal::set_text_of_loss(text);
    device(Index(index)).kernels_to_live = kernels;
  });
  m.def("set_fault(int device, str op, ScalarType dtype, str error, float factor, float seconds, "
        "float seconds_per_product) -> ()",
        [](int64_t index, const std::string& op, at::ScalarType dtype, const std::string& error, double factor,
           double seconds, double seconds_per_product) {
          rehearsal::set_fault(Index(index), op, dtype, {error, factor, seconds, seconds_per_product});
        });
  m.def("generator(int device) -> Generator?", [](int64_t index) { return rehearsal::generator(Index(index)); });
  m.def("reset() -> ()", [] { rehearsal::reset(); });
}
