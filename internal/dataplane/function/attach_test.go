package function_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/sink/udsink"
	"github.com/levada-io/levada/internal/dataplane/source/udsource"
	"github.com/levada-io/levada/internal/flow"
)

// keeper runs a program that serves in a directory and restarts it whenever it ends, as a kubelet does with a container beside ours.
type keeper struct {
	dir     string
	command string
	env     []string
	role    string // NUMAFLOW_UD_CONTAINER_TYPE

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed when no program runs any more; nil before the first start
	stop bool
}

func newKeeper(t *testing.T, command string) *keeper {
	t.Helper()
	dir, err := os.MkdirTemp("", "attach") // not t.TempDir(), whose path may be too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{dir: dir, command: command}
	t.Cleanup(func() {
		k.halt()
		_ = os.RemoveAll(dir)
	})
	return k
}

// start keeps the program running until halt.
func (k *keeper) start(t *testing.T) {
	t.Helper()
	k.mu.Lock()
	k.stop, k.done = false, make(chan struct{})
	done := k.done
	k.mu.Unlock()
	go func() { // ends with halt
		defer close(done)
		for k.once() {
		}
	}()
}

func (k *keeper) once() (again bool) {
	cmd := exec.Command(k.command)
	cmd.Env = append(append(os.Environ(), k.env...), "LEVADA_SOCKET_DIR="+k.dir, "NUMAFLOW_POD=test-0", "NUMAFLOW_REPLICA=0", "NUMAFLOW_UD_CONTAINER_TYPE="+k.role)
	k.mu.Lock()
	if k.stop {
		k.mu.Unlock()
		return false
	}
	err := cmd.Start()
	k.cmd = cmd
	k.mu.Unlock()
	if err != nil {
		return false
	}
	_ = cmd.Wait()
	return true
}

// kill ends the program with SIGKILL.
func (k *keeper) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.cmd != nil {
		_ = k.cmd.Process.Kill()
	}
}

// halt ends the program for good.
func (k *keeper) halt() {
	k.mu.Lock()
	k.stop = true
	done := k.done
	if k.cmd != nil {
		_ = k.cmd.Process.Kill()
	}
	k.mu.Unlock()
	if done != nil {
		<-done
	}
}

// attached runs a function that is attached to a directory. What it logs is in the result.
func attached(t *testing.T, cfg function.Config) (*function.Function, *lines) {
	t.Helper()
	log := &lines{}
	cfg.Logger = log.logger()
	if cfg.Role == "" {
		cfg.Role = function.UDF
	}
	cfg.Name = t.Name()
	f := function.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-ended:
			if err != nil {
				t.Error("run:", err)
			}
		case <-time.After(time.Minute):
			t.Error("Run did not return after its context had ended")
		}
		t.Log(log.String())
	})
	return f, log
}

