// Package builtinsink has the sinks that Levada brings along, equivalents of the sample sinks of Numaflow. The package catalogue names them.
package builtinsink

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/flow/metadata"
)

// judge is a sink: it says of each message what is printed and what becomes of it. It is called by one goroutine at a time.
type judge func(m *flow.Message, lines []byte) ([]byte, sink.Result)

// printer is a sink that prints, one Write for each block. A block that is written again is printed again.
type printer struct {
	opt   Options
	judge judge

	mu    sync.Mutex
	lines []byte
}

// Options say what a sink runs for. The zero value of each field is allowed.
type Options struct {
	Env map[string]string
	// Vertex is the name of the vertex, for logs and where a sample wants a name.
	Vertex string
	// Logger gets what goes wrong. Default: nothing is logged.
	Logger *slog.Logger
	// Stdout gets what the sink prints, whole lines, one Write for each block of messages. Default: io.Discard. It has to be
	// safe for concurrent use if other programs write to it.
	Stdout io.Writer
}

func printing(opt Options, j judge) (sink.Writer, error) {
	if opt.Stdout == nil {
		opt.Stdout = io.Discard
	}
	return &printer{opt: opt, judge: j}, nil
}

// Write implements sink.Writer.
func (p *printer) Write(ctx context.Context, b *flow.Block) ([]sink.Result, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lines = p.lines[:0]
	results, plain := make([]sink.Result, len(b.Messages)), true
	for i := range b.Messages {
		p.lines, results[i] = p.judge(&b.Messages[i], p.lines)
		plain = plain && results[i].Status == sink.Delivered
	}
	if len(p.lines) > 0 {
		if _, err := p.opt.Stdout.Write(p.lines); err != nil {
			return nil, fmt.Errorf("print: %w", err)
		}
	}
	if plain {
		return nil, nil
	}
	return results, nil
}

// Close implements sink.Writer.
func (p *printer) Close(context.Context) error { return nil }

// The words before a payload are what Numaflow's tests and users search for.

// Log prints each payload.
func Log(opt Options) (sink.Writer, error) {
	return printing(opt, func(m *flow.Message, lines []byte) ([]byte, sink.Result) {
		return fmt.Appendf(lines, "User Defined Sink: %s\n", flow.Printable(m.Value)), sink.Result{}
	})
}

// Metadata prints the user metadata of each message.
func Metadata(opt Options) (sink.Writer, error) {
	return printing(opt, func(m *flow.Message, lines []byte) ([]byte, sink.Result) {
		user, err := metadata.User(m.Metadata)
		if err != nil {
			return lines, brokenAt(deadletter.Error, err.Error())
		}
		lines = append(lines, "User Metadata:"...)
		for _, group := range user.Names() {
			for _, key := range slices.Sorted(maps.Keys(user[group])) {
				lines = fmt.Appendf(lines, " %s/%s=%s", flow.Printable([]byte(group)), flow.Printable([]byte(key)), flow.Printable(user.Get(group, key)))
			}
		}
		return append(lines, '\n'), sink.Result{}
	})
}

// Fallback turns each message down, for the fallback sink, and prints it.
func Fallback(opt Options) (sink.Writer, error) {
	return printing(opt, func(m *flow.Message, lines []byte) ([]byte, sink.Result) {
		return fmt.Appendf(lines, "Primary sink under maintenance, to the fallback: %s\n", flow.Printable(m.Value)), sink.Result{Status: sink.Fallback}
	})
}

// OnSuccess takes each message, prints it, and gives another message to the on-success sink.
func OnSuccess(opt Options) (sink.Writer, error) {
	return printing(opt, func(m *flow.Message, lines []byte) ([]byte, sink.Result) {
		also := *m
		also.Value = []byte("on-success-message")
		return fmt.Appendf(lines, "Delivered, and to the on-success sink: %s\n", flow.Printable(m.Value)), sink.Result{Status: sink.OnSuccess, OnSuccess: &also}
	})
}

