import com.google.gson.Gson;
import com.google.gson.JsonObject;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import io.grpc.netty.NettyChannelBuilder;
import java.io.BufferedReader;
import java.io.ByteArrayInputStream;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.io.UncheckedIOException;
import java.net.InetSocketAddress;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Executors;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;

/** A grpc-java client that does what lines on its input say; see client_test.go for the protocol. */
public final class Client {
  private static final Metadata.Key<String> ID = Metadata.Key.of("call-id", Metadata.ASCII_STRING_MARSHALLER);
  private static final Metadata.Key<String> ENDED = Metadata.Key.of("levada-stream-ended", Metadata.ASCII_STRING_MARSHALLER);
  private static final Gson GSON = new Gson();
  private static final Map<String, ManagedChannel> CHANNELS = new ConcurrentHashMap<>();
  private static final Map<String, ClientCall<byte[], byte[]>> CALLS = new ConcurrentHashMap<>();
  private static final ScheduledExecutorService TIMER = Executors.newSingleThreadScheduledExecutor();

  /** An order, with the names of the struct in client_test.go. */
  private static final class Order {
    String op;
    String channel;
    String target;
    String id;
    String path;
    long within;
    boolean unary;
    long deadline;
  }

  private static final class Bytes implements MethodDescriptor.Marshaller<byte[]> {
    @Override
    public InputStream stream(byte[] value) {
      return new ByteArrayInputStream(value);
    }

    @Override
    public byte[] parse(InputStream stream) {
      try {
        return stream.readAllBytes();
      } catch (IOException e) {
        throw new UncheckedIOException(e);
      }
    }
  }

  // System.nanoTime is CLOCK_MONOTONIC on Linux.
  private static long micros() {
    return System.nanoTime() / 1000;
  }

  private static JsonObject event(String id, String kind) {
    JsonObject event = new JsonObject();
    event.addProperty("at", micros());
    event.addProperty("id", id);
    event.addProperty("event", kind);
    return event;
  }

  private static void say(JsonObject event) {
    synchronized (System.out) {
      System.out.println(GSON.toJson(event));
      System.out.flush();
    }
  }

  private static ManagedChannel channel(Order order) {
    return CHANNELS.computeIfAbsent(order.channel, name -> {
      int colon = order.target.lastIndexOf(':');
      InetSocketAddress address = new InetSocketAddress(order.target.substring(0, colon), Integer.parseInt(order.target.substring(colon + 1)));
      return NettyChannelBuilder.forAddress(address).usePlaintext().proxyDetector(target -> null).build();
    });
  }

  private static void connect(Order order) {
    ManagedChannel channel = channel(order);
    AtomicBoolean once = new AtomicBoolean();
    Runnable connected = () -> {
      if (once.compareAndSet(false, true)) {
        say(event(order.channel, "connected"));
      }
    };
    TIMER.schedule(connected, order.within, TimeUnit.MILLISECONDS);
    watch(channel, connected);
  }

  private static void watch(ManagedChannel channel, Runnable connected) {
    ConnectivityState state = channel.getState(true);
    if (state == ConnectivityState.READY) {
      connected.run();
    } else if (state != ConnectivityState.SHUTDOWN) {
      channel.notifyWhenStateChanged(state, () -> watch(channel, connected));
    }
  }

  private static void call(Order order) {
    MethodDescriptor<byte[], byte[]> method = MethodDescriptor.<byte[], byte[]>newBuilder()
        .setType(order.unary ? MethodDescriptor.MethodType.UNARY : MethodDescriptor.MethodType.SERVER_STREAMING)
        .setFullMethodName(order.path.substring(1))
        .setRequestMarshaller(new Bytes())
        .setResponseMarshaller(new Bytes())
        .build();
    Metadata headers = new Metadata();
    headers.put(ID, order.id);
    ManagedChannel channel = channel(order);
    say(event(order.id, "started"));
    ClientCall<byte[], byte[]> call = channel.newCall(method, CallOptions.DEFAULT.withDeadlineAfter(order.deadline, TimeUnit.MILLISECONDS));
    CALLS.put(order.id, call);
    call.start(new Listener(order, call), headers);
    call.request(1);
    call.sendMessage("ask".getBytes(StandardCharsets.UTF_8));
    call.halfClose();
  }

  /** What a call's library reports: its methods are called one after the other. */
  private static final class Listener extends ClientCall.Listener<byte[]> {
    private final Order order;
    private final ClientCall<byte[], byte[]> call;
    private int messages;
    private String wrong = "";

    Listener(Order order, ClientCall<byte[], byte[]> call) {
      this.order = order;
      this.call = call;
    }

    @Override
    public void onMessage(byte[] message) {
      messages++;
      if (messages == 1 && !order.unary) {
        say(event(order.id, "message"));
      }
      String text = new String(message, StandardCharsets.UTF_8);
      if (wrong.isEmpty() && !text.equals(Integer.toString(messages))) {
        wrong = "message " + messages + " is \"" + text + "\"";
      }
      call.request(1);
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      CALLS.remove(order.id);
      JsonObject end = event(order.id, "end");
      String ended = trailers.get(ENDED);
      end.addProperty("code", status.getCode().value());
      end.addProperty("text", status.getDescription() == null ? "" : status.getDescription());
      end.addProperty("ended", ended == null ? "" : ended);
      end.addProperty("messages", messages);
      end.addProperty("wrong", wrong);
      say(end);
    }
  }

  public static void main(String[] args) throws IOException {
    BufferedReader lines = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
    for (String line = lines.readLine(); line != null; line = lines.readLine()) {
      Order order = GSON.fromJson(line, Order.class);
      switch (order.op) {
        case "connect" -> connect(order);
        case "call" -> call(order);
        case "cancel" -> {
          ClientCall<byte[], byte[]> call = CALLS.get(order.id);
          if (call != null) {
            call.cancel("cancelled", null);
          }
        }
        case "close" -> {
          ManagedChannel channel = CHANNELS.remove(order.channel);
          if (channel != null) {
            channel.shutdownNow();
          }
        }
        default -> throw new IOException("unknown order " + order.op);
      }
    }
    Runtime.getRuntime().halt(0); // without waiting for channels
  }
}
