// Package pgnotify sends notifications with LISTEN and NOTIFY of Postgres. Each listener gets each notification. The Postgres job store sends the same
// notifications within its transactions, so that a notification comes exactly when its job is there.
//
// A listener needs a session of its own. Through a connection pooler that shares server connections between clients, such as PgBouncer in transaction
// mode, notifications would go astray: [New], [FromPool] and [Notifier.Listen] return [ErrPooler]. Lead pgnotify to the server directly, and all else
// through the pooler.
package pgnotify

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/internal/notifybus"
	"github.com/levada-io/levada/stream/internal/pooler"
)

// Channel is the notification channel.
const Channel = notifybus.Channel

// Encode makes the payload of a notification: "<stream> <job>", each escaped as in a query. It is never longer than Postgres allows:
// names that are too long give the empty payload, which says only that some job may be due.
func Encode(h stream.Notification) string { return notifybus.Encode(h) }

// Decode reads what Encode made.
func Decode(payload string) (stream.Notification, error) { return notifybus.Decode(payload) }

// ErrPooler says that the connection cannot listen.
var ErrPooler = errors.New("pgnotify: LISTEN does not work through a connection pooler in transaction mode (PgBouncer, pool_mode = transaction): " +
	"give pgnotify a connection string that leads to the server directly, or to a pool with pool_mode = session")

// Notifier is a [stream.Notifier] on a Postgres database.
type Notifier struct {
	life        notifybus.Lifecycle
	pool        *pgxpool.Pool
	ownsPool    bool
	log         *slog.Logger
	sendTimeout time.Duration
	checkEvery  time.Duration
	direct      atomic.Bool // the connections were checked, and can listen
}

var _ stream.Notifier = (*Notifier)(nil)

// Option changes a default.
type Option func(*Notifier)

// WithLogger sets where losses of the connection and payloads that are not notifications are reported. Default: slog.Default().
func WithLogger(l *slog.Logger) Option { return func(h *Notifier) { h.log = l } }

// WithSendTimeout sets how long Send tries. Default 5 s.
func WithSendTimeout(d time.Duration) Option { return func(h *Notifier) { h.sendTimeout = d } }

// WithCheckEvery sets how often a listener that receives nothing checks whether the server still answers. Default 30 s.
func WithCheckEvery(d time.Duration) Option { return func(h *Notifier) { h.checkEvery = d } }

// New takes a connection string or URL. A server that cannot be reached yet is not an error, since workers start without notifications, too;
// one that refuses us is, and a pooler through which nothing can listen ([ErrPooler]).
func New(ctx context.Context, dsn string, opts ...Option) (*Notifier, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, fmt.Errorf("pgnotify: %w", err)
	}
	cfg.MaxConns, cfg.MinConns, cfg.MinIdleConns = 4, 0, 0
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("pgnotify: %w", err)
	}
	h, err := FromPool(ctx, pool, opts...)
	if err != nil {
		pool.Close()
		return nil, err
	}
	h.ownsPool = true
	return h, nil
}

// FromPool uses the pool, which stays open at Close. Each Listen takes a connection out of it for good, so it does not count
// against the pool's size.
func FromPool(ctx context.Context, pool *pgxpool.Pool, opts ...Option) (*Notifier, error) {
	h := &Notifier{pool: pool, log: slog.Default(), sendTimeout: 5 * time.Second, checkEvery: 30 * time.Second}
	for _, o := range opts {
		o(h)
	}
	if h.sendTimeout <= 0 || h.checkEvery <= 0 {
		return nil, fmt.Errorf("pgnotify: the send timeout (%v) and the time between checks (%v) must be greater than 0", h.sendTimeout, h.checkEvery)
	}
	ctx, cancel := context.WithTimeout(ctx, h.sendTimeout)
	defer cancel()
	if err := pool.Ping(ctx); err != nil {
		if refused(err) {
			return nil, fmt.Errorf("pgnotify: %w", err)
		}
		h.log.Warn("notification database unreachable, retrying", "error", err)
		return h, nil
	}
	err := pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) error { return h.canListen(ctx, conn.Conn()) })
	if errors.Is(err, ErrPooler) {
		return nil, err
	}
	return h, nil // another error is met again when a listener connects
}

// canListen returns ErrPooler if the connection's session is shared. It asks until it knows.
func (h *Notifier) canListen(ctx context.Context, conn *pgx.Conn) error {
	if h.direct.Load() {
		return nil
	}
	shared, err := pooler.SharesSessions(ctx, conn)
	switch {
	case shared:
		return ErrPooler
	case err != nil:
		return fmt.Errorf("check the connection for a pooler: %w", err)
	}
	h.direct.Store(true)
	return nil
}

// refused reports whether the server does not want us, rather than being away: SQLSTATE classes 28 (authorization), 3D (no such
// database) and 42 (no privilege).
func refused(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && (strings.HasPrefix(said.Code, "28") || strings.HasPrefix(said.Code, "3D") || strings.HasPrefix(said.Code, "42"))
}

// Send notifies all listeners.
func (h *Notifier) Send(ctx context.Context, notification stream.Notification) error {
	ctx, leave, err := h.life.Sending(ctx, h.sendTimeout)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := h.pool.Exec(ctx, "SELECT pg_notify($1, $2)", Channel, Encode(notification)); err != nil {
		return fmt.Errorf("notification not sent: %w", err)
	}
	return nil
}

