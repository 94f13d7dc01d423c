package connect

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/spf13/pflag"

	"github.com/levada-io/levada/internal/commandline"
	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/natsnotify"
	"github.com/levada-io/levada/stream/pgnotify"
	"github.com/levada-io/levada/stream/rabbitnotify"
)

// NotifierFlags say what wakes workers.
type NotifierFlags struct{ URL string }

// Register adds the flag.
func (f *NotifierFlags) Register(flags *pflag.FlagSet) {
	flags.StringVar(&f.URL, "notifier", "auto", "what wakes workers: none, notify (Postgres), an amqp:// or a nats:// URL; auto is notify with Postgres and none with SQLite")
}

// Check refuses what Open would refuse, before anything has happened.
func (f *NotifierFlags) Check(d *Database) error {
	scheme, _, ok := strings.Cut(f.URL, "://")
	switch {
	case f.URL == "notify" && d.Postgres == nil:
		return commandline.Usagef("--notifier notify needs a Postgres store: with SQLite use none, an amqp:// or a nats:// URL")
	case f.URL == "", f.URL == "none", f.URL == "auto", f.URL == "notify":
		return nil
	case ok && slices.Contains([]string{"amqp", "amqps", "nats", "tls", "ws", "wss"}, scheme):
		return nil
	}
	return commandline.Usagef("--notifier: expected none, notify, an amqp:// or a nats:// URL, not %q", commandline.Printable(scheme))
}

// Open returns nil notifications if there are none.
func (f *NotifierFlags) Open(ctx context.Context, d *Database, log *slog.Logger) (h stream.Notifier, closeAll func(), err error) {
	if err := f.Check(d); err != nil {
		return nil, nil, err
	}
	switch {
	case f.URL == "none", f.URL == "auto" && d.Postgres == nil, f.URL == "":
		return nil, func() {}, nil
	case f.URL == "auto", f.URL == "notify":
		h, err = pgnotify.FromPool(ctx, d.Postgres.Pool(), pgnotify.WithLogger(log))
		if err != nil {
			return nil, nil, fmt.Errorf("--notifier: %w", err)
		}
		return h, func() { _ = h.Close() }, nil
	case strings.HasPrefix(f.URL, "amqp"):
		h, err = rabbitnotify.New(ctx, f.URL, rabbitnotify.WithLogger(log))
		if err != nil {
			return nil, nil, fmt.Errorf("--notifier: %w", err)
		}
		return h, func() { _ = h.Close() }, nil
	}
	return f.openNATS(ctx, log)
}

func (f *NotifierFlags) openNATS(ctx context.Context, log *slog.Logger) (h stream.Notifier, closeAll func(), err error) {
	conn, err := nats.Connect(f.URL, nats.Name("levada stream"), nats.MaxReconnects(-1), nats.RetryOnFailedConnect(true))
	if err != nil {
		return nil, nil, fmt.Errorf("--notifier: %w", err)
	}
	n, err := natsnotify.New(ctx, conn, natsnotify.WithLogger(log))
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("--notifier: %w", err)
	}
	return n, func() { _ = n.Close(); conn.Close() }, nil
}

// Send wakes workers for jobs that have become due. The Postgres store has told them itself, and failing costs only the time of a poll.
func (f *NotifierFlags) Send(ctx context.Context, d *Database, stderr io.Writer, jobs ...stream.Job) error {
	if f.URL == "auto" || f.URL == "notify" {
		return nil
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	h, closeAll, err := f.Open(ctx, d, log)
	if err != nil || h == nil {
		return err
	}
	defer closeAll()
	for _, job := range jobs {
		if err := h.Send(ctx, stream.Notification{Stream: job.Stream, Job: job.ID}); err != nil {
			fmt.Fprintf(stderr, "levada: no notification was sent, so a worker finds the job with its next poll: %v\n", err)
			return nil
		}
	}
	return nil
}
