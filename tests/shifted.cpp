// An allocator that starts every CPU tensor's storage SHIFT bytes after a multiple of 64, for VSF_TEST_SHIFT.
// Loaded tensors (mapped files, NumPy arrays) stand at any address; alignment decides which kernel computes, and
// so in which order it sums.
#include <c10/core/CPUAllocator.h>
#include <cstdlib>
#include <cstring>

namespace {

constexpr size_t kAlign = 64;
size_t shift = 0;

void release(void* data) {
  if (data) std::free(static_cast<char*>(data) - shift);
}

struct Shifted final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    void* base = nullptr;
    if (n && posix_memalign(&base, kAlign, n + shift)) throw std::bad_alloc();
    void* data = n ? static_cast<char*>(base) + shift : nullptr;
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
};

}  // namespace

extern "C" void shift_storages(size_t bytes) {
  shift = bytes;
  c10::SetCPUAllocator(new Shifted, /*priority=*/255);
}
