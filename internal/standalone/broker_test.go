package standalone_test

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

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
	user := func(permissions string) []testnats.Option {
		return []testnats.Option{testnats.Settings("accounts { A { jetstream: enabled, users: [ { user: u, password: hushhush, permissions: {" + permissions + "} } ] } }"), testnats.Login("u:hushhush")}
	}
	for name, c := range map[string]struct {
		options []testnats.Option
		want    []string
	}{
		"user that may not write to a buffer": {user(`publish: { deny: ["levada_default_p_v_0"] }`), []string{"permission", `"levada_default_p_v_0"`}},
		"user that may not write the state":   {user(`publish: { deny: ["$KV.>"] }`), []string{"permission", "$KV.levada_default_p_STATE"}},
		"user that may not read the state":    {user(`publish: { deny: ["$JS.API.DIRECT.GET.>"] }`), []string{"permission", "$JS.API.DIRECT.GET"}},
		"user that gets no answers":           {user(`subscribe: { deny: ["_INBOX.>"] }`), []string{"permission", "_INBOX"}},
		"user that may not ask about streams": {user(`publish: { deny: ["$JS.API.STREAM.INFO.>"] }`), []string{"permission", "$JS.API.STREAM.INFO"}},
		"user that may not create consumers":  {user(`publish: { deny: ["$JS.API.CONSUMER.CREATE.>"] }`), []string{"permission", "$JS.API.CONSUMER.CREATE"}},
		"max_payload of 2 KB":                 {[]testnats.Option{testnats.Settings("max_payload: 2048")}, []string{"2048", "max_payload"}},
		"no JetStream":                        {[]testnats.Option{testnats.JetStream("off")}, []string{"no JetStream", "-js"}},
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

// TestAccountThatIsNotLevadasAloneIsOneError: limits that are reached, and streams of somebody else that take subjects of Levada's streams, are named with what to change. Other streams of the
// user's do not matter, and are left as they are.
func TestAccountThatIsNotLevadasAloneIsOneError(t *testing.T) {
	account := func(limits string) []testnats.Option {
		return []testnats.Option{testnats.Settings("accounts { A { jetstream {" + limits + "}, users: [ { user: u, password: hushhush } ] } }"), testnats.Login("u:hushhush")}
	}
	for name, c := range map[string]struct {
		options []testnats.Option
		stream  *jetstream.StreamConfig
		want    []string // empty: all is delivered
	}{
		"room for one stream":       {account("max_streams: 1"), nil, []string{"maximum number of streams", "raise max_streams", "levada_default_p_"}},
		"room for 1000 bytes":       {account("max_file: 1000"), nil, []string{"resource limits exceeded", "raise max_file"}},
		"streams need max_bytes":    {account("max_bytes_required: true"), nil, []string{"max bytes", "streams without max_bytes"}},
		"a stream of all subjects":  {nil, &jetstream.StreamConfig{Name: "ALL", Subjects: []string{"levada_default_p_v_0", "orders.>"}}, []string{"levada_default_p_v_0", "subjects overlap", "account of its own"}},
		"a stream of the same name": {nil, &jetstream.StreamConfig{Name: "levada_default_p_v_0", Subjects: []string{"orders.>"}, Metadata: map[string]string{"by": "hand"}}, []string{"levada_default_p_v_0"}},
		"a stream of the user's":    {nil, &jetstream.StreamConfig{Name: "orders", Subjects: []string{"orders.>"}, Metadata: map[string]string{"by": "hand"}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			broker := testnats.Server(t, c.options...)
			js := testnats.Connect(t, broker.DSN())
			if c.stream != nil {
				if _, err := js.CreateStream(t.Context(), *c.stream); err != nil {
					t.Fatal(err)
				}
				if _, err := js.Publish(t.Context(), "orders.1", []byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			s := newSite(t)
			s.write(t, "data.txt", numbered("line", 3)...)
			s.cfg.NATS = broker.DSN()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			err := s.runUntil(ctx, t, pipelineFile("p", "v"))
			if ctx.Err() != nil || (err == nil) != (len(c.want) == 0) {
				t.Errorf("it ends with %v\n%s", err, s.logs)
			}
			for _, want := range c.want {
				if err != nil && !strings.Contains(err.Error(), want) {
					t.Errorf("it does not say %q: %v", want, err)
				}
			}
			if c.stream == nil {
				return
			}
			after, err := js.Stream(t.Context(), c.stream.Name)
			if err != nil {
				t.Fatal(err)
			}
			if info := after.CachedInfo(); info.State.Msgs != 1 || info.Config.Metadata["by"] != c.stream.Metadata["by"] || !slices.Equal(info.Config.Subjects, c.stream.Subjects) {
				t.Errorf("the user's stream was changed: %+v", info)
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
