package pipelinecmd

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/filelock"
	"github.com/levada-io/levada/internal/manifest"
	"github.com/levada-io/levada/internal/processes"
	"github.com/levada-io/levada/internal/standalone"
)

// hostedFlag says that levada run has started this process, as JSON. It is not for people.
type hostedFlag struct {
	text string
	hosted
}

type hosted struct {
	standalone.Hosted
	// Label names the process in logs.
	Label string `json:"label"`
}

const hostedName = "hosted"

func (h *hostedFlag) register(flags *pflag.FlagSet) {
	flags.Var(h, hostedName, "what levada run says to a process that it starts")
	flags.Lookup(hostedName).Hidden = true
}

func (h *hostedFlag) given() bool { return h.text != "" }

// String implements pflag.Value.
func (h *hostedFlag) String() string { return h.text }

// Type implements pflag.Value.
func (h *hostedFlag) Type() string { return "JSON" }

// Set implements pflag.Value.
func (h *hostedFlag) Set(text string) error {
	h.text = text
	return json.Unmarshal([]byte(text), &h.hosted)
}

// functionsFor leaves out the --function flags for other pipelines of the run.
func functionsFor(flags []string, objects []manifest.Object) []string {
	return slices.DeleteFunc(slices.Clone(flags), func(flag string) bool {
		_, err := parseFunctions([]string{flag}, objects)
		return err != nil
	})
}

// countsEvery is how often a process reports its counters, endEvery how often it looks whether its source has ended.
const (
	countsEvery = 500 * time.Millisecond
	endEvery    = 25 * time.Millisecond
)

// runHosted runs the vertex as a child of levada run.
func (f *vertexFlags) runHosted(cmd *cobra.Command, args []string, log *slog.Logger) error {
	// A terminal interrupts the whole process group. The parent ends its children in order.
	signal.Reset(syscall.SIGINT)
	signal.Notify(make(chan os.Signal, 1), syscall.SIGINT) // it is not ignored, which functions would inherit
	gone := make(chan struct{})
	reports := processes.Attach(func() { close(gone) })
	err := f.runReporting(cmd, args, log.With("process", f.hosted.Label), reports, gone)
	if exit, ok := errors.AsType[commandline.ExitError](err); ok && exit.Err == nil || err == nil {
		return err
	}
	return commandline.Problems() // the parent says which
}

func (f *vertexFlags) runReporting(cmd *cobra.Command, args []string, log *slog.Logger, reports *processes.Reporter, gone <-chan struct{}) error {
	cfg, err := f.config(cmd, args, log)
	if err != nil {
		reports.Ended(nil, err)
		return err
	}
	cfg.Hosted, cfg.Dir = &f.hosted.Hosted, f.hosted.Dir
	cfg.Abort = either(cfg.Abort, gone)
	if file, ok := cfg.Stdout.(*os.File); ok {
		out, err := newTurns(file, filepath.Join(filepath.Dir(filepath.Dir(cfg.DataDir)), "stdout.lock"))
		if err != nil {
			reports.Ended(nil, err)
			return err
		}
		defer out.close()
		cfg.Stdout = out
	}
	limited, flush := commandline.Limited(log)
	cfg.Logger, cfg.Output = limited, f.printHosted(cmd.ErrOrStderr(), log)
	following, stop := context.WithCancel(context.WithoutCancel(cmd.Context()))
	defer stop()
	var running *standalone.Running
	result, err := runOneVertex(cmd.Context(), cfg, log, false, flush, func(r *standalone.Running) {
		running = r
		go report(following, r, reports) // ends with following
	})
	stop()
	if running != nil {
		reports.Counts(running.Pipelines[0].Counts()[0])
	}
	reports.Ended(result, err)
	return vertexExit(result, err, context.Cause(cmd.Context()))
}

// report sends what the parent cannot see, until ctx ends.
func report(ctx context.Context, r *standalone.Running, to *processes.Reporter) {
	to.Counts(r.Pipelines[0].Counts()[0])
	to.Started(r.Address)
	counts, end := time.NewTicker(countsEvery), time.NewTicker(endEvery)
	defer counts.Stop()
	defer end.Stop()
	v := r.Pipelines[0].Vertices()[0]
	ended := !v.IsSource()
	for {
		select {
		case <-ctx.Done():
			return
		case <-end.C:
			if !ended && v.Ended() {
				ended = true
				to.Counts(r.Pipelines[0].Counts()[0])
				to.InputEnded()
			}
		case <-counts.C:
			to.Counts(r.Pipelines[0].Stats(ctx)[0])
		}
	}
}

// printHosted passes on what functions print, with the name of the process.
func (f *vertexFlags) printHosted(stderr io.Writer, log *slog.Logger) func(pipeline, vertex string, role function.Role, line string) {
	print := printLine(stderr, f.jsonLog(log))
	return func(pipeline, _ string, role function.Role, line string) { print(pipeline, f.hosted.Label, role, line) }
}

// either is closed when one of two channels is.
func either(a, b <-chan struct{}) <-chan struct{} {
	c := make(chan struct{})
	go func() { // ends with the process
		select {
		case <-a:
		case <-b:
		}
		close(c)
	}()
	return c
}

// turns writes to the standard output that several processes share: a line of one is not torn by one of another.
type turns struct {
	out  *os.File
	mu   sync.Mutex
	lock *os.File
}

func newTurns(out *os.File, lock string) (*turns, error) {
	f, err := os.OpenFile(lock, os.O_RDWR|os.O_CREATE, 0o600)
	return &turns{out: out, lock: f}, err
}

// Write implements io.Writer.
func (t *turns) Write(p []byte) (n int, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if err := filelock.Hold(t.lock.Fd()); err != nil {
		return 0, err
	}
	n, err = t.out.Write(p)
	return n, errors.Join(err, filelock.Release(t.lock.Fd()))
}

func (t *turns) close() { _ = t.lock.Close() }
