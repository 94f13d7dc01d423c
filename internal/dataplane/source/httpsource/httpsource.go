// Package httpsource takes messages by POST /vertices/{vertex}, and answers 200 when each is safe.
//
// The sender keeps the message until then: any other answer, or none, asks it to send the message again under the same X-Numaflow-Id, by which
// a repetition is recognised and counted once. Without that header each request is a message of its own.
//
//	200 safe   400 malformed   401 wrong token   408 sent too slowly   409 this id is in flight   413 too large   429 too many in flight
//	500 the pipeline could not take it   503 the source is closing
//
// A sender costs what it has sent, not what it announces: memory is taken as the payload arrives, a payload must arrive at MinRate, and one client has
// at most a part of the connections and of the memory for payloads that are not complete.
package httpsource

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/flow"
)

// Config of a source. The zero value of a field is its default.
type Config struct {
	// Vertex is the last element of the path that takes messages. Required.
	Vertex string
	// HTTPS and HTTP are the addresses to listen on, host:port. One of them at least is required.
	HTTPS, HTTP string
	// TLS is how HTTPS is served. Default: a certificate of our own making, which says nothing of who we are.
	TLS *tls.Config
	// Token is what senders must show as "Authorization: Bearer TOKEN". Default: nothing.
	Token string
	// MaxBody is the largest payload in bytes. Default 4 MiB.
	MaxBody int64
	// MaxInFlight is how many messages may wait for their answer. Default 5000. Above it the answer is 429.
	MaxInFlight int
	// MaxBytes is how much their payloads may have together. Default 256 MiB, or MaxBody if that is more. Payloads that are not complete have half of
	// that besides, of which a client has at most half.
	MaxBytes int64
	// MinRate is how many bytes a second of a payload must arrive, measured over RateWindow, which is also how long a sender may be silent. Below that the
	// answer is 408. Default 512 bytes and 10 seconds. The answer to a message may take any time.
	MinRate    int64
	RateWindow time.Duration
	// MaxConnections is how many connections there may be, MaxClientConnections how many of one client address. Default 8192 and 2048. Above that the
	// one that is idle for longest is closed, or the new one if none is.
	MaxConnections, MaxClientConnections int
	// Logger gets what the HTTP server has to say of clients, as of failed TLS handshakes. Default: nothing is logged.
	Logger *slog.Logger
}

// headerTimeout is how long a sender may take for the TLS handshake, and for the head of a request.
const headerTimeout = 10 * time.Second

func (c Config) withDefaults() Config {
	c.MaxBody = cmp.Or(c.MaxBody, 4<<20)
	c.MaxInFlight = cmp.Or(c.MaxInFlight, 5000)
	c.MinRate = cmp.Or(c.MinRate, 512)
	c.RateWindow = cmp.Or(c.RateWindow, 10*time.Second)
	c.MaxBytes = max(cmp.Or(c.MaxBytes, 256<<20), c.MaxBody)
	c.MaxConnections = cmp.Or(c.MaxConnections, 8192)
	c.MaxClientConnections = cmp.Or(c.MaxClientConnections, max(1, c.MaxConnections/4))
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	return c
}

func (c Config) validate() error {
	switch {
	case c.Vertex == "" || strings.ContainsAny(c.Vertex, "/{} ?#%"):
		return fmt.Errorf("vertex: %q cannot be an element of a path; give the vertex's name", c.Vertex)
	case c.HTTPS == "" && c.HTTP == "":
		return errors.New("https and http: one address at least is required, for instance :8443")
	case c.MaxBody < 0 || c.MaxInFlight < 0 || c.MinRate < 0 || c.RateWindow < 0 || c.MaxConnections < 0 || c.MaxClientConnections < 0:
		return fmt.Errorf("maxBody %d, maxInFlight %d, minRate %d, rateWindow %v, maxConnections %d and maxClientConnections %d must not be negative",
			c.MaxBody, c.MaxInFlight, c.MinRate, c.RateWindow, c.MaxConnections, c.MaxClientConnections)
	}
	return nil
}

// Partition of all messages: requests have no order.
const partition = "http"

// ErrClosed means that the source was closed.
var ErrClosed = errors.New("http source is closed")

// Reader is the source.
type Reader struct {
	cfg      Config
	servers  []*server
	serving  sync.WaitGroup
	queue    chan *request // has room for all that may be in flight
	closed   chan struct{}
	closing  sync.Once
	closeErr error
	broken   chan error // a listener that failed

	connections *connections

	mu       sync.Mutex
	inFlight map[string]*request // by id: from the end of their payload to their answer; they have bytes together
	bytes    int64
	partial  int64            // memory of payloads that are not complete
	clients  map[string]int64 // the same by client
	over     bool
}

type server struct {
	http     *http.Server
	listener net.Listener
	tls      bool
}

