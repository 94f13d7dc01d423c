package pgnotify

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/internal/testserver"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/streamtest"
)

func quiet() Option { return WithLogger(slog.New(slog.DiscardHandler)) }

func TestConformance(t *testing.T) {
	server := testserver.PostgresServer(t)
	hows := []testserver.How{testserver.Fast, testserver.Killed, testserver.Immediate}
	stops := 0
	for name, cut := range map[string]func(*testing.T, *streamtest.BadNet){
		"Terminated": func(t *testing.T, _ *streamtest.BadNet) {
			exec(t, server.DSN(), "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'")
		},
		"Reset": func(_ *testing.T, n *streamtest.BadNet) { n.Open().Reset() },
	} {
		t.Run(name, func(t *testing.T) {
			streamtest.RunNotifier(t, func(t *testing.T) streamtest.NotifierUnderTest {
				u, err := url.Parse(server.DSN())
				if err != nil {
					t.Fatal(err)
				}
				network := streamtest.NewBadNet(t, u.Host)
				u.Host = network.Addr()
				return streamtest.NotifierUnderTest{
					Open: func(t *testing.T) stream.Notifier {
						h, err := New(t.Context(), u.String(), WithSendTimeout(2*time.Second), WithCheckEvery(2*time.Second), quiet())
						if err != nil {
							t.Fatal(err)
						}
						return h
					},
					Broadcast: true, SendLimit: 2 * time.Second,
					Stop:    func(*testing.T) { server.Stop(hows[stops%len(hows)]); stops++ },
					Start:   func(*testing.T) { server.Start() },
					Freeze:  func(*testing.T) { server.Freeze() },
					Thaw:    func(*testing.T) { server.Thaw() },
					Cut:     func(t *testing.T) { cut(t, network) },
					Garbage: func(t *testing.T, text string) { exec(t, server.DSN(), "SELECT pg_notify($1, $2)", Channel, text) },
				}
			})
		})
	}
}

func exec(t *testing.T, dsn, statement string, args ...any) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	if _, err := c.Exec(t.Context(), statement, args...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// listen runs Listen until the end of the test, and returns once it listens.
func listen(t *testing.T, h *Notifier, dsn string) <-chan stream.Notification {
	t.Helper()
	woken := make(chan stream.Notification, 10_000)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- h.Listen(ctx, func(_ context.Context, h stream.Notification) { woken <- h }) }()
	t.Cleanup(func() { cancel(); <-ended; _ = h.Close() })
	awaitListeners(t, dsn, 1)
	return woken
}

