package standalone_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/standalone"
	"github.com/levada-io/levada/internal/testnats"
)

const noPublish = `
accounts { A { jetstream: enabled, users: [
  { user: u, password: hushhush, permissions: { publish: { deny: ["$JS.API.STREAM.CREATE.>"] } } }
] } }`

// TestBrokerThatCannotBeUsedIsOneError: a broker that takes tiny messages made levada panic, one without JetStream kept it silent for 45 s, and a user without
// permissions indefinitely.
func TestBrokerThatCannotBeUsedIsOneError(t *testing.T) {
	for name, c := range map[string]struct {
		options []testnats.Option
		want    []string
	}{
		"max_payload of 2 KB": {[]testnats.Option{testnats.Settings("max_payload: 2048")}, []string{"2048", "max_payload"}},
		"no JetStream":        {[]testnats.Option{testnats.JetStream("off")}, []string{"no JetStream", "-js"}},
		"account without JetStream": {[]testnats.Option{
			testnats.Settings("accounts { A { users: [ { user: u, password: hushhush } ] } }"), testnats.Login("u:hushhush"),
		}, []string{"account"}},
		"user that may not create streams": {[]testnats.Option{testnats.Settings(noPublish), testnats.Login("u:hushhush")}, []string{"permission", "$JS.API.STREAM.CREATE"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := testnats.Server(t, c.options...)
			s := newSite(t)
			s.write(t, "data.txt", numbered("line", 3)...)
			s.cfg.NATS = broker.DSN()
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := s.runUntil(ctx, t, pipelineFile("p", "v"))
			if err == nil || ctx.Err() != nil {
				t.Fatalf("after %v: %v", time.Since(began), err)
			}
			address := broker.DSN()[strings.LastIndexByte(broker.DSN(), '@')+1:]
			for _, want := range append(c.want, strings.TrimPrefix(address, "nats://")) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("it does not say %q: %v", want, err)
				}
			}
			if strings.Contains(err.Error(), "hushhush") {
				t.Errorf("the password is in it: %v", err)
			}
			if took := time.Since(began); took > 25*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

// TestBrokerThatComesBackDuringTheStartIsWaitedFor kills the broker while levada starts.
func TestBrokerThatComesBackDuringTheStartIsWaitedFor(t *testing.T) {
	broker := testnats.Server(t)
	s := newSite(t)
	s.write(t, "data.txt", numbered("line", 500)...)
	s.cfg.NATS = broker.DSN()
	for _, wait := range []time.Duration{0, 20 * time.Millisecond, 100 * time.Millisecond} {
		ended := make(chan error, 1)
		go func() { ended <- s.runUntil(t.Context(), t, pipelineFile("p", "v")) }()
		<-time.After(wait) // any moment of the start will do
		broker.Kill()
		broker.Start()
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("killed after %v: %v", wait, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("killed after %v: it has not ended in 30 s", wait)
		}
	}
}

const inMemory = `
---
apiVersion: numaflow.numaproj.io/v1alpha1
kind: InterStepBufferService
metadata: {name: default}
spec:
  jetstream:
    version: latest
    bufferConfig: |
      stream:
        storage: 1
`

// TestStorageInMemoryOfOurOwnBrokerIsInFiles stops a run in the middle whose buffers should be in memory, as tuning guides recommend: everything was lost, and the next run
// said that all was delivered.
func TestStorageInMemoryOfOurOwnBrokerIsInFiles(t *testing.T) {
	s := newSite(t)
	lines := numbered("line", 20000)
	s.write(t, "data.txt", lines...)
	ctx, cancel := context.WithCancel(t.Context())
	var durability string
	s.cfg.Started = func(r *standalone.Running) { durability = r.Durability; cancel() }
	s.cfg.DrainTimeout = 5 * time.Second // the file must be closed before the next run in this process
	_ = s.runUntil(ctx, t, pipelineFile("p", "v")+inMemory)
	if !strings.Contains(s.logs.String(), "using files") || !strings.Contains(durability, "power loss") {
		t.Errorf("durability %q; log: %s", durability, s.logs)
	}
	s.cfg.Started, s.cfg.DrainTimeout = nil, 10*time.Second
	s.must(t, pipelineFile("p", "v")+inMemory)
	if got := s.lines(t, "out.txt"); len(got) != len(lines) {
		t.Errorf("%d lines of %d", len(got), len(lines))
	}
}
