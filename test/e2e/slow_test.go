package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/levada-io/levada/sdk"
)

// slowFunction says in the environment that this program is a function that takes so long for a message, and appends each message to the file callsFile.
const (
	slowFunction = "LEVADA_TEST_SLOW"
	callsFile    = "LEVADA_TEST_CALLS"
)

func init() {
	pause, err := time.ParseDuration(os.Getenv(slowFunction))
	if _, entering := os.LookupEnv("LEVADA_ENTER_NAMESPACE"); entering || err != nil {
		return
	}
	calls, err := os.OpenFile(os.Getenv(callsFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		os.Exit(1)
	}
	err = sdk.ServeMap(context.Background(), sdk.MapFunc(func(_ context.Context, m sdk.Message) ([]sdk.Result, error) {
		_, _ = fmt.Fprintf(calls, "%s\n", m.Value)
		time.Sleep(pause)
		return []sdk.Result{{Keys: m.Keys, Value: m.Value}}, nil
	}))
	if err != nil {
		os.Exit(1)
	}
	os.Exit(0)
}

const slowPipeline = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: slow}
spec:
  vertices:
    - name: in
      limits: {readBatchSize: 2000}
      source: {file: {path: in.txt}}
    - name: fn
      limits: {concurrency: 1}
      udf: {container: {command: [%q], env: [{name: LEVADA_TEST_SLOW, value: %s}, {name: LEVADA_TEST_CALLS, value: %q}]}}
    - name: out
      sink: {file: {path: out.txt}}
  edges:
    - {from: in, to: fn}
    - {from: fn, to: out}
`

const slowMonoVertex = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: MonoVertex
metadata: {name: slow}
spec:
  limits: {concurrency: 1}
  source: {file: {path: in.txt}}
  udf: {container: {command: [%q], env: [{name: LEVADA_TEST_SLOW, value: %s}, {name: LEVADA_TEST_CALLS, value: %q}]}}
  sink: {file: {path: out.txt}}
`

// TestSlowFunctionGoesOnWhereItWas has 2,000 messages in one block (a MonoVertex: 500 in one batch) before a function that takes 25 ms for one, one at a time. Results
// come out as they are made. After SIGTERM nothing is repeated, after SIGKILL no more than two seconds of work. It came out in lumps, and each start began from
// the start of the block.
func TestSlowFunctionGoesOnWhereItWas(t *testing.T) {
	for name, manifest := range map[string]string{"pipeline": slowPipeline, "monovertex": slowMonoVertex} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bin, err := programs()
			if err != nil {
				t.Fatal(err)
			}
			self, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			root := t.TempDir()
			e := &example{filepath.Join(root, name), "slow.yaml"}
			if err := os.Mkdir(e.dir, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(bin, filepath.Join(root, "bin")); err != nil {
				t.Fatal(err)
			}
			const messages, pause = 2000, 25 * time.Millisecond
			var in strings.Builder
			var want []string
			for i := range messages {
				fmt.Fprintln(&in, i)
				want = append(want, strconv.Itoa(i))
			}
			write := func(name, text string) {
				if err := os.WriteFile(filepath.Join(e.dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			calls := filepath.Join(e.dir, "calls.txt")
			write("in.txt", in.String())
			write(e.name, fmt.Sprintf(manifest, self, pause, calls))
			count := func(path string) int {
				b, _ := os.ReadFile(path)
				return strings.Count(string(b), "\n")
			}
			out := filepath.Join(e.dir, "out.txt")
			repeated := func() int {
				all := lines(e.read(t, "calls.txt"))
				slices.Sort(all)
				return len(all) - len(slices.Compact(all))
			}
			// life runs it until so many messages more came out, and sends it a signal.
			life := func(more int, signal syscall.Signal) {
				before, begun := count(out), time.Now()
				r := e.start(t, "--quiet")
				r.until(t, func() bool { return count(out) >= before+more })
				if took := time.Since(begun); took > 10*time.Second+3*time.Duration(more)*pause {
					t.Errorf("%d messages took %v to come out", more, took)
				}
				stopped := time.Now()
				if err := r.cmd.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
				<-r.ended
				r.over = true
				if took := time.Since(stopped); took > 5*time.Second {
					t.Errorf("it ended %v after %v", took, signal)
				}
			}
			life(20, syscall.SIGTERM)
			life(20, syscall.SIGTERM)
			if n := repeated(); n > 0 {
				t.Errorf("%d calls were repeated after SIGTERM", n)
			}
			if n, made := count(out), count(calls); name == "monovertex" && n != made { // of a pipeline it may be in the buffer of the sink
				t.Errorf("%d of %d messages that the function has done came out before the end", n, made)
			}
			life(120, syscall.SIGKILL)
			life(1, syscall.SIGTERM)
			if n, most := repeated(), int(2500*time.Millisecond/pause); n > most {
				t.Errorf("%d calls were repeated after SIGKILL, want at most %d", n, most)
			}
			write(e.name, fmt.Sprintf(manifest, self, "0s", calls))
			e.run(t, "--quiet")
			got := lines(e.read(t, "out.txt"))
			slices.Sort(got)
			slices.Sort(want)
			same(t, "out.txt", want, got)
		})
	}
}
