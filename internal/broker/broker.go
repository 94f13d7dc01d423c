// Package broker runs a NATS server with JetStream, in this process or as one of its own, with settings under which nothing that
// was acknowledged is lost.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/levada-io/levada/internal/filelock"
)

// Config of a broker. The zero value of a field is its default.
type Config struct {
	// Dir is where streams are stored. Required.
	Dir string
	// Listen is the address for clients, host:port; empty for a broker that only this process can reach.
	Listen string
	// Token is what clients must give to connect; empty for none. A broker that listens on an address which others reach, too, should have one.
	Token string
	// MaxPayload is the largest message in bytes. Default 1 MiB.
	MaxPayload int32
	// MaxMemory bounds streams in memory, in bytes. Default 64 MiB.
	MaxMemory int64
	// SyncInterval is how often what was acknowledged is written through to the disk. 0, the default, is before it is acknowledged: a power loss
	// then loses nothing. A longer interval loses up to that much time at a power loss; the death of the process alone never loses anything.
	SyncInterval time.Duration
	Logger       *slog.Logger
}

// Broker is a running server. It is restarted in place when its store has failed, see keep.
type Broker struct {
	cfg        Config
	opt        *server.Options
	server     atomic.Pointer[server.Server]
	room       room
	failed     atomic.Bool // the store does not work, and is restarted when the disk has room
	stop       context.CancelFunc
	kept       sync.WaitGroup
	stuckSince atomic.Int64 // since when the store has failed although there is room, in nanoseconds; 0 if it has not
}

// Start starts a broker and returns when it is ready. An error says what is wrong with the directory or the address.
func Start(cfg Config) (*Broker, error) {
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := removeUnfinished(cfg.Dir); err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	opt := &server.Options{
		ServerName: "levada", DontListen: cfg.Listen == "", NoSigs: true, NoLog: cfg.Logger == nil,
		JetStream: true, StoreDir: cfg.Dir, JetStreamMaxMemory: cfg.MaxMemory, JetStreamMaxStore: maxStore,
		MaxPayload: cfg.MaxPayload, MaxPending: 64 << 20, WriteDeadline: 10 * time.Second, PingInterval: 20 * time.Second,
		SyncInterval: cfg.SyncInterval, SyncAlways: cfg.SyncInterval == 0, Authorization: cfg.Token,
	}
	if opt.MaxPayload == 0 {
		opt.MaxPayload = 1 << 20
	}
	if opt.JetStreamMaxMemory == 0 {
		opt.JetStreamMaxMemory = 64 << 20
	}
	if cfg.SyncInterval == 0 {
		opt.SyncInterval = time.Minute // of what is not covered by SyncAlways
	}
	if cfg.Listen != "" {
		host, port, err := splitHostPort(cfg.Listen)
		if err != nil {
			return nil, err
		}
		opt.Host, opt.Port = host, port
	}
	b := &Broker{cfg: cfg, opt: opt}
	b.room.dir, b.room.log = cfg.Dir, cfg.Logger
	s, err := b.serve()
	if err != nil {
		return nil, err
	}
	b.server.Store(s)
	if s.Addr() != nil {
		if _, port, err := splitHostPort(s.Addr().String()); err == nil {
			opt.Port = port // it stays the same when the server is restarted
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	b.stop = stop
	b.kept.Go(func() { b.keep(ctx) })
	return b, nil
}

// serve starts a server, and returns when it is ready.
func (b *Broker) serve() (*server.Server, error) {
	s, err := server.NewServer(b.opt.Clone())
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	log := &logger{out: b.cfg.Logger}
	s.SetLoggerV2(log, false, false, false)
	go s.Start() // its owner is the server: Stop waits for it
	if !s.ReadyForConnections(30 * time.Second) {
		s.Shutdown()
		if e := log.lastError(); e != "" {
			return nil, fmt.Errorf("broker did not start in %s: %s", b.cfg.Dir, e)
		}
		return nil, fmt.Errorf("broker was not ready within 30 s in %s", b.cfg.Dir)
	}
	if !s.JetStreamEnabled() {
		s.Shutdown()
		return nil, fmt.Errorf("broker started without its store in %s: %s", b.cfg.Dir, log.lastError())
	}
	return s, nil
}

const maxStore = 1 << 40

// Connect connects to the broker without a network.
func (b *Broker) Connect(opts ...nats.Option) (*nats.Conn, error) {
	own := []nats.Option{nats.InProcessServer(b), nats.Name("levada")}
	if b.cfg.Token != "" {
		own = append(own, nats.Token(b.cfg.Token))
	}
	return nats.Connect("", append(own, opts...)...)
}

// InProcessConn connects to the server that runs now. It implements nats.InProcessConnProvider.
func (b *Broker) InProcessConn() (net.Conn, error) { return b.server.Load().InProcessConn() }

// URL is where clients reach the broker; empty when it does not listen.
func (b *Broker) URL() string {
	if s := b.server.Load(); s.Addr() != nil {
		return s.ClientURL()
	}
	return ""
}

// Healthy returns why the broker cannot be trusted to store more, or nil. It fails when the disk is full, for instance.
func (b *Broker) Healthy(context.Context) error {
	if h := b.server.Load().Healthz(&server.HealthzOptions{}); h.Status != "ok" {
		return fmt.Errorf("broker: %s", h.Error)
	}
	return nil
}

// Needs is how large the disk of a broker with so many streams of blocks must be, in bytes, beside what is pending. JetStream keeps a file of up to 8 MiB as long as
// one block in it is pending, and writes into another; a part of the disk stays free so that what is done can be removed.
func Needs(streams int) uint64 { return uint64(8+16*streams) << 20 }

// Disk is the size of the disk of the broker's directory in bytes; 0 if it is not known.
func (b *Broker) Disk() uint64 {
	_, total, _ := diskSpace(b.cfg.Dir)
	return total
}

// stuckAfter is how long the store may fail although the disk has room. Restarting the server in place takes seconds.
const stuckAfter = time.Minute

// Stuck returns an error if restarting the server in place does not help, so that only a restart of the process may. A full disk is no reason.
func (b *Broker) Stuck() error {
	since := b.stuckSince.Load()
	if since == 0 || time.Since(time.Unix(0, since)) < stuckAfter {
		return nil
	}
	return fmt.Errorf("the broker in this process has failed since %s, and restarting it in place does not help", time.Unix(0, since).UTC().Format(time.RFC3339))
}

// noteFailure notes whether the store has failed for another reason than the disk.
func (b *Broker) noteFailure(failed bool) {
	if !failed || b.room.check() != nil {
		b.stuckSince.Store(0)
		return
	}
	b.stuckSince.CompareAndSwap(0, time.Now().UnixNano())
}

// Stop stops the broker and waits for it.
func (b *Broker) Stop() {
	b.stop()
	b.kept.Wait()
	s := b.server.Load()
	s.Shutdown()
	s.WaitForShutdown()
}

// LockDir makes sure that one process uses the directory at a time. Release it after Stop.
func LockDir(dir string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := filelock.Lock(f.Fd()); err != nil {
		pid, _ := os.ReadFile(path)
		_ = f.Close()
		return nil, fmt.Errorf("%w: %s is used by process %s", ErrLocked, dir, strings.TrimSpace(string(pid)))
	}
	_ = f.Truncate(0)
	_, _ = fmt.Fprintf(f, "%d\n", os.Getpid())
	return func() { _ = f.Close() }, nil
}

// ErrLocked means that another process uses the data directory.
var ErrLocked = errors.New("data directory is in use")
