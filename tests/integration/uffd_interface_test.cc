// The wrapper over userfaultfd(2), each operation on the real kernel: the outcomes on which the
// fault path decides, and the errors that a user reads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

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

// Who unmaps, moves, removes or forks waits until its event is read.
class Events : public Interface {
 protected:
  void SetUp() override {
    Interface::SetUp();
    uffd_ = Userfaultfd::open(UffdFeature::missing_shmem | UffdFeature::event_fork |
                              UffdFeature::event_remap | UffdFeature::event_remove |
                              UffdFeature::event_unmap)
                .value();
    ASSERT_TRUE(uffd_.watch(pages(0, kPages), UffdMode::missing).has_value());
  }
  void TearDown() override {
    uffd_ = Userfaultfd();  // nobody would read the event of what is unmapped from now on
    Interface::TearDown();
  }
  /// All that is read while `action` runs in another thread, which waits for its reader.
  std::vector<uffd_msg> events_of(const std::function<void()>& action) {
    std::atomic<bool> over{false};
    std::thread actor([&] {
      action();
      over = true;
    });
    std::vector<uffd_msg> events;
    for (bool last = false; !last;) {
      last = over;
      std::array<uffd_msg, 4> messages{};
      std::size_t count = 0;
      if (uffd_.read(messages, count) == UffdRead::messages) {
        events.insert(events.end(), messages.begin(), messages.begin() + count);
      }
      std::this_thread::yield();
    }
    actor.join();
    return events;
  }
};

TEST_F(Events, UnmapSaysWhatIsGone) {
  const auto events = events_of([&] { ::munmap(base_ + 4 * kPageSize, 2 * kPageSize); });
  ASSERT_EQ(events.size(), 1U);
  const uffd_msg& event = events[0];
  EXPECT_EQ(event.event, UFFD_EVENT_UNMAP);
  EXPECT_EQ(event.arg.remove.start, pages(4, 2).start);
  EXPECT_EQ(event.arg.remove.end, pages(4, 2).end());
  EXPECT_EQ(uffd_.zeropage(pages(4, 1), Wake::yes).status, UffdStatus::missing);
}

TEST_F(Events, RemapSaysWhereItWentAndItIsWatchedThere) {
  void* to = ::mmap(nullptr, 2 * kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const auto events = events_of([&] {
    ::mremap(base_ + 4 * kPageSize, 2 * kPageSize, 2 * kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED,
             to);
  });
  // The old place is unmapped, which is an event of its own (mremap(), Linux 6.18).
  ASSERT_GE(events.size(), 1U);
  const uffd_msg& event = events[0];
  EXPECT_EQ(event.event, UFFD_EVENT_REMAP);
  EXPECT_EQ(event.arg.remap.from, pages(4, 2).start);
  EXPECT_EQ(event.arg.remap.to, reinterpret_cast<std::uintptr_t>(to));
  EXPECT_EQ(event.arg.remap.len, pages(4, 2).size.count());
  EXPECT_EQ(uffd_.zeropage({event.arg.remap.to, Bytes::pages(2)}, Wake::yes).status,
            UffdStatus::done);
  uffd_ = Userfaultfd();
  ::munmap(to, 2 * kPageSize);
}

TEST_F(Events, RemoveSaysWhatWasRemovedAndFillsWaitForItsReader) {
  const char data[kPageSize] = {'x'};
  ASSERT_EQ(uffd_.copy(pages(4, 1), data, Wake::yes).status, UffdStatus::done);
  std::thread remover([&] { ::madvise(base_ + 4 * kPageSize, kPageSize, MADV_REMOVE); });
  pollfd polled{uffd_.fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&polled, 1, 5000), 1);
  EXPECT_EQ(uffd_.copy(pages(4, 1), data, Wake::yes).status, UffdStatus::again)
      << "it would bring back what is being removed";
  std::array<uffd_msg, 1> messages{};
  std::size_t count = 0;
  ASSERT_EQ(uffd_.read(messages, count), UffdRead::messages);
  remover.join();
  EXPECT_EQ(messages[0].event, UFFD_EVENT_REMOVE);
  EXPECT_EQ(messages[0].arg.remove.start, pages(4, 1).start);
  EXPECT_EQ(uffd_.zeropage(pages(4, 1), Wake::yes).status, UffdStatus::done);
  EXPECT_EQ(base_[4 * kPageSize], 0);
}

TEST_F(Events, ForkBringsTheChildsDescriptorWhichServesTheChild) {
  pid_t child = 0;
  const auto events = events_of([&] {
    child = ::fork();
    if (child == 0) {
      ::_exit(static_cast<volatile char*>(base_)[7 * kPageSize]);
    }
  });
  ASSERT_EQ(events.size(), 1U);
  const uffd_msg& event = events[0];
  ASSERT_EQ(event.event, UFFD_EVENT_FORK);
  auto childs =
      Userfaultfd::adopt(UniqueFd(static_cast<int>(event.arg.fork.ufd)), uffd_.features());
  ASSERT_TRUE(childs.has_value()) << childs.error().message;
  pollfd polled{childs->fd(), POLLIN, 0};
  ASSERT_EQ(::poll(&polled, 1, 5000), 1);
  std::array<uffd_msg, 1> messages{};
  std::size_t count = 0;
  ASSERT_EQ(childs->read(messages, count), UffdRead::messages);
  EXPECT_EQ(messages[0].event, UFFD_EVENT_PAGEFAULT);
  const char data[kPageSize] = {42};
  EXPECT_EQ(childs->copy(pages(7, 1), data, Wake::yes).status, UffdStatus::done);
  int status = 0;
  ::waitpid(child, &status, 0);
  EXPECT_EQ(WEXITSTATUS(status), 42);
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
