package broker

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// A stream whose file could not be written stays failed until its server is restarted, also when the disk has room again. So the broker restarts its server
// itself, under the connections that it has, which reconnect.

const (
	keepEvery = time.Second
	// restartAfter is how long the store must have failed: a server that recovers its streams is not healthy for a moment either.
	restartAfter = 2 * time.Second
)

// keep restarts the server when its store has failed and there is room, until ctx ends.
func (b *Broker) keep(ctx context.Context) {
	tick := time.NewTicker(keepEvery)
	defer tick.Stop()
	reserve := newReserve(b.cfg.Dir, b.cfg.Logger)
	var failed time.Time
	for {
		reserve.look(time.Now())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := b.Healthy(ctx)
		b.noteFailure(err != nil)
		switch {
		case err == nil:
			failed = time.Time{}
			b.failed.Store(false)
			continue
		case failed.IsZero():
			failed = time.Now()
			b.failed.Store(true)
			continue
		case time.Since(failed) < restartAfter || !b.room.forRestart():
			continue
		}
		b.warn("broker store failed, restarting the broker in place", err)
		old := b.server.Load()
		old.Shutdown()
		old.WaitForShutdown()
		s := b.again(ctx)
		if s == nil {
			return
		}
		b.server.Store(s)
		failed = time.Time{}
		b.failed.Store(false)
		b.say(slog.LevelInfo, "broker restarted")
	}
}

// again starts the server until that succeeds or ctx ends.
func (b *Broker) again(ctx context.Context) *server.Server {
	for {
		s, err := b.serve()
		if err == nil {
			return s
		}
		b.warn("broker does not start, retrying", err)
		b.noteFailure(true)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(2 * time.Second):
		}
	}
}

func (b *Broker) warn(what string, err error) { b.say(slog.LevelWarn, what, "error", err) }

func (b *Broker) say(level slog.Level, what string, attrs ...any) {
	if b.cfg.Logger != nil {
		b.cfg.Logger.Log(context.Background(), level, what, append([]any{"directory", b.cfg.Dir}, attrs...)...)
	}
}

// Room returns an error when the disk is nearly full, and while the store has failed. Writers then wait, so that there is room for what makes room: a restart of
// the store, the saved state, and the removal of what is done.
func (b *Broker) Room() error {
	if b.failed.Load() {
		return errStoreFailed
	}
	return b.room.check()
}

var errStoreFailed = errors.New("the store has failed and is restarted once the disk has room")

// room knows how much of the disk is free, as of a moment ago.
type room struct {
	dir string
	log *slog.Logger

	mu   sync.Mutex
	at   time.Time
	full bool
}

// ErrNoRoom means that the disk is nearly full.
var ErrNoRoom = errors.New("the disk of the data directory is nearly full")

// maxReserve is how much of a disk stays free; of a small one a quarter.
const maxReserve = 16 << 20

// forRestart reports whether the store can be opened again. That takes less than what writers have to leave free: the removal of what is done may be what waits for
// the restart, and nothing else would make room then.
func (r *room) forRestart() bool {
	free, total, ok := diskSpace(r.dir)
	return !ok || free >= min(maxReserve, total/4)/4
}

func (r *room) check() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.at) > 50*time.Millisecond {
		r.at = time.Now()
		free, total, ok := diskSpace(r.dir)
		full := ok && free < min(maxReserve, total/4)
		if full != r.full && r.log != nil {
			if full {
				r.log.Warn("disk nearly full, writes wait for room", "directory", r.dir, "free", free, "total", total)
			} else {
				r.log.Info("disk has room, writes go on", "directory", r.dir, "free", free)
			}
		}
		r.full = full
	}
	if r.full {
		return ErrNoRoom
	}
	return nil
}