// All takes about half of the messages, which go to the on-success sink as well, and turns the others down for the fallback sink.
func All(opt Options) (sink.Writer, error) {
	return printing(opt, func(m *flow.Message, lines []byte) ([]byte, sink.Result) {
		h := fnv.New32a() // not a coin: a message that is written again goes the same way
		_, _ = h.Write([]byte(cmp.Or(m.ID, strconv.FormatUint(m.Pos, 10))))
		if sum := h.Sum32(); (sum^sum>>16)&1 == 0 {
			return fmt.Appendf(lines, "Turned down, to the fallback: %s\n", flow.Printable(m.Value)), sink.Result{Status: sink.Fallback}
		}
		return fmt.Appendf(lines, "Delivered, and to the on-success sink: %s\n", flow.Printable(m.Value)), sink.Result{Status: sink.OnSuccess}
	})
}

// Failing fails each message, for the retry strategy.
func Failing(opt Options) (sink.Writer, error) {
	return printing(opt, func(m *flow.Message, lines []byte) ([]byte, sink.Result) {
		return lines, sink.Result{Status: sink.Failed, Error: "sink-failure fails every message, this one is " + m.ID}
	})
}

// Panicking breaks on each message.
func Panicking(opt Options) (sink.Writer, error) {
	return printing(opt, func(_ *flow.Message, lines []byte) ([]byte, sink.Result) {
		return lines, brokenAt(deadletter.Panic, "sink-panic breaks on every message")
	})
}

func brokenAt(reason deadletter.Reason, text string) sink.Result {
	return sink.Result{Status: sink.Broken, Error: text, Failure: &deadletter.Failure{Reason: reason, Error: text, Attempts: 1}}
}

// tally is what redis-sink keeps in place of a Redis hash: how often each payload came. It is bounded: a payload that is new when it is full is
// printed without a number.
type tally struct {
	hash   string
	counts map[string]int
	size   int

	window int // how many messages make a check of the order; 0: none
	seen   int
	latest int64
	mixed  bool
}

const (
	maxPayloads  = 100_000
	maxTallySize = 64 << 20
)

// Redis is a stand-in without Redis: it counts each payload under SINK_HASH_KEY and prints the count. With CHECK_ORDER and MESSAGE_COUNT it also prints
// whether that many messages came in the order of their event times.
func Redis(opt Options) (sink.Writer, error) {
	t := &tally{hash: cmp.Or(opt.Env["SINK_HASH_KEY"], opt.Vertex), counts: map[string]int{}}
	if check, _ := strconv.ParseBool(opt.Env["CHECK_ORDER"]); check {
		n, err := strconv.ParseUint(opt.Env["MESSAGE_COUNT"], 10, 31)
		if err != nil || n == 0 {
			return nil, fmt.Errorf("CHECK_ORDER is set and MESSAGE_COUNT is %q; give how many messages make one check", opt.Env["MESSAGE_COUNT"])
		}
		t.window = int(n)
	}
	if opt.Logger != nil {
		opt.Logger.Info("redis-sink is a stand-in: it counts and prints, and writes to no Redis", "vertex", opt.Vertex, "hash", t.hash)
	}
	return printing(opt, func(m *flow.Message, lines []byte) ([]byte, sink.Result) {
		if t.window > 0 {
			lines = t.order(m, lines)
		}
		return t.add(string(m.Value), lines), sink.Result{}
	})
}

func (t *tally) order(m *flow.Message, lines []byte) []byte {
	t.mixed = t.mixed || t.seen > 0 && m.EventTime < t.latest
	t.latest = m.EventTime
	if t.seen++; t.seen < t.window {
		return lines
	}
	verdict := "ordered"
	if t.mixed {
		verdict = "not ordered"
	}
	t.seen, t.mixed = 0, false
	return t.add(verdict, lines)
}

func (t *tally) add(payload string, lines []byte) []byte {
	n, known := t.counts[payload]
	if !known && (len(t.counts) >= maxPayloads || t.size+len(payload) > maxTallySize) {
		return fmt.Appendf(lines, "%s: %s\n", t.hash, flow.Printable([]byte(payload)))
	}
	if !known {
		t.size += len(payload)
	}
	t.counts[payload] = n + 1
	return fmt.Appendf(lines, "%s: %s = %d\n", t.hash, flow.Printable([]byte(payload)), n+1)
}

var _ sink.Writer = (*printer)(nil)
