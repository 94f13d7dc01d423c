// Package isbtest is the suite that every inter-step buffer service passes, against its real server: buffers (buffertest), state, leases, positions, dead letters,
// and what is found and removed without a run.
package isbtest

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/buffertest"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
)

// A Harness connects to one new, empty server.
type Harness struct {
	// Connect connects to the server once more, as a new process would. The connection outlives a Restart.
	Connect func(t *testing.T) isb.Service
	// Restart kills the server (SIGKILL or the like) and starts it again; nil if it cannot die.
	Restart func(t *testing.T)
	// Lose makes the server lose a stream and nothing else, as a damaged disk would.
	Lose func(t *testing.T, stream string)
	// ForgetIDs makes the server forget the ids that its streams stored, as time would; Duplicates is how long that takes. See buffertest.Harness.
	ForgetIDs  func(t *testing.T)
	Duplicates time.Duration
	// Cursors are what reads a stream at the moment, as far as the server knows it; nil if it does not.
	Cursors func(t *testing.T, stream string) []string
}

// Run runs the suite. makeHarness is called for each subtest: they share nothing.
func Run(t *testing.T, makeHarness func(t *testing.T) Harness) {
	t.Run("buffers", func(t *testing.T) {
		buffertest.Run(t, func(t *testing.T) buffertest.Harness { return buffers(t, makeHarness(t)) })
	})
	for name, test := range map[string]func(*testing.T, Harness){
		"a value is what was put last":                            values,
		"of many that compare and set one succeeds at a time":     counter,
		"a killed server loses no value":                          valuesSurvive,
		"a lease has one holder and is seen from everywhere":      leases,
		"leases of a pipeline and of its vertices exclude others": vacate,
		"positions of partitions are apart":                       positions,
		"a dead letter is kept once and whole":                    letters,
		"a list of dead letters goes on where it was":             letterPages,
		"dead letters go back to the buffer of their vertex":      replay,
		"pipelines whose names read the same share nothing":       apart,
		"processes that open a pipeline agree on its incarnation": incarnations,
		"a writer waits for the process that reads to create":     notCreated,
		"a stream that is lost is not created again":              lost,
		"an owner that was frozen neither saves nor removes":      frozenOwner,
		"one process and several take a buffer over in turns":     aloneAndShared,
		"what is there is listed, counted, dropped and removed":   inventory,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, makeHarness(t))
		})
	}
}

// buffers is a harness for buffertest through the seam.
func buffers(t *testing.T, h Harness) buffertest.Harness {
	settings := isb.Settings{Duplicates: h.Duplicates}
	b := buffertest.Harness{
		Open: func(t *testing.T) buffer.Driver {
			d, err := open(t, h, pipeline("buffers")).OpenPartition(ctx(t), "vertex", 0, settings)
			must(t, err)
			return d
		},
		Restart: h.Restart, ForgetIDs: h.ForgetIDs, Divide: func(_ *testing.T, n int) { settings.Shards = n },
	}
	if h.Cursors != nil {
		name, err := open(t, h, pipeline("buffers")).Stream(ctx(t), "vertex", 0)
		must(t, err)
		b.Cursors = func(t *testing.T) []string { return h.Cursors(t, name) }
	}
	return b
}

func pipeline(name string) naming.Owner {
	return naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: name}
}

// connect connects as a new process.
func connect(t *testing.T, h Harness) isb.Service {
	t.Helper()
	s := h.Connect(t)
	t.Cleanup(s.Close)
	return s
}

// open opens the store of an owner as a new process.
func open(t *testing.T, h Harness, owner naming.Owner) isb.Store {
	t.Helper()
	return openAt(t, connect(t, h), owner)
}

func openAt(t *testing.T, s isb.Service, owner naming.Owner) isb.Store {
	t.Helper()
	store, err := tryOpen(t, s, owner)
	must(t, err)
	return store
}

// tryOpen opens the store as a process does: a server that was just started, or a stream that another process is creating, may not answer yet. Requests have deadlines of their own.
func tryOpen(t *testing.T, s isb.Service, owner naming.Owner) (isb.Store, error) {
	return isb.Retry(ctx(t), s, slog.New(slog.DiscardHandler), "the store", func(context.Context) (isb.Store, error) {
		return s.Open(t.Context(), isb.Request{Owner: owner})
	})
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return c
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// is fails unless err is the given one.
func is(t *testing.T, what string, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("%s: the error is %v, want %v", what, err, want)
	}
}
