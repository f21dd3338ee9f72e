#include "uffd/seccomp_filter.h"

#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sys/ptrace.h>

#include <array>
#include <cerrno>
#include <cstring>

namespace fileballoon {
namespace {

constexpr std::uint32_t kBroken = SECCOMP_RET_KILL_PROCESS;

// The part of a conditional jump that is the comparison.
bool jump_taken(const sock_filter& op, std::uint32_t a, std::uint32_t x) {
  const std::uint32_t operand = BPF_SRC(op.code) == BPF_X ? x : op.k;
  switch (BPF_OP(op.code)) {
    case BPF_JEQ:
      return a == operand;
    case BPF_JGT:
      return a > operand;
    case BPF_JGE:
      return a >= operand;
    default:
      return (a & operand) != 0;  // BPF_JSET
  }
}

std::uint32_t arithmetic(const sock_filter& op, std::uint32_t a, std::uint32_t x) {
  const std::uint32_t operand = BPF_SRC(op.code) == BPF_X ? x : op.k;
  switch (BPF_OP(op.code)) {
    case BPF_ADD:
      return a + operand;
    case BPF_SUB:
      return a - operand;
    case BPF_MUL:
      return a * operand;
    case BPF_DIV:
      return operand == 0 ? 0 : a / operand;
    case BPF_OR:
      return a | operand;
    case BPF_AND:
      return a & operand;
    case BPF_XOR:
      return a ^ operand;
    case BPF_LSH:
      return operand < 32 ? a << operand : 0;
    case BPF_RSH:
      return operand < 32 ? a >> operand : 0;
    default:
      return ~a + 1;  // BPF_NEG
  }
}

}  // namespace

std::uint32_t run_filter(std::span<const sock_filter> filter, int number,
                         std::span<const std::uint64_t, 6> arguments, std::uint64_t instruction) {
  seccomp_data data{};
  data.nr = number;
  data.arch = AUDIT_ARCH_X86_64;
  // seccomp sees where the call returns to: populate_seccomp_data() takes KSTK_EIP, which the
  // two-byte `syscall` has moved past itself (kernel/seccomp.c, Linux 6.12).
  data.instruction_pointer = instruction + 2;
  std::memcpy(data.args, arguments.data(), sizeof data.args);
  std::uint32_t a = 0;
  std::uint32_t x = 0;
  std::array<std::uint32_t, BPF_MEMWORDS> memory{};
  // Jumps only go forward, so the loop ends.
  for (std::size_t pc = 0; pc < filter.size(); ++pc) {
    const sock_filter& op = filter[pc];
    switch (BPF_CLASS(op.code)) {
      case BPF_LD:
      case BPF_LDX: {
        std::uint32_t value = op.k;  // BPF_IMM
        if (BPF_MODE(op.code) == BPF_ABS) {
          if (op.k > sizeof data - sizeof value) {
            return kBroken;
          }
          std::memcpy(&value, reinterpret_cast<const char*>(&data) + op.k, sizeof value);
        } else if (BPF_MODE(op.code) == BPF_MEM) {
          if (op.k >= memory.size()) {
            return kBroken;
          }
          value = memory[op.k];
        } else if (BPF_MODE(op.code) == BPF_LEN) {
          value = sizeof data;
        }
        (BPF_CLASS(op.code) == BPF_LD ? a : x) = value;
        break;
      }
      case BPF_ST:
      case BPF_STX:
        if (op.k >= memory.size()) {
          return kBroken;
        }
        memory[op.k] = BPF_CLASS(op.code) == BPF_ST ? a : x;
        break;
      case BPF_ALU:
        a = arithmetic(op, a, x);
        break;
      case BPF_JMP:
        if (BPF_OP(op.code) == BPF_JA) {
          pc += op.k;
        } else {
          pc += jump_taken(op, a, x) ? op.jt : op.jf;
        }
        break;
      case BPF_RET:
        return BPF_RVAL(op.code) == BPF_A ? a : op.k;
      default:  // BPF_MISC
        if (BPF_MISCOP(op.code) == BPF_TAX) {
          x = a;
        } else {
          a = x;
        }
        break;
    }
  }
  return kBroken;
}

bool allows(std::uint32_t action) {
  const std::uint32_t kind = action & SECCOMP_RET_ACTION_FULL;
  return kind == SECCOMP_RET_ALLOW || kind == SECCOMP_RET_LOG;
}

Result<std::vector<std::vector<sock_filter>>> read_filters(int tid) {
  std::vector<std::vector<sock_filter>> filters;
  for (unsigned long index = 0;; ++index) {
    const long length = ::ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, nullptr);
    if (length < 0) {
      if (errno == ENOENT && index > 0) {
        return filters;
      }
      return Error{std::string("its seccomp filter cannot be read: ") + std::strerror(errno)};
    }
    std::vector<sock_filter> filter(static_cast<std::size_t>(length));
    if (::ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, filter.data()) < 0) {
      return Error{std::string("its seccomp filter cannot be read: ") + std::strerror(errno)};
    }
    filters.push_back(std::move(filter));
  }
}

}  // namespace fileballoon