// request is a message whose sender waits.
type request struct {
	message flow.Message
	size    int64
	answer  chan int // takes one status without waiting
	done    bool
}

// New listens. Errors name the field.
func New(ctx context.Context, cfg Config) (*Reader, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	r := &Reader{
		cfg: cfg, queue: make(chan *request, cfg.MaxInFlight), closed: make(chan struct{}),
		broken: make(chan error, 2), inFlight: map[string]*request{}, clients: map[string]int64{},
		connections: newConnections(cfg.MaxConnections, cfg.MaxClientConnections),
	}
	handler := r.handler()
	for _, address := range []struct {
		field, at string
	}{{"https", cfg.HTTPS}, {"http", cfg.HTTP}} {
		if address.at == "" {
			continue
		}
		s, err := r.listen(ctx, handler, address.at, address.field == "https")
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", address.field, err), r.Close(ctx))
		}
		r.servers = append(r.servers, s)
		r.serving.Go(func() { r.serve(s) })
	}
	return r, nil
}

func (r *Reader) listen(ctx context.Context, handler http.Handler, address string, secure bool) (*server, error) {
	s := &server{tls: secure, http: &http.Server{
		Handler: handler,
		// A sender may wait for its answer as long as it likes, but not keep us waiting. The handler limits the time for the payload.
		ReadHeaderTimeout: min(headerTimeout, r.cfg.RateWindow), IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ConnState: r.connections.changed,
		// Without it net/http writes plain text to standard error, where with --log-format json every line must be a record.
		ErrorLog: slog.NewLogLogger(r.cfg.Logger.Handler(), slog.LevelWarn),
	}}
	if secure {
		s.http.TLSConfig = r.cfg.TLS
		if s.http.TLSConfig == nil {
			certificate, err := selfSigned(time.Now())
			if err != nil {
				return nil, err
			}
			s.http.TLSConfig = &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}
		}
	}
	var err error
	s.listener, err = (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	s.listener = r.connections.limit(s.listener)
	return s, nil
}

func (r *Reader) serve(s *server) {
	var err error
	if s.tls {
		err = s.http.ServeTLS(s.listener, "", "")
	} else {
		err = s.http.Serve(s.listener)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		r.broken <- fmt.Errorf("listener on %v: %w", s.listener.Addr(), err)
	}
}

// Addresses are where it listens: HTTPS first, if both are.
func (r *Reader) Addresses() []net.Addr {
	var all []net.Addr
	for _, s := range r.servers {
		all = append(all, s.listener.Addr())
	}
	return all
}

// Read implements source.Reader.
func (r *Reader) Read(ctx context.Context, limit int) (*source.Batch, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-r.closed: // what is in the queue was answered
		return nil, ErrClosed
	default:
	}
	select {
	case first := <-r.queue:
		return r.batch(first, limit), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.closed:
		return nil, ErrClosed
	case err := <-r.broken:
		r.broken <- err // the next Read shall know as well
		return nil, err
	}
}

// batch is first and what else is there.
func (r *Reader) batch(first *request, limit int) *source.Batch {
	n := min(limit, 1+len(r.queue))
	requests := append(make([]*request, 0, n), first)
	for len(requests) < n {
		requests = append(requests, <-r.queue) // nobody else takes from it
	}
	b := &source.Batch{Partition: partition, ByID: true, Messages: make([]flow.Message, n), Token: requests}
	for i, q := range requests {
		b.Messages[i] = q.message
	}
	return b
}

// Ack implements source.Reader: it answers 200.
func (r *Reader) Ack(_ context.Context, b *source.Batch) error {
	for _, q := range b.Token.([]*request) {
		r.finish(q, http.StatusOK)
	}
	return nil
}

// finish answers a request, once.
func (r *Reader) finish(q *request, status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.finishLocked(q, status)
}

func (r *Reader) finishLocked(q *request, status int) {
	if q.done {
		return
	}
	q.done = true
	delete(r.inFlight, q.message.ID)
	r.bytes -= q.size
	q.answer <- status
}

// Pending implements source.Reader: what was sent and not yet read.
func (r *Reader) Pending(context.Context) (int64, error) { return int64(len(r.queue)), nil }

// Close implements source.Reader. It takes no more messages, answers 503 to all that are not acknowledged, and returns when the answers are out.
func (r *Reader) Close(ctx context.Context) error {
	r.closing.Do(func() {
		close(r.closed)
		r.mu.Lock()
		r.over = true
		for _, q := range r.inFlight {
			r.finishLocked(q, http.StatusServiceUnavailable)
		}
		r.mu.Unlock()
		for _, s := range r.servers {
			if err := s.http.Shutdown(ctx); err != nil {
				r.closeErr = errors.Join(r.closeErr, err, s.http.Close())
			}
		}
		r.serving.Wait()
	})
	return r.closeErr
}

var _ source.Reader = (*Reader)(nil)
