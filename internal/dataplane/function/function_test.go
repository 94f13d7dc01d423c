package function_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/flow"
)

func TestMain(m *testing.M) {
	function.Enter()
	os.Exit(m.Run())
}

var built sync.Map // name of an example function -> *build

type build struct {
	once sync.Once
	path string
	err  error
}

var buildDir = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "functions") })

// example builds a program of examples/functions.
func example(t *testing.T, name string) string {
	t.Helper()
	v, _ := built.LoadOrStore(name, &build{})
	b := v.(*build)
	b.once.Do(func() {
		dir, err := buildDir()
		if err != nil {
			b.err = err
			return
		}
		b.path = filepath.Join(dir, name)
		if out, err := exec.Command("go", "build", "-o", b.path, "github.com/levada-io/levada/examples/functions/"+name).CombinedOutput(); err != nil {
			b.err = fmt.Errorf("%w: %s", err, out)
		}
	})
	if b.err != nil {
		t.Fatal(b.err)
	}
	return b.path
}

func run(t *testing.T, cfg function.Config) *function.Function {
	t.Helper()
	root, err := function.NewSocketRoot()
	if err != nil {
		t.Fatal(err)
	}
	cfg.SocketRoot = root
	if cfg.Role == "" {
		cfg.Role = function.UDF
	}
	cfg.Env = append(cfg.Env, "NUMAFLOW_POD=test-0", "NUMAFLOW_REPLICA=0")
	cfg.Name = t.Name()
	cfg.Output = func(line string) { t.Log(line) }
	for name, value := range function.Inherited(nil, cfg.User) {
		cfg.Env = append(cfg.Env, name+"="+value)
	}
	f := function.New(cfg)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Log("run:", err)
		}
		_ = os.RemoveAll(root)
	})
	return f
}

func messages(n int, value func(i int) string) []flow.Message {
	in := make([]flow.Message, n)
	for i := range in {
		in[i] = flow.Message{ID: fmt.Sprint("in/0/", i), Pos: uint64(i + 1), Value: []byte(value(i)), Keys: []string{"k"}, EventTime: int64(i) * 1e6, Headers: flow.AppendHeader(nil, "n", fmt.Sprint(i))}
	}
	return in
}

func number(i int) string { return fmt.Sprintf("message %d", i) }

// wantEcho checks that each outcome is its message.
func wantEcho(t *testing.T, in []flow.Message, out []function.Outcome) {
	t.Helper()
	for i := range in {
		o := out[i]
		if o.Verdict != function.Done || len(o.Results) != 1 || string(o.Results[0].Value) != string(in[i].Value) || o.Results[0].EventTime != in[i].EventTime || string(o.Results[0].Headers) != string(in[i].Headers) {
			t.Fatalf("message %d: %+v", i, o)
		}
	}
}

// modes are the two ways to call the same function.
func modes(t *testing.T, test func(t *testing.T, cfg function.Config)) {
	t.Run("blocks", func(t *testing.T) { test(t, function.Config{}) })
	t.Run("contract", func(t *testing.T) { test(t, function.Config{NoBlocks: true}) })
}

func TestMap(t *testing.T) {
	modes(t, func(t *testing.T, cfg function.Config) {
		cfg.Command = []string{example(t, "cat")}
		f := run(t, cfg)
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				for range 20 {
					in := messages(700, number)
					out, err := f.Map(t.Context(), in)
					if err != nil {
						t.Error(err)
						return
					}
					wantEcho(t, in, out)
				}
			})
		}
		group.Wait()
		if f.Blocks() == cfg.NoBlocks {
			t.Errorf("blocks in use: %v", f.Blocks())
		}
		if f.Strays() != 0 {
			t.Errorf("%d stray answers", f.Strays())
		}
	})
}

