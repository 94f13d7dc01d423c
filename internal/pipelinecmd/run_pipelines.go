package pipelinecmd

import (
	"context"
	"log/slog"
	"time"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/processes"
	"github.com/levada-io/levada/internal/standalone"
)

// pipelineRun is one run of levada run, from the start of its pipelines to the last line.
type pipelineRun struct {
	cfg    standalone.Config
	record manifestRecord // written once the start is complete, so that a start that fails claims no data directory
	view   *view
	log    *slog.Logger
	// processes, if not nil, says that the vertices are processes of their own.
	processes *processes.Config

	started bool          // cfg.Started was called; read after standalone.Run has returned
	shown   chan struct{} // closed when the view has shown the last counts; only if started
}

// run runs the pipelines until they end or ctx does, and writes into out how they ended. SIGHUP reopens files until the last line is printed.
func (r *pipelineRun) run(ctx context.Context, out *runEnd, terminal bool, flush func()) {
	begun := time.Now()
	running, cancel := context.WithCancel(ctx)
	defer cancel()
	// The view goes on while messages in flight are finished.
	viewing, stopViewing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopViewing()
	hup := &hangups{}
	r.shown = make(chan struct{})
	started := func(what reopener, s *shown) {
		hup.started(what)
		r.begin(viewing, s, time.Since(begun))
	}
	ended := func(result *standalone.Result) { out.result = result }
	defer hup.watch(running, r.log, terminal)()
	if r.processes != nil {
		out.err = r.runProcesses(running, started, ended)
	} else {
		r.cfg.Started = func(p *standalone.Running) { started(p, shownOf(p)) }
		r.cfg.Ended = ended
		out.err = standalone.Run(running, r.cfg)
	}
	if ctx.Err() != nil {
		out.cause = context.Cause(ctx)
	}
	cancel()
	stopViewing()
	if r.started && (out.result == nil || out.result.Cut == "") {
		<-r.shown // a run that was cut short does not wait: its view may still ask for counters
	}
	flush()
	out.took = time.Since(begun)
	if out.result == nil && out.cause != nil {
		out.err = nil // the start was given up: what failed of it is that
	}
}

// begin records the manifests and shows the run from here on. took is how long the start took.
func (r *pipelineRun) begin(viewing context.Context, p *shown, took time.Duration) {
	r.started = true
	if err := r.record.save(r.cfg.DataDir); err != nil {
		r.log.Warn("record of the manifests is not written to the data directory", "event.action", "data-directory", "error.message", err.Error())
	}
	r.view.start(p, r.cfg.DataDir, took)
	go func() { // ends with viewing; run waits for shown
		defer close(r.shown)
		r.view.follow(viewing, p)
	}()
}

// exit shows the end. The error is what failed, or carries the exit code.
func (r *pipelineRun) exit(out *runEnd) error {
	code := out.exitCode()
	r.view.end(out, code)
	if out.err != nil {
		return out.err
	}
	if code != 0 {
		return commandline.ExitError{Code: code}
	}
	return nil
}
