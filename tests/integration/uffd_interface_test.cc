// The wrapper over userfaultfd(2), each operation on the real kernel: the outcomes on which the
// fault path decides, and the errors that a user reads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <thread>

#include "uffd/userfaultfd.h"

namespace fileballoon {
namespace {

using ::testing::HasSubstr;

class Interface : public ::testing::Test {
 protected:
  static constexpr std::uint64_t kPages = 16;
  void SetUp() override {
    memory_ = UniqueFd(::memfd_create("interface", MFD_CLOEXEC));
    ASSERT_EQ(::ftruncate(memory_.get(), kPages * kPageSize), 0);
    base_ = static_cast<char*>(
        ::mmap(nullptr, kPages * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED, memory_.get(), 0));
    uffd_ = Userfaultfd::open(UffdFeature::missing_shmem | UffdFeature::wp_hugetlbfs_shmem |
                                  UffdFeature::pagefault_wp,
                              UffdFeature::minor_shmem | UffdFeature::poison)
                .value();
  }
  void TearDown() override { ::munmap(base_, kPages * kPageSize); }
  [[nodiscard]] AddressRange pages(std::uint64_t first, std::uint64_t count) const {
    return {reinterpret_cast<std::uintptr_t>(base_) + first * kPageSize, Bytes::pages(count)};
  }
  UniqueFd memory_;
  char* base_ = nullptr;
  Userfaultfd uffd_;
};

TEST_F(Interface, FillsReportPartialProgressAndWhatIsThere) {
  ASSERT_TRUE(uffd_.watch(pages(0, kPages), UffdMode::missing).has_value());
  const char data[kPageSize] = {'x'};
  EXPECT_EQ(uffd_.copy(pages(3, 1), data, Wake::yes).status, UffdStatus::done);
  EXPECT_EQ(base_[3 * kPageSize], 'x');
  const UffdOutcome partial = uffd_.zeropage(pages(0, 6), Wake::yes);
  EXPECT_EQ(partial.status, UffdStatus::again);
  EXPECT_EQ(partial.completed, Bytes::pages(3));
  const UffdOutcome blocked = uffd_.zeropage(pages(3, 3), Wake::yes);
  EXPECT_EQ(blocked.status, UffdStatus::exists);
  EXPECT_EQ(blocked.error, EEXIST);
  EXPECT_EQ(uffd_.zeropage(pages(4, 2), Wake::no).completed, Bytes::pages(2));
  EXPECT_EQ(base_[3 * kPageSize], 'x');
  EXPECT_EQ(uffd_.wake(pages(0, kPages)).status, UffdStatus::done);
}

TEST_F(Interface, AnUnwatchedRangeIsMissing) {
  EXPECT_EQ(uffd_.zeropage(pages(0, 1), Wake::yes).status, UffdStatus::missing);
  EXPECT_EQ(uffd_.protect(pages(0, 1)).status, UffdStatus::missing);
  EXPECT_EQ(uffd_.zeropage({1, Bytes(kPageSize)}, Wake::yes).status, UffdStatus::invalid);
}

TEST_F(Interface, ContinueMapsWhatTheObjectHolds) {
  if (!uffd_.features().has(UffdFeature::minor_shmem)) {
    GTEST_SKIP() << "this kernel has no minor faults on shared memory";
  }
  ASSERT_TRUE(uffd_.watch(pages(0, kPages), UffdMode::missing_and_minor).has_value());
  EXPECT_EQ(uffd_.continue_(pages(0, 1), Wake::yes).status, UffdStatus::poisoned)
      << "there is no page to continue with";
  ASSERT_EQ(::pwrite(memory_.get(), "y", 1, 0), 1);
  EXPECT_EQ(uffd_.continue_(pages(0, 1), Wake::yes).status, UffdStatus::done);
  EXPECT_EQ(base_[0], 'y');
  EXPECT_EQ(uffd_.continue_(pages(0, 1), Wake::yes).status, UffdStatus::exists);
}

TEST_F(Interface, MessagesSayWhichFaultItIs) {
  ASSERT_TRUE(uffd_.watch(pages(0, kPages), UffdMode::missing_and_write_protect).has_value());
  std::array<uffd_msg, 4> messages;
  std::size_t count = 0;
  EXPECT_EQ(uffd_.read(messages, count), UffdRead::empty);
  std::thread toucher([&] {
    base_[5 * kPageSize] = 1;  // missing
    base_[5 * kPageSize] = 2;  // write-protected meanwhile
  });
  while (uffd_.read(messages, count) == UffdRead::empty) {
    std::this_thread::yield();
  }
  ASSERT_EQ(count, 1U);
  EXPECT_EQ(messages[0].event, UFFD_EVENT_PAGEFAULT);
  EXPECT_EQ(messages[0].arg.pagefault.address & ~(kPageSize - 1), pages(5, 1).start);
  EXPECT_EQ(messages[0].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP, 0U);
  const char zeros[kPageSize] = {};
  EXPECT_EQ(uffd_.copy(pages(5, 1), zeros, Wake::yes, true).status, UffdStatus::done);
  while (uffd_.read(messages, count) == UffdRead::empty) {
    std::this_thread::yield();
  }
  EXPECT_NE(messages[0].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP, 0U);
  EXPECT_EQ(uffd_.unprotect(pages(5, 1), Wake::yes).status, UffdStatus::done);
  toucher.join();
  EXPECT_EQ(base_[5 * kPageSize], 2);
}

TEST_F(Interface, APoisonedPageIsABusError) {
  if (!uffd_.features().has(UffdFeature::poison)) {
    GTEST_SKIP() << "this kernel has no UFFDIO_POISON";
  }
  ASSERT_TRUE(uffd_.watch(pages(0, kPages), UffdMode::missing).has_value());
  EXPECT_EQ(uffd_.poison(pages(2, 1), Wake::yes).status, UffdStatus::done);
  // The kernel refuses it to a system call, too, without a signal.
  int ends[2];
  ASSERT_EQ(::pipe(ends), 0);
  EXPECT_LT(::write(ends[1], base_ + 2 * kPageSize, 1), 0);
  ::close(ends[0]);
  ::close(ends[1]);
}

TEST_F(Interface, AClosedDescriptorIsSaidToBeClosed) {
  const Userfaultfd none;
  std::array<uffd_msg, 1> messages;
  std::size_t count = 0;
  EXPECT_EQ(none.read(messages, count), UffdRead::closed);
}

TEST_F(Interface, RegistrationErrorsNameTheRangeAndTheReason) {
  ASSERT_TRUE(uffd_.watch(pages(0, kPages), UffdMode::missing).has_value());
  const Userfaultfd other = Userfaultfd::open(UffdFeatures(UffdFeature::missing_shmem)).value();
  EXPECT_THAT(other.watch(pages(0, kPages), UffdMode::missing).error().message,
              HasSubstr("another userfaultfd watches it already"));
  EXPECT_THAT(other.watch({4096, Bytes(kPageSize)}, UffdMode::missing).error().message,
              HasSubstr("not a mapping"));
}

TEST(InterfaceOpen, MissingFeaturesAreNamed) {
  const auto uffd = Userfaultfd::open(UffdFeatures(1ULL << 60) | UffdFeature::missing_shmem);
  ASSERT_TRUE(uffd.has_error());
  EXPECT_THAT(uffd.error().message, HasSubstr("lacks bit 60"));
  EXPECT_EQ(to_string(UffdFeature::missing_shmem | UffdFeature::poison), "missing_shmem, poison");
}

TEST(InterfaceOpen, WithoutPermissionTheRemedyIsSaid) {
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setresgid(65534, 65534, 65534) != 0 || ::setresuid(65534, 65534, 65534) != 0) {
      ::_exit(2);
    }
    const auto uffd = Userfaultfd::open({});
    const bool told = uffd.has_error() && uffd.error().message.find(
                                              "vm.unprivileged_userfaultfd=1") != std::string::npos;
    ::_exit(told || uffd.has_value() ? 0 : 1);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

}  // namespace
}  // namespace fileballoon
