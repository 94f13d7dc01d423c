// A client of grpc's C++ library that does what lines on its input say; see client_test.go for the protocol.
#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/channel_arguments.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace {

using google::protobuf::Struct;

int64_t Micros() {
  timespec ts;
  clock_gettime(CLOCK_MONOTONIC, &ts);
  return int64_t{ts.tv_sec} * 1000000 + ts.tv_nsec / 1000;
}

std::chrono::system_clock::time_point After(double milliseconds) {
  return std::chrono::system_clock::now() + std::chrono::milliseconds(int64_t(milliseconds));
}

void Set(Struct& event, const std::string& name, const std::string& value) { (*event.mutable_fields())[name].set_string_value(value); }
void Set(Struct& event, const std::string& name, double value) { (*event.mutable_fields())[name].set_number_value(value); }
std::string Text(const Struct& order, const std::string& name) { return order.fields().at(name).string_value(); }
double Number(const Struct& order, const std::string& name) { return order.fields().at(name).number_value(); }

Struct Event(const std::string& id, const std::string& kind) {
  Struct event;
  Set(event, "at", double(Micros()));
  Set(event, "id", id);
  Set(event, "event", kind);
  return event;
}

void Say(const Struct& event) {
  static std::mutex mu;
  std::string line;
  if (!google::protobuf::util::MessageToJsonString(event, &line).ok()) std::abort();
  std::lock_guard<std::mutex> lock(mu);
  std::cout << line << std::endl;
}

std::string Bytes(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  std::string all;
  if (buffer.Valid() && buffer.Dump(&slices).ok()) {
    for (const auto& slice : slices) all.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return all;
}

grpc::ByteBuffer Question() {
  grpc::Slice ask("ask");
  return grpc::ByteBuffer(&ask, 1);
}

// Call is one call. Its library calls its methods one after the other, in a thread that must not destroy the channel, which would wait for that thread. The context
// holds the channel, so main deletes a call when it is done.
class Call final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Call(const Struct& order, std::shared_ptr<grpc::Channel> channel) : id_(Text(order, "id")), stub_(std::move(channel)), question_(Question()) {
    context_.AddMetadata("call-id", id_);
    context_.set_deadline(After(Number(order, "deadline")));
  }

  void Start(const Struct& order) {
    Say(Event(id_, "started"));
    std::string path = Text(order, "path");
    if (order.fields().at("unary").bool_value()) {
      stub_.UnaryCall(&context_, path, {}, &question_, &answer_, [this](grpc::Status status) {
        if (status.ok()) Take();
        OnDone(status);
      });
    } else {
      stub_.PrepareBidiStreamingCall(&context_, path, {}, this);
      StartWriteLast(&question_, grpc::WriteOptions());
      StartRead(&answer_);
      StartCall();
    }
  }

  bool Done() const { return done_; }

  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    Take();
    if (messages_ == 1) Say(Event(id_, "message"));
    answer_.Clear();
    StartRead(&answer_);
  }

  void OnDone(const grpc::Status& status) override {
    Struct end = Event(id_, "end");
    Set(end, "code", status.error_code());
    Set(end, "text", status.error_message());
    const auto& trailers = context_.GetServerTrailingMetadata();
    if (auto ended = trailers.find("levada-stream-ended"); ended != trailers.end()) {
      Set(end, "ended", std::string(ended->second.data(), ended->second.size()));
    }
    Set(end, "messages", messages_);
    Set(end, "wrong", wrong_);
    Say(end);
    done_ = true;
  }

 private:
  void Take() {
    messages_++;
    std::string message = Bytes(answer_);
    if (wrong_.empty() && message != std::to_string(messages_)) wrong_ = "message " + std::to_string(messages_) + " is \"" + message + "\"";
  }

  const std::string id_;
  grpc::GenericStub stub_;
  grpc::ClientContext context_;
  grpc::ByteBuffer question_, answer_;
  int messages_ = 0;
  std::string wrong_;
  std::atomic<bool> done_{false};
};

std::shared_ptr<grpc::Channel> NewChannel(const std::string& target) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments);
}

}  // namespace

int main() {
  std::map<std::string, std::shared_ptr<grpc::Channel>> channels;
  std::map<std::string, std::unique_ptr<Call>> calls;
  auto channel = [&](const Struct& order) {
    auto& found = channels[Text(order, "channel")];
    if (!found) found = NewChannel(Text(order, "target"));
    return found;
  };
  for (std::string line; std::getline(std::cin, line);) {
    Struct order;
    if (auto status = google::protobuf::util::JsonStringToMessage(line, &order); !status.ok()) {
      std::cerr << line << ": " << status.ToString() << std::endl;
      return 1;
    }
    for (auto call = calls.begin(); call != calls.end();) call = call->second->Done() ? calls.erase(call) : std::next(call);
    std::string op = Text(order, "op");
    if (op == "connect") {
      std::thread([order, to = channel(order)] {
        to->WaitForConnected(After(Number(order, "within")));
        Say(Event(Text(order, "channel"), "connected"));
      }).detach();
    } else if (op == "call") {
      auto& call = calls[Text(order, "id")];
      call = std::make_unique<Call>(order, channel(order));
      call->Start(order);
    } else if (op == "cancel") {
      if (auto call = calls.find(Text(order, "id")); call != calls.end()) call->second->Cancel();
    } else if (op == "close") {
      channels.erase(Text(order, "channel"));
    } else {
      std::cerr << "unknown order " << op << std::endl;
      return 1;
    }
  }
  std::cout.flush();
  _exit(0);  // without waiting for channels
}
