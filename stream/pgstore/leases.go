package pgstore

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// leaseConns is how many connections the store has for its leases. One renewal takes a millisecond; more than one connection is there for those
// that wait for a row which a commit holds.
const leaseConns = 4

// leasePool has the connections over which jobs are claimed, leases renewed and given back. They are not from the user's pool: handlers
// and commits may hold all of those for as long as they like, and a worker that could not renew would lose jobs that nothing is wrong with.
// They are opened when they are needed, and closed after a minute without use.
type leasePool struct {
	mu     sync.Mutex
	t      *tables // nil before the first use
	closed bool
}

// open returns the connections, which lead to where those of the user's pool do.
func (p *leasePool) open(from *tables) (*tables, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.t != nil || p.closed {
		return cmp.Or(p.t, from), nil // of a closed store: the error of the pool says what is wrong
	}
	config := from.Config()
	config.MaxConns, config.MinConns, config.MinIdleConns = leaseConns, 0, 0
	config.MaxConnIdleTime = time.Minute
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, fmt.Errorf("open the connections for leases: %w", err)
	}
	p.t = newTables(pool, from.schema)
	return p.t, nil
}

func (p *leasePool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed = true; p.t != nil {
		p.t.Close()
	}
}

type reservedKey struct{}

// Reserve implements [stream.ReservingSink].
func (s *sink) Reserve(ctx context.Context) (context.Context, func(), error) {
	conn, err := s.pool.Acquire(ctx)
	if err != nil {
		return nil, nil, unconnected(s.pool, err)
	}
	r := &reserved{pool: s.pool, conn: conn}
	return context.WithValue(ctx, reservedKey{}, r), conn.Release, nil
}

// reserved is a connection for one commit.
type reserved struct {
	pool *tables
	conn *pgxpool.Conn // nil once it is taken
}

// Capacity implements [stream.ReservingSink].
func (s *sink) Capacity() int { return int(s.pool.Config().MaxConns) }

// acquire returns the connection that was reserved for this commit, or another one of the pool.
func (s *sink) acquire(ctx context.Context) (conn *pgxpool.Conn, release func(), err error) {
	if r, ok := ctx.Value(reservedKey{}).(*reserved); ok && r.conn != nil && r.pool == s.pool {
		conn, r.conn = r.conn, nil
		return conn, func() {}, nil
	}
	if conn, err = s.pool.Acquire(ctx); err != nil {
		return nil, nil, err
	}
	return conn, conn.Release, nil
}