// The peer is killed again and again while messages are in it, and no message is lost, doubled or blamed for it.
func TestAttachedFunctionIsReconnectedWhenItsPeerRestarts(t *testing.T) {
	modes(t, func(t *testing.T, cfg function.Config) {
		k := newKeeper(t, example(t, "cat"))
		k.start(t)
		cfg.Attach = k.dir
		f, log := attached(t, cfg)
		for round := range 8 {
			in := messages(500, number)
			if round%2 == 1 {
				go k.kill()
			}
			out, err := f.Map(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			settle(t, f, in, out)
			wantEcho(t, in, out)
		}
		k.kill() // while it has nothing to do: that is noticed without a message
		eventually(t, func() bool { return strings.Contains(log.String(), "function disconnected, reconnecting") }, log.String)
		in := messages(10, number)
		out, err := f.Map(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		settle(t, f, in, out)
		wantEcho(t, in, out)
	})
}

// A message that ends the peer is found although there is no second instance to try it in, and so is one that hangs, although nobody here can kill the peer.
func TestAttachedFunctionIsolatesPoisonWithoutASecondInstance(t *testing.T) {
	modes(t, func(t *testing.T, cfg function.Config) {
		k := newKeeper(t, example(t, "poison"))
		k.start(t)
		cfg.Attach, cfg.Timeout = k.dir, 2*time.Second
		f, _ := attached(t, cfg)
		poison := map[int]deadletter.Reason{7: deadletter.Crash, 31: deadletter.Hang}
		in := messages(40, func(i int) string {
			switch poison[i] {
			case deadletter.Crash:
				return "crash"
			case deadletter.Hang:
				return "hang"
			}
			return number(i)
		})
		// Other messages go through the same peer all the time. None of them may be blamed.
		others, stop := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(others)
			for {
				select {
				case <-stop:
					return
				default:
				}
				in := messages(5, number)
				out, err := f.Map(t.Context(), in)
				if err != nil {
					t.Error(err)
					return
				}
				for i := range out {
					if out[i].Verdict == function.Broken {
						t.Errorf("an innocent message is blamed: %+v", out[i].Failure)
					}
				}
			}
		}()
		out, err := f.Map(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		settle(t, f, in, out)
		close(stop)
		<-others
		for i := range out {
			reason, bad := poison[i]
			if !bad {
				wantEcho(t, in[i:i+1], out[i:i+1])
				continue
			}
			failure := out[i].Failure
			if out[i].Verdict != function.Broken || failure.Reason != reason || failure.ConfirmedAlone != 2 {
				t.Errorf("message %d (%s): verdict %d, %+v", i, reason, out[i].Verdict, failure)
				continue
			}
			if reason == deadletter.Crash && !strings.Contains(failure.Error, "is not known, because another program started it") {
				t.Errorf("it claims to know how the peer exited: %s", failure.Error)
			}
		}
	})
}

// A socket that is removed and made again is that of another process: the connection there is goes on, and the next one finds the new socket.
func TestAttachedFunctionFindsASocketThatWasRecreated(t *testing.T) {
	k := newKeeper(t, example(t, "cat"))
	k.start(t)
	f, _ := attached(t, function.Config{Attach: k.dir})
	echo := func() {
		t.Helper()
		in := messages(100, number)
		out, err := f.Map(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		settle(t, f, in, out)
		wantEcho(t, in, out)
	}
	echo()
	files, err := filepath.Glob(k.dir + "/*")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	echo()
	k.kill()
	echo()
}

// A server that cannot be used, or that is not there, is one clear line, not an end and not a line for each attempt. The right one is used once it is there.
func TestAttachedFunctionSaysOnceWhatItWaitsFor(t *testing.T) {
	for name, c := range map[string]struct{ file, info, want string }{
		"nothing there":  {"", "", "there is no mapper-server-info"},
		"not whole":      {"mapper-server-info", `{"protocol":"uds"`, "there is no mapper-server-info"},
		"stale":          {"mapper-server-info", `{"protocol":"uds","language":"go","version":"v0.12.0"}U+005C__END__`, "there is no socket map.sock"},
		"old SDK":        {"mapper-server-info", `{"protocol":"uds","language":"go","version":"v0.8.1"}U+005C__END__`, "at least 0.9.0 is needed"},
		"new platform":   {"mapper-server-info", `{"protocol":"uds","language":"go","version":"v9.0.0","minimum_numaflow_version":"9.0.0"}U+005C__END__`, "needs Numaflow 9.0.0 or later"},
		"other protocol": {"mapper-server-info", `{"protocol":"tcp","language":"python","version":"0.9.0"}U+005C__END__`, "TCP endpoints"},
		"other kind":     {"sinker-server-info", `{"protocol":"uds"}U+005C__END__`, "it is a sinker"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newKeeper(t, example(t, "cat"))
			path := filepath.Join(k.dir, c.file)
			if c.file != "" {
				if err := os.WriteFile(path, []byte(c.info), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			f, log := attached(t, function.Config{Attach: k.dir})
			eventually(t, func() bool { return strings.Contains(log.String(), c.want) }, log.String)
			if !strings.Contains(log.String(), k.dir) {
				t.Errorf("the directory is not named:\n%s", log)
			}
			if c.file == "sinker-server-info" { // the right server replaces the others
				_ = os.Remove(path)
			}
			k.start(t) // there are several attempts until it is there
			in := messages(10, number)
			out, err := f.Map(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			wantEcho(t, in, out)
			if n := strings.Count(log.String(), c.want); n != 1 {
				t.Errorf("%d lines say what it waits for, want one:\n%s", n, log)
			}
		})
	}
}

// A user-defined sink and a source that are started elsewhere are killed and come back: the sink gets each message again that it may not have, the source
// is read and acknowledged on.
func TestAttachedSinkAndSourceAreReconnected(t *testing.T) {
	t.Run("sink", func(t *testing.T) {
		k := newKeeper(t, example(t, "log-sink"))
		k.role = string(function.UDSink)
		k.start(t)
		f, _ := attached(t, function.Config{Attach: k.dir, Role: function.UDSink})
		for range 3 {
			results, err := udsink.Sink{Function: f}.Write(t.Context(), &flow.Block{Messages: messages(50, number)})
			if err != nil || results != nil {
				t.Fatalf("%+v, %v", results, err)
			}
			k.kill()
		}
	})
	t.Run("source", func(t *testing.T) {
		path, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		k := newKeeper(t, path)
		k.env, k.role = []string{asFunction + "=source"}, string(function.UDSource)
		k.start(t)
		f, _ := attached(t, function.Config{Attach: k.dir, Role: function.UDSource})
		s := &udsource.Source{Function: f, Timeout: time.Second}
		for range 3 {
			b, err := s.Read(t.Context(), 1)
			for err != nil && t.Context().Err() == nil { // the one that was killed is not yet back
				b, err = s.Read(t.Context(), 1)
			}
			if err != nil || len(b.Messages) == 0 {
				t.Fatalf("%+v, %v", b, err)
			}
			k.kill()
		}
	})
}

// A message that hangs is found while others are answered all the time. Their answers hid it: nothing tells how long a single call takes where the announce
// file is not used.
func TestAttachedFunctionThatHangsIsFoundBesideOthersThatAreAnswered(t *testing.T) {
	modes(t, func(t *testing.T, cfg function.Config) {
		k := newKeeper(t, example(t, "poison"))
		k.start(t)
		cfg.Attach, cfg.Timeout = k.dir, 2*time.Second
		f, _ := attached(t, cfg)
		var others sync.WaitGroup
		ctx, stop := context.WithCancel(t.Context())
		others.Go(func() {
			for ctx.Err() == nil {
				_, _ = f.Map(ctx, messages(5, number))
				time.Sleep(5 * time.Millisecond)
			}
		})
		in := messages(3, func(i int) string { return []string{"a", "hang", "b"}[i] })
		limited, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := f.Map(limited, in)
		stop()
		others.Wait()
		if err != nil {
			t.Fatal(err)
		}
		if o := out[1]; o.Verdict != function.Suspect || o.Failure == nil || o.Failure.Reason != deadletter.Hang {
			t.Errorf("verdict %d, %+v", o.Verdict, o.Failure)
		}
	})
}
