package natslink_test

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/levada-io/levada/internal/dataplane/natslink"
	"github.com/levada-io/levada/internal/testnats"
)

// syncBuffer is a log that can be read while it is written.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// A user without the permission to subscribe to advisories works without them. Were that refusal remembered, it would be named as the reason of each later timeout.
func TestRefusedAdvisoriesAreNoReason(t *testing.T) {
	s := testnats.Server(t, testnats.Login("lark:song"),
		testnats.Settings(`authorization { users: [ { user: lark, password: song, permissions: { publish: ["$JS.API.>"], subscribe: ["_INBOX.>"] } } ] }`))
	log := &syncBuffer{}
	l, err := natslink.Dial(t.Context(), s.DSN(), slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Conn.Close()
	logged := func(subject string) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !strings.Contains(log.String(), subject); {
			if err := l.Conn.Flush(); err != nil || time.Now().After(end) {
				t.Fatalf("no refusal of %s is logged: %v\n%s", subject, err, log)
			}
		}
	}
	if _, err := l.Conn.Subscribe(natslink.Advisories+"STREAM.QUORUM_LOST.>", func(*nats.Msg) {}); err != nil {
		t.Fatal(err)
	}
	logged(natslink.Advisories)
	if err := l.Refused(); err != nil {
		t.Errorf("it is remembered: %v", err)
	}
	if err := l.Conn.Publish("elsewhere", nil); err != nil {
		t.Fatal(err)
	}
	logged("elsewhere")
	if err := l.Refused(); err == nil || !strings.Contains(err.Error(), "elsewhere") {
		t.Errorf("another refusal is remembered as %v", err)
	}
}
