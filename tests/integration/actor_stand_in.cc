// A program that stands in for somebody else's actor (`--actor external:PATH`). The name it is
// started by says how it behaves: `actor-obeys` subscribes, writes each target that it is told into
// the file PATH.told and reports; `actor-dies` ends at once; `actor-babbles` subscribes and sends
// nonsense; `actor-lies` says at-target at once; `actor-sleeps` says nothing.
#include <sys/socket.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "host/json_line_client.h"

int main(int argc, char** argv) {
  using fileballoon::host::JsonLineClient;
  const std::string self = argv[0];
  const std::string role = self.substr(self.rfind('/') + 1);
  if (role == "actor-dies") {
    return 3;
  }
  std::string vm;
  std::string socket;
  for (int i = 1; i + 1 < argc; i += 2) {
    (std::string(argv[i]) == "--vm" ? vm : socket) = argv[i + 1];
  }
  if (role == "actor-sleeps") {
    ::pause();
  }
  auto client = JsonLineClient::connect(socket);
  if (!client) {
    return 4;
  }
  const auto told = client->call("actor-subscribe", {{"name", vm}});
  if (!told) {
    return 5;
  }
  const auto note = [&](const boost::json::value& target) {
    std::ofstream(self + ".told", std::ios::app) << boost::json::serialize(target) << "\n";
  };
  note(*told);
  const std::string babble = "{\"a\": }\n";
  while (role == "actor-babbles") {
    if (::send(client->fd(), babble.data(), babble.size(), MSG_NOSIGNAL) < 0) {
      return 6;
    }
    ::usleep(20'000);
  }
  for (;;) {
    const char* state = role == "actor-lies" ? "at-target" : "working";
    (void)client->call("actor-report", {{"name", vm}, {"state", state}, {"text", "as told"}});
    const auto next = client->next_notification(JsonLineClient::Timeout(-1));
    if (!next) {
      return 7;
    }
    note(next->as_object().at("params"));
  }
}
