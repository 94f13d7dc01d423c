package standalone_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/standalone"
	"github.com/levada-io/levada/internal/testnats"
)

// TestNotReadyWhileTheAccountIsFull: a broker of the user's own that takes no more kept a pipeline from moving, and the probe said that it was ready.
func TestNotReadyWhileTheAccountIsFull(t *testing.T) {
	nats := testnats.Server(t, testnats.Settings(`
accounts { A { jetstream: { max_mem: 1M, max_file: 4M }, users: [ { user: u, password: p } ] } }`), testnats.Login("u:p"))
	s := newSite(t)
	s.write(t, "data.txt", numbered(strings.Repeat("x", 3000), 3000)...) // 9 MB
	s.cfg.NATS, s.cfg.Stdout, s.cfg.DrainTimeout = nats.DSN(), broken{}, 3*time.Second
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	started := make(chan *standalone.Running, 1)
	s.cfg.Started = func(r *standalone.Running) { started <- r }
	ended := make(chan error, 1)
	go func() { ended <- s.runUntil(ctx, t, intoLog) }()
	r := <-started
	get := func(path string) (int, string) {
		res, err := http.Get("http://" + r.Address + path) // of this process
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = res.Body.Close() }()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	text := ""
	for !strings.Contains(text, "full") {
		if ctx.Err() != nil {
			t.Fatalf("the account is full, and readyz says %q\n%s", text, s.logs)
		}
		<-time.After(50 * time.Millisecond)
		_, text = get("/readyz")
	}
	if !strings.Contains(text, "default-p-out-0") {
		t.Errorf("readyz does not name the buffer: %q", text)
	}
	if code, text := get("/livez"); code != http.StatusNoContent {
		t.Errorf("a restart would not help, and livez says %d %q", code, text)
	}
	cancel()
	<-ended
}
