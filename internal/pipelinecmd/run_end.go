package pipelinecmd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/internal/standalone"
)

// runEnd is how a run ended.
// Invariant: a line claims that everything is delivered only with a result, which standalone.Run counts after the last block is acknowledged.
type runEnd struct {
	result *standalone.Result // nil if nothing had been opened
	err    error              // what failed; nil also if a signal came before the start was complete
	cause  error              // why its context ended; nil if it did not
	took   time.Duration
	data   string // the data directory
	broker bool   // is not in the data directory
	// allowDeadLetters makes dead letters no reason for an exit code.
	allowDeadLetters bool
}

// exitCode is 0 when everything that was read is delivered, and no input with an end is left unread; also after a signal.
func (o *runEnd) exitCode() int {
	signal, signaled := errors.AsType[commandline.SignalError](o.cause)
	kept, dead := o.result == nil && o.cause != nil, false // without a cause there was nothing to run
	if o.result != nil {
		kept = o.result.Cut != "" || !o.result.Started
		for i := range o.result.Pipelines {
			p := &o.result.Pipelines[i]
			kept = kept || p.Kept() || p.Lost > 0
			dead = dead || p.DeadLettered > 0
		}
	}
	switch {
	case o.err != nil:
		return commandline.ExitProblems
	case kept && signaled:
		return signal.ExitCode()
	case kept:
		return commandline.ExitProblems
	case dead && !o.allowDeadLetters:
		return commandline.ExitDeadLetters
	}
	return 0
}

// lines say what is where, a line for each pipeline. They claim that everything is delivered only where that is proven.
func (o *runEnd) lines() []string {
	if o.result == nil || !o.result.Started {
		if o.cause == nil {
			return nil
		}
		return []string{o.after("stopped before the start was complete") + fmt.Sprintf(": %v; nothing was read, and nothing is lost", o.cause)}
	}
	var lines []string
	if cut := o.result.Cut; cut != "" {
		lines = append(lines, o.after("cut short")+": "+cut+"; what is not acknowledged comes again at the next start")
	}
	for i := range o.result.Pipelines {
		lines = append(lines, o.line(&o.result.Pipelines[i]))
	}
	return lines
}

// after says what happened, and when.
func (o *runEnd) after(what string) string {
	return fmt.Sprintf("%s after %v", what, o.took.Round(time.Millisecond))
}

// line says of a pipeline how it ended, how many messages it moved, and where those are that it did not deliver.
func (o *runEnd) line(p *standalone.PipelineResult) string {
	what := "stopped"
	switch {
	case p.Paused:
		return fmt.Sprintf("%s %s/%s: paused by its manifest, did not run", p.Kind, p.Namespace, p.Name)
	case p.Finished:
		what = "finished"
	case o.err != nil:
		what = "failed"
	}
	line := fmt.Sprintf("%s %s/%s: %s: %s", p.Kind, p.Namespace, p.Name, o.after(what), o.counts(p))
	switch {
	case p.Finished:
		line += "; nothing is left in buffers"
	case p.Kept():
		line += "; " + o.kept(p)
	case p.Lost > 0:
	default:
		line += "; nothing is left in buffers or in flight"
	}
	if p.Lost > 0 {
		line += fmt.Sprintf("; lost: %s that were in the memory of the broker, which has restarted (bufferConfig storage: 1)", humanize.Comma(p.Lost))
	}
	return line
}

// counts has what was read and delivered, and the rest only if there is any.
func (o *runEnd) counts(p *standalone.PipelineResult) string {
	parts := []string{fmt.Sprintf("read %s, delivered %s", humanize.Comma(p.Read), humanize.Comma(p.Delivered))}
	if p.DeadLettered > 0 {
		parts = append(parts, fmt.Sprintf("dead-lettered %s (%s)", humanize.Comma(p.DeadLettered), o.deadLettersCommand()))
	}
	if p.Duplicates > 0 {
		parts = append(parts, fmt.Sprintf("dropped %s duplicates", humanize.Comma(p.Duplicates)))
	}
	if p.Dropped > 0 {
		parts = append(parts, fmt.Sprintf("dropped %s as the manifest or a function asks", humanize.Comma(p.Dropped)))
	}
	return strings.Join(parts, ", ")
}

// kept says where undelivered messages are.
func (o *runEnd) kept(p *standalone.PipelineResult) string {
	var where []string
	if p.Buffered > 0 {
		in := humanize.Comma(p.Buffered) + " in buffers"
		if p.InMemory > 0 {
			in += fmt.Sprintf(" (%s of them in the memory of the broker, whose restart loses them)", humanize.Comma(min(p.InMemory, p.Buffered)))
		}
		where = append(where, in)
	}
	if p.InFlight > 0 {
		where = append(where, humanize.Comma(p.InFlight)+" not acknowledged to the source")
	}
	var parts []string
	if len(where) > 0 {
		parts = append(parts, "kept: "+strings.Join(where, ", "))
	}
	if len(p.Unread) > 0 {
		parts = append(parts, "not read to the end: "+strings.Join(p.Unread, ", "))
	}
	at := o.data
	if _, err := os.Stat(o.data); err != nil && !o.broker {
		return strings.Join(parts, "; ") + "; the data directory " + o.data + " was removed while the run used it, and the messages are lost with it"
	}
	if o.broker {
		at += " and at the broker"
	}
	if o.err != nil {
		return strings.Join(parts, "; ") + "; state is in " + at
	}
	return strings.Join(parts, "; ") + "; state is in " + at + ", the same command goes on"
}

func (o *runEnd) deadLettersCommand() string { return "levada deadletters list --data " + o.data }

// log writes the same as lines, for machines.
func (o *runEnd) log(log *slog.Logger, code int) {
	level, result := slog.LevelInfo, "success"
	if code != 0 {
		level, result = slog.LevelWarn, "failure"
	}
	common := []any{"event.action", "run-ended", "event.outcome", result, "event.duration", o.took.Nanoseconds(), "process.exit_code", code}
	ctx := context.Background()
	if o.result == nil || !o.result.Started {
		for _, line := range o.lines() {
			log.Log(ctx, level, line, common...)
		}
		return
	}
	lines := o.lines()
	if o.result.Cut != "" {
		log.Log(ctx, slog.LevelWarn, lines[0], common...)
		lines = lines[1:]
	}
	for i, line := range lines {
		p := &o.result.Pipelines[i]
		log.Log(ctx, level, line, append(common[:len(common):len(common)], "namespace", p.Namespace, "pipeline", p.Name, "finished", p.Finished,
			"read", p.Read, "delivered", p.Delivered, "deadLetters", p.DeadLettered, "duplicates", p.Duplicates, "dropped", p.Dropped,
			"inBuffers", p.Buffered, "inFlight", p.InFlight, "inBrokerMemory", p.InMemory, "lost", p.Lost)...)
	}
}