// TestKilledFunction kills the process again and again while messages are in it.
func TestKilledFunction(t *testing.T) {
	modes(t, func(t *testing.T, cfg function.Config) {
		cfg.Command = []string{example(t, "cat")}
		f := run(t, cfg)
		stop := make(chan struct{})
		var killer sync.WaitGroup
		kills := 0
		killer.Go(func() {
			tick := time.NewTicker(30 * time.Millisecond)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
					if pid := f.PID(); pid != 0 && syscall.Kill(pid, syscall.SIGKILL) == nil {
						kills++
					}
				}
			}
		})
		for range 60 {
			in := messages(500, number)
			out, err := f.Map(t.Context(), in)
			if err != nil {
				t.Fatal(err)
			}
			settle(t, f, in, out)
			wantEcho(t, in, out)
		}
		close(stop)
		killer.Wait()
		t.Logf("%d kills", kills)
		if kills == 0 {
			t.Error("nothing was killed")
		}
	})
}

// settle has suspects isolated and puts their outcomes into out.
func settle(t *testing.T, f *function.Function, in []flow.Message, out []function.Outcome) (suspects int) {
	t.Helper()
	var which []int
	var group []flow.Message
	for i := range out {
		if out[i].Verdict == function.Suspect {
			which, group = append(which, i), append(group, in[i])
		}
	}
	if len(group) == 0 {
		return 0
	}
	more, err := f.Isolate(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	for k, i := range which {
		out[i] = more[k]
	}
	return len(group)
}

// TestPoison mixes messages into a batch that kill, panic and hang, and wants exactly those to be found, with evidence.
func TestPoison(t *testing.T) {
	modes(t, func(t *testing.T, cfg function.Config) {
		cfg.Command = []string{example(t, "poison")}
		cfg.Timeout = 700 * time.Millisecond
		var deaths sync.Map
		cfg.Died = func(reason string) { n, _ := deaths.LoadOrStore(reason, new(int)); *n.(*int)++ }
		f := run(t, cfg)
		poison := map[int]deadletter.Reason{137: deadletter.Crash, 301: deadletter.Panic, 499: deadletter.Hang}
		in := messages(500, func(i int) string {
			switch poison[i] {
			case deadletter.Crash:
				return "crash"
			case deadletter.Panic:
				return "panic"
			case deadletter.Hang:
				return "hang"
			}
			return number(i)
		})
		out, err := f.Map(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d suspects", settle(t, f, in, out))
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
			t.Logf("%s: %s; signal %q; stack of %d bytes", failure.Reason, failure.Error, failure.Signal, len(failure.Stack))
			if reason == deadletter.Panic && !strings.Contains(failure.Stack, "main.") {
				t.Errorf("no stack of the panic: %q", failure.Stack)
			}
			if reason == deadletter.Crash && failure.Signal != "killed" {
				t.Errorf("signal %q", failure.Signal)
			}
		}
		deaths.Range(func(k, v any) bool { t.Logf("deaths by %v: %d", k, *v.(*int)); return true })
	})
}

func TestCannotStart(t *testing.T) {
	for name, c := range map[string]struct {
		command []string
		want    string
	}{
		"missing":    {[]string{"./no-such-program"}, "no such file"},
		"exits":      {[]string{"/bin/sh", "-c", "echo sorry, no licence >&2; exit 3"}, "exit code 3. Its standard error ends with:\nsorry, no licence"},
		"never":      {[]string{"/bin/sleep", "60"}, "did not write mapper-server-info"},
		"wrong kind": {[]string{"EXAMPLE:log-sink"}, "it is a sinker"},
	} {
		t.Run(name, func(t *testing.T) {
			if kind, ok := strings.CutPrefix(c.command[0], "EXAMPLE:"); ok {
				c.command = []string{example(t, kind)}
			}
			f := run(t, function.Config{Command: c.command, ReadyTimeout: 500 * time.Millisecond})
			err := f.Ready(t.Context())
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want it to say %q", err, c.want)
			}
		})
	}
}
