// libfuse's high-level half can load file system modules with dlopen(3). balloonfs uses only the
// low-level half, but the archive brings both, and a static program that can dlopen makes the
// linker warn, rightly. In the static agent loading a module simply fails.
#include <dlfcn.h>

extern "C" {

void* dlopen(const char* /*file*/, int /*mode*/) noexcept { return nullptr; }
void* dlsym(void* /*handle*/, const char* /*name*/) noexcept { return nullptr; }
int dlclose(void* /*handle*/) noexcept { return 0; }
char* dlerror() noexcept {
  static char message[] = "modules are not supported by the static balloonfs";
  return message;
}

}  // extern "C"
