package function_test

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/source/udsource"
	"github.com/levada-io/levada/sdk"
)

// The functions of these tests are this program, run with asFunction in its environment.
const asFunction = "LEVADA_TEST_FUNCTION"

func init() {
	name := os.Getenv(asFunction)
	if _, entering := os.LookupEnv("LEVADA_ENTER_NAMESPACE"); entering || name == "" {
		return
	}
	serve := map[string]func() error{
		// queue works through its messages one by one, as a function with a lock does.
		"queue": func() error {
			_ = os.Unsetenv("LEVADA_ANNOUNCE_FILE") // as with other SDKs: how long a call is in user code is not known
			var turn sync.Mutex
			return sdk.ServeMap(context.Background(), sdk.MapFunc(func(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
				turn.Lock()
				defer turn.Unlock()
				time.Sleep(10 * time.Millisecond)
				return []sdk.Result{{Value: m.Value}}, nil
			}))
		},
		// sleep takes as long for a message as its value says.
		"sleep": func() error {
			return sdk.ServeMap(context.Background(), sdk.MapFunc(func(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
				d, err := time.ParseDuration(string(m.Value))
				time.Sleep(d)
				return []sdk.Result{{Value: m.Value}}, err
			}))
		},
		"go-stream":       func() error { return serveGoStream(os.Getenv("LEVADA_SOCKET_DIR")) },
		"go-stream-fixed": func() error { return serveGoStream("/var/run/numaflow") },
		"whoami": func() error {
			return sdk.ServeMap(context.Background(), sdk.MapFunc(func(context.Context, sdk.Message) ([]sdk.Result, error) {
				groups, err := os.Getgroups()
				return []sdk.Result{{Value: fmt.Appendf(nil, "%d:%d %v", os.Getuid(), os.Getgid(), groups)}}, err
			}))
		},
		"source": func() error { return sdk.ServeSource(context.Background(), &stuckSource{}) },
	}
	if err := serve[name](); err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

// stuckSource has one message, hangs when that is acknowledged, and then has nothing, at once. Pending is how often it was asked.
type stuckSource struct{ reads atomic.Int64 }

func (s *stuckSource) Read(context.Context, int) ([]sdk.Record, error) {
	if s.reads.Add(1) > 1 {
		return nil, nil
	}
	return []sdk.Record{{Offset: sdk.Offset{Value: []byte("1")}, Value: []byte("1")}}, nil
}

func (s *stuckSource) Ack(context.Context, []sdk.Offset) error                   { select {} }
func (s *stuckSource) Nack(context.Context, []sdk.Offset, sdk.NackOptions) error { return nil }
func (s *stuckSource) Pending(context.Context) (int64, error)                    { return s.reads.Load(), nil }

func myself(t *testing.T, name string, cfg function.Config) *function.Function {
	t.Helper()
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Command == nil {
		cfg.Command = []string{path}
	}
	cfg.Env = []string{asFunction + "=" + name, "LEVADA_TEST_PATH=" + path}
	return run(t, cfg)
}

// TestQueueIsNoHang: the last message waits longer than the timeout allows one message to take, but only behind the others.
func TestQueueIsNoHang(t *testing.T) {
	var died atomic.Int64
	f := myself(t, "queue", function.Config{NoBlocks: true, Timeout: 500 * time.Millisecond, Died: func(string) { died.Add(1) }})
	in := messages(150, number)
	out, err := f.Map(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	wantEcho(t, in, out)
	if died.Load() > 0 {
		t.Error("it was taken for one that hangs")
	}
}

// TestSourceHangsInAck: the process is ended as for any call that hangs, and the source goes on.
func TestSourceHangsInAck(t *testing.T) {
	s := &udsource.Source{Function: myself(t, "source", function.Config{Role: function.UDSource, Timeout: 300 * time.Millisecond}), Timeout: time.Second}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for range 2 {
		b, err := s.Read(ctx, 1)
		for err != nil && ctx.Err() == nil { // the process that ended is not yet replaced
			b, err = s.Read(ctx, 1)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Ack(ctx, b); err == nil || ctx.Err() != nil {
			t.Fatalf("acknowledged: %v", err)
		}
	}
}

// TestSourceWithNothing: one that answers at once that it has nothing is not asked in a busy loop.
func TestSourceWithNothing(t *testing.T) {
	s := &udsource.Source{Function: myself(t, "source", function.Config{Role: function.UDSource}), Timeout: time.Second}
	if _, err := s.Read(t.Context(), 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	asked := make(chan int64, 1)
	time.AfterFunc(900*time.Millisecond, func() {
		n, _ := s.Pending(t.Context())
		asked <- n
	})
	if b, err := s.Read(ctx, 1); err == nil {
		t.Fatalf("read %+v", b)
	}
	if n := <-asked; n < 5 || n > 200 {
		t.Errorf("asked %d times in a second", n)
	}
}

// TestLauncher: the function is the child of a shell, which dies before it.
func TestLauncher(t *testing.T) {
	const command = `"$LEVADA_TEST_PATH" & wait`
	f := myself(t, "queue", function.Config{Command: []string{"/bin/sh", "-c", command}, Output: func(string) {}})
	for range 2 {
		in := messages(3, number)
		out, err := f.Map(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		settle(t, f, in, out)
		wantEcho(t, in, out)
		shell := f.PID()
		if err := syscall.Kill(shell, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); f.PID() == shell || f.PID() == 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the death of process " + strconv.Itoa(shell) + " is not noticed")
			}
		}
	}
}