// Listen calls wake for each notification. After the connection was lost it calls wake with an empty notification once it listens again:
// something may have been missed.
func (h *Notifier) Listen(ctx context.Context, wake func(context.Context, stream.Notification)) error {
	inner, leave, err := h.life.Listening(ctx)
	if err != nil {
		return err
	}
	defer leave()
	todo := newBacklog()
	var reading sync.WaitGroup
	inner, fail := context.WithCancelCause(inner)
	defer fail(nil)
	reading.Go(func() { fail(h.receive(inner, todo)) })
	defer reading.Wait()
	for {
		notification, err := todo.take(inner)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return context.Cause(inner)
		}
		wake(inner, notification)
	}
}

// receive puts into todo what is notified, over as many connections as it takes, until ctx ends. It returns ErrPooler if none can listen.
func (h *Notifier) receive(ctx context.Context, todo *backlog) error {
	first := true
	return notifybus.Sessions{
		Listen: func(ctx context.Context, listening func()) error {
			missed := !first // by this listener, between the last session and this one
			first = false
			return h.session(ctx, func() {
				listening()
				if missed {
					todo.add(stream.Notification{})
				}
			}, todo)
		},
		Final: func(err error) error {
			if errors.Is(err, ErrPooler) {
				return err
			}
			return nil
		},
		Log: h.log, Lost: "notification connection lost, reconnecting",
	}.Run(ctx)
}

// session listens on one connection until it fails.
func (h *Notifier) session(ctx context.Context, listening func(), todo *backlog) error {
	conn, err := h.open(ctx)
	if err != nil {
		return err
	}
	defer func() {
		// Whatever it was that ended the session, this must not take long.
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = conn.Close(closing)
		_ = conn.PgConn().Conn().Close()
		select {
		case <-conn.PgConn().CleanupDone():
		case <-closing.Done():
		}
	}()
	listening()
	for {
		waiting, cancel := context.WithTimeout(ctx, h.checkEvery)
		n, err := conn.WaitForNotification(waiting)
		quiet := waiting.Err() != nil
		cancel()
		switch {
		case err == nil && n.Channel == Channel:
			notification, err := Decode(n.Payload)
			if err != nil {
				h.log.Warn("notification not decodable, dropped", "error", err)
				continue
			}
			todo.add(notification)
		case err == nil:
		case ctx.Err() != nil:
			return ctx.Err()
		case quiet && !conn.IsClosed():
			checking, cancel := context.WithTimeout(ctx, h.sendTimeout)
			err := conn.Ping(checking)
			cancel()
			if err != nil {
				return fmt.Errorf("no answer: %w", err)
			}
		default:
			return err
		}
	}
}

// open takes a connection out of the pool and listens.
func (h *Notifier) open(ctx context.Context) (*pgx.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, h.sendTimeout)
	defer cancel()
	pooled, err := h.pool.Acquire(ctx)
	if err != nil {
		return nil, err
	}
	conn := pooled.Hijack()
	// A listener is idle for as long as nothing happens, whatever is set for others. Servers before 14 do not know the setting.
	if err = h.canListen(ctx, conn); err == nil {
		_, err = conn.Exec(ctx, "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'")
	}
	if err == nil {
		_, err = conn.Exec(ctx, "LISTEN "+Channel)
	}
	if err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	return conn, nil
}

// Close ends all that still runs. Each Listen returns an error.
func (h *Notifier) Close() error {
	if h.life.Close() && h.ownsPool {
		h.pool.Close()
	}
	return nil
}

// maxBacklog is how many different notifications wait at most while wake does not return. Beyond it one empty notification stands for all.
const maxBacklog = 1024

// backlog holds notifications that were read while wake was busy: a connection that is not read would fill the server's notification queue.
type backlog struct {
	mu sync.Mutex
	// queue has what waits, the oldest first, and waiting the same for look-up: a notification that waits already is not added again.
	// Invariant: the same notifications in both, maxBacklog at most.
	queue   []stream.Notification
	waiting map[stream.Notification]bool
	ready   chan struct{} // holds a token when something was added since take last looked
}

func newBacklog() *backlog {
	return &backlog{waiting: map[stream.Notification]bool{}, ready: make(chan struct{}, 1)}
}

func (b *backlog) add(h stream.Notification) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.waiting[h] {
		return
	}
	if len(b.queue) >= maxBacklog {
		b.queue, b.waiting, h = nil, map[stream.Notification]bool{}, stream.Notification{}
	}
	b.queue = append(b.queue, h)
	b.waiting[h] = true
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// take waits for a notification.
func (b *backlog) take(ctx context.Context) (stream.Notification, error) {
	for {
		if h, ok := b.pop(); ok && ctx.Err() == nil {
			return h, nil
		}
		select {
		case <-ctx.Done():
			return stream.Notification{}, ctx.Err()
		case <-b.ready:
		}
	}
}

func (b *backlog) pop() (h stream.Notification, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.queue) == 0 {
		return h, false
	}
	h, b.queue = b.queue[0], b.queue[1:]
	delete(b.waiting, h)
	return h, true
}
