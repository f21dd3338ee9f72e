// libfuse's high-level half can load file system modules with dlopen(3). balloonfs uses only the
// low-level half, but the archive brings both, and a static program that can dlopen makes the
// linker warn, rightly. The static agent is linked with --wrap=dlopen: loading a module fails.

// NOLINTNEXTLINE(bugprone-reserved-identifier): the name that ld's --wrap asks for
extern "C" void* __wrap_dlopen(const char* /*file*/, int /*mode*/) { return nullptr; }
