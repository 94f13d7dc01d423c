// Package memory is an inter-step buffer service in the memory of a process, for tests: it shows what package isb asks of a service, and loses nothing but what a
// test takes from it.
package memory

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"

	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/buffer/membuffer"
	"github.com/levada-io/levada/internal/dataplane/deadletter"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/shard"
)

// maxEntry is the size of the largest entry and value, in bytes.
const maxEntry = 64 << 10

// Server holds what pipelines keep. It outlives its connections.
type Server struct {
	mu sync.Mutex
	// pipelines are by the name of their owner, without the incarnation. They are never removed.
	pipelines map[string]*pipeline
}

// pipeline is what one owner keeps; it implements isb.Store.
type pipeline struct {
	owner   naming.Owner // with its incarnation
	state   *values
	letters *letters
	shards  *shard.Memory

	mu sync.Mutex
	// streams are those that were created and not removed, by name. The log is nil for one that was lost.
	streams map[string]*stream
}

type stream struct {
	isb.Stream
	log *membuffer.Store
}

// NewServer returns a server without pipelines.
func NewServer() *Server { return &Server{pipelines: map[string]*pipeline{}} }

// Connect connects to the server.
func (s *Server) Connect() isb.Service { return service{s} }

// Lose takes the log of a stream away, as a damaged disk does.
func (s *Server) Lose(stream string) {
	s.each(func(p *pipeline) {
		p.mu.Lock()
		defer p.mu.Unlock()
		if found := p.streams[stream]; found != nil {
			found.log = nil
		}
	})
}

// ForgetIDs makes all streams forget which ids they stored, as time would.
func (s *Server) ForgetIDs() {
	s.each(func(p *pipeline) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, stream := range p.streams {
			if stream.log != nil {
				stream.log.ForgetIDs()
			}
		}
	})
}

func (s *Server) each(visit func(*pipeline)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.pipelines {
		visit(p)
	}
}

// service implements isb.Service.
type service struct{ *Server }

func (s service) Open(_ context.Context, r isb.Request) (isb.Store, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pipelines[r.Owner.String()]
	if p == nil {
		p = &pipeline{owner: r.Owner, state: &values{name: r.Owner.State(), held: map[string]value{}}, letters: &letters{name: r.Owner.DeadLetters()}, shards: shard.NewMemory(), streams: map[string]*stream{}}
		p.owner.Incarnation = rand.Text()
		s.pipelines[r.Owner.String()] = p
	}
	return p, nil
}

func (s service) Places(context.Context) (all []isb.Place, err error) {
	s.each(func(p *pipeline) { all = append(all, p) })
	return all, nil
}

func (s service) DeadLetters(context.Context) (all []isb.Letters, err error) {
	s.each(func(p *pipeline) {
		all = append(all, isb.Letters{Store: deadletter.New(p.letters, p.owner.Name, nil), Owner: p.owner, Prefix: p.letters.name})
	})
	return all, nil
}

func (s service) AttachVertex(ctx context.Context, of isb.Letters, vertex string) (buffer.WriterDriver, error) {
	s.mu.Lock()
	p := s.pipelines[of.Owner.String()]
	s.mu.Unlock()
	if p == nil {
		return nil, nil
	}
	d, err := p.Attach(ctx, of.Owner.Buffer(vertex, 0))
	if errors.Is(err, buffer.ErrMissing) {
		return nil, nil
	}
	return d, err
}

func (service) Final(_ string, err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	return err
}

func (service) Usable(context.Context) error { return nil }

func (service) Degraded() []error { return nil }
func (service) Stuck() error      { return nil }
func (service) Close()            {}

func (p *pipeline) Owner() naming.Owner { return p.owner }
func (p *pipeline) State() isb.State    { return p.state }
func (p *pipeline) LogChanges()         {}

func (p *pipeline) DeadLetters(context.Context) (*deadletter.Store, error) {
	return deadletter.New(p.letters, p.owner.Name, nil), nil
}

// Shards implements isb.Sharer.
func (p *pipeline) Shards(context.Context) (shard.Store, error) { return p.shards, nil }

func (p *pipeline) Stream(_ context.Context, vertex string, partition int) (string, error) {
	return p.owner.Buffer(vertex, partition), nil
}

func (p *pipeline) Streams(context.Context) (all []isb.Stream, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.streams {
		if s.log != nil {
			all = append(all, s.Stream)
		}
	}
	return all, nil
}

// find returns the log of a stream, or says why there is none. mu is held.
func (p *pipeline) find(name string) (*membuffer.Store, error) {
	switch s := p.streams[name]; {
	case s == nil:
		return nil, fmt.Errorf("stream %s: %w", name, buffer.ErrNotCreated)
	case s.log == nil:
		return nil, fmt.Errorf("stream %s: %w", name, buffer.ErrMissing)
	default:
		return s.log, nil
	}
}

func (p *pipeline) OpenPartition(_ context.Context, vertex string, partition int, s isb.Settings) (buffer.Driver, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := p.owner.Buffer(vertex, partition)
	log, err := p.find(name)
	if errors.Is(err, buffer.ErrNotCreated) {
		log, err = membuffer.NewStore(maxEntry), nil
		log.Divide(max(1, s.Shards))
		p.streams[name] = &stream{isb.Stream{Vertex: vertex, Partition: partition, Stream: name}, log}
	}
	if err != nil {
		return nil, err
	}
	return log.Open(), nil
}

func (p *pipeline) AttachWriter(_ context.Context, vertex string, partition int, _ isb.Settings) (buffer.WriterDriver, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := p.find(p.owner.Buffer(vertex, partition))
	if err != nil {
		return nil, err
	}
	return log.Open(), nil
}

func (p *pipeline) Attach(_ context.Context, name string) (buffer.Driver, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	log, err := p.find(name)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", buffer.ErrMissing, err)
	}
	return log.Open(), nil
}

func (p *pipeline) Describe(ctx context.Context, name string) (isb.Storage, error) {
	if _, err := p.Attach(ctx, name); err != nil {
		return isb.Storage{}, err
	}
	return isb.Storage{Replicas: 1, Kind: "memory"}, nil
}

func (p *pipeline) Remove(_ context.Context, name string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.streams, name)
	return nil
}