// awaitListeners waits until so many sessions listen and are idle.
func awaitListeners(t *testing.T, dsn string, want int) {
	t.Helper()
	c, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		var n int
		err := c.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND state = 'idle' AND query = 'LISTEN `+Channel+`'`).Scan(&n)
		if err != nil {
			t.Fatal(err)
		}
		if n == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions listen, want %d", n, want)
		}
	}
}

func expect(t *testing.T, woken <-chan stream.Notification, want stream.Notification) {
	t.Helper()
	select {
	case got := <-woken:
		if got != want {
			t.Errorf("woken with %q, want %q", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("not woken with %q within 30 s", want)
	}
}

func TestEmptyNotificationAfterTheConnectionWasLost(t *testing.T) {
	dsn := testserver.Postgres(t)
	h, err := New(t.Context(), dsn, quiet())
	if err != nil {
		t.Fatal(err)
	}
	woken := listen(t, h, dsn)
	exec(t, dsn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	expect(t, woken, stream.Notification{})
	notification := stream.Notification{Stream: "users", Job: "after"}
	if err := h.Send(t.Context(), notification); err != nil {
		t.Fatal(err)
	}
	expect(t, woken, notification)
}

// The job store sends its notification within the transaction that makes the job.
func TestNotificationOfATransaction(t *testing.T) {
	dsn := testserver.Postgres(t)
	pool, err := pgxpool.New(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	h, err := FromPool(t.Context(), pool, quiet())
	if err != nil {
		t.Fatal(err)
	}
	woken := listen(t, h, dsn)
	for _, commit := range []bool{false, true} {
		tx, err := pool.Begin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		notification := stream.Notification{Stream: "users", Job: fmt.Sprintf("commit %v", commit)}
		if _, err := tx.Exec(t.Context(), "SELECT pg_notify($1, $2)", Channel, Encode(notification)); err != nil {
			t.Fatal(err)
		}
		if commit {
			err = tx.Commit(t.Context())
		} else {
			err = tx.Rollback(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	expect(t, woken, stream.Notification{Stream: "users", Job: "commit true"}) // and not the one that was rolled back
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if err := pool.Ping(t.Context()); err != nil {
		t.Errorf("Close closed a pool that is not its own: %v", err)
	}
}

// Postgres refuses longer notifications, and with them the transaction.
func TestLongestPayload(t *testing.T) {
	dsn := testserver.Postgres(t)
	for length := 7990; length < 8010; length++ {
		payload := Encode(stream.Notification{Stream: strings.Repeat("s", 4000), Job: strings.Repeat("j", length-4001)})
		if (payload == "") != (length > 7999) {
			t.Errorf("the payload of %d bytes became one of %d", length, len(payload))
		}
		exec(t, dsn, "SELECT pg_notify($1, $2)", Channel, payload)
	}
}

func TestIdleSessionTimeoutDoesNotEndListeners(t *testing.T) {
	dsn := testserver.Postgres(t)
	exec(t, dsn, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET idle_session_timeout = 200', current_database()); END $$`)
	h, err := New(t.Context(), dsn, quiet())
	if err != nil {
		t.Fatal(err)
	}
	woken := listen(t, h, dsn)
	// Another idle session ends, so the setting works, and ours was idle for longer.
	other, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	waiting, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if _, err := other.WaitForNotification(waiting); err == nil || waiting.Err() != nil {
		t.Fatalf("the session without our setting did not end: %v", err)
	}
	notification := stream.Notification{Stream: "users", Job: "1"}
	if err := h.Send(t.Context(), notification); err != nil {
		t.Fatal(err)
	}
	expect(t, woken, notification) // and not an empty one, as after a new connection
}

func TestBacklogIsBounded(t *testing.T) {
	b := newBacklog()
	for i := range 10 * maxBacklog {
		b.add(stream.Notification{Stream: "users", Job: fmt.Sprint(i)})
		b.add(stream.Notification{Stream: "users", Job: fmt.Sprint(i)})
		if len(b.queue) > maxBacklog || len(b.queue) != len(b.waiting) {
			t.Fatalf("%d notifications wait, %d of them different, and %d may", len(b.queue), len(b.waiting), maxBacklog)
		}
	}
	first, err := b.take(t.Context())
	if err != nil || first != (stream.Notification{}) {
		t.Errorf("after an overflow the first notification is %q (error %v), want an empty one", first, err)
	}
	var last stream.Notification
	for {
		h, ok := b.pop()
		if !ok {
			break
		}
		last = h
	}
	if want := fmt.Sprint(10*maxBacklog - 1); last.Job != want {
		t.Errorf("the last notification is %q, want %q", last.Job, want)
	}
	ended, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if h, err := b.take(ended); err == nil {
		t.Errorf("an empty backlog gave %q", h)
	}
}

func TestNewRefuses(t *testing.T) {
	dsn := testserver.Postgres(t)
	for name, c := range map[string]struct {
		dsn  string
		opts []Option
	}{
		"no DSN":      {"postgres://%%", nil},
		"no database": {dsn[:strings.LastIndex(dsn, "/")] + "/nowhere?sslmode=disable", nil},
		"no user":     {strings.Replace(dsn, "postgres@", "nobody@", 1), nil},
		"no timeout":  {dsn, []Option{WithSendTimeout(0)}},
	} {
		h, err := New(t.Context(), c.dsn, append(c.opts, quiet())...)
		if err == nil {
			_ = h.Close()
			t.Errorf("%s: New returned no error", name)
		} else if !strings.HasPrefix(err.Error(), "pgnotify: ") {
			t.Errorf("%s: error %q", name, err)
		}
	}
}
