package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/levada-io/levada/api/v1alpha1"
	"github.com/levada-io/levada/internal/dataplane/buffer"
	"github.com/levada-io/levada/internal/dataplane/drain"
	"github.com/levada-io/levada/internal/dataplane/forward"
	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/isb"
	"github.com/levada-io/levada/internal/dataplane/isb/memory"
	"github.com/levada-io/levada/internal/dataplane/naming"
	"github.com/levada-io/levada/internal/dataplane/shard"
	"github.com/levada-io/levada/internal/dataplane/sink"
	"github.com/levada-io/levada/internal/dataplane/source"
	"github.com/levada-io/levada/internal/dataplane/vertex"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/metrics"
)

// The simulation of the data runs one vertex as several processes in virtual time: the loops, buffers, leases and fences are those of the product, and only the server is in memory.
// Between a process and the server is its link, which delays, fails, stops for a while (a process that is frozen) or for good (one that was killed). The simulation of the protocol of
// leases, with many more seeds, is in package shard.

// mistake is put into the processes on purpose: the simulation must find it.
type mistake int

const (
	noMistake     mistake = iota
	noFence               // a saved state is replaced whatever its revision is
	foreignFloor          // a start goes on from the saved state of another partition
	earlyReceipt          // a block counts as durable before it is
	wideTrim              // blocks are removed that are above the saved floor
	forgottenLane         // the lane that a process writes is one of the process, not of the partition
	lonelyTrim            // a shard removes blocks that another one needs
)

const (
	simMessages = 120
	simEvery    = 60 * time.Millisecond
)

// simShapes are how the buffer of the shared vertex is divided, and into how many shards each partition of the next one; seeds take turns.
var simShapes = []struct{ partitions, shards int }{{3, 1}, {1, 4}, {2, 3}}

// errKilled ends a process that was killed. errLink is what a request gets that is lost, or whose answer is.
var (
	errKilled = errors.New("the process was killed")
	errLink   = fmt.Errorf("the connection broke: %w", context.DeadlineExceeded)
)

// dataSim is one run.
type dataSim struct {
	seed    uint64
	mistake mistake
	// The buffer of the shared vertex has so many partitions, and each so many shards.
	partitions, shards int
	server             *memory.Server
	faults             *rand.Rand // of the goroutine that causes faults
	log                *slog.Logger
	// requests are on their way to the server. They outlive who made them.
	requests sync.WaitGroup

	mu      sync.Mutex
	failure error           // the first thing that does not hold
	durable map[string]bool // the messages that are in the buffer of out
	arrived map[string]int
	floors  map[Shard]uint64 // of each shard of the shared vertex: all blocks up to there were checked
	epochs  map[Shard]uint64 // of the owner that saved last
}

func (s *dataSim) fail(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.failure == nil {
		s.failure = fmt.Errorf(format, args...)
	}
}

func (s *dataSim) failed() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failure
}

// written notes what is durable in the buffer of out.
func (s *dataSim) written(data []byte) {
	b, err := flow.Decode(data)
	if err != nil {
		s.fail("a block that was written cannot be read: %v", err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range b.Messages {
		s.durable[string(b.Messages[i].Value)] = true
	}
}

// saved checks a state that was just saved: it is not one of an owner that was replaced, and all up to its floor is durable in the next buffer.
func (s *dataSim) saved(of Shard, log buffer.Driver, state []byte) {
	owner, _, err := buffer.OwnerOf(state)
	floor, _, ferr := buffer.SavedBounds(state)
	if err = errors.Join(err, ferr); err != nil {
		s.fail("saved state of shard %s: %v", of.Name(), err)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	fail := func(format string, args ...any) {
		if s.failure == nil {
			s.failure = fmt.Errorf(format, args...)
		}
	}
	if owner.Epoch < s.epochs[of] {
		fail("shard %s: a state of epoch %d was saved after one of epoch %d", of.Name(), owner.Epoch, s.epochs[of])
	}
	s.epochs[of] = max(s.epochs[of], owner.Epoch)
	if floor < s.floors[of] {
		fail("shard %s: floor %d was saved after floor %d", of.Name(), floor, s.floors[of])
	}
	entries, err := log.Find(context.Background(), s.floors[of]+1, floor, func(buffer.Entry) bool { return true })
	if err != nil {
		fail("%v", err)
	}
	for _, e := range entries {
		if e.Foreign {
			continue
		}
		b, err := flow.Decode(e.Data)
		if err != nil {
			fail("block %d: %v", e.Seq, err)
			continue
		}
		for i := range b.Messages {
			if v := string(b.Messages[i].Value); !s.durable[v] {
				fail("shard %s: floor %d was saved, and message %s of block %d is not in the next buffer", of.Name(), floor, v, e.Seq)
			}
		}
	}
	s.floors[of] = max(s.floors[of], floor)
}

// link is what is between a process and the server.
type link struct {
	sim *dataSim

	mu     sync.Mutex
	random *rand.Rand
	dead   bool
	until  time.Time // frozen until then
	broken time.Time // requests fail until then
}

// pass waits until a request is at the server. It ends with the process while that is frozen or killed; what has been sent arrives in any case, perhaps much later. lost says that the
// answer gets lost.
func (l *link) pass() (lost bool, err error) {
	l.mu.Lock()
	delay := time.Duration(l.random.IntN(3000)) * time.Microsecond
	fate := l.random.IntN(400)
	if fate == 2 {
		delay = time.Duration(l.random.IntN(9000)) * time.Millisecond
	}
	l.mu.Unlock()
	for {
		l.mu.Lock()
		dead, broken, wait := l.dead, time.Now().Before(l.broken), time.Until(l.until)
		l.mu.Unlock()
		switch {
		case dead:
			return false, errKilled
		case wait > 0:
			time.Sleep(wait)
			continue
		case broken || fate == 0:
			return false, errLink
		}
		time.Sleep(delay)
		return fate == 1, nil
	}
}

// deliver waits while the process is frozen: something that the server has sent is there when it goes on.
func (l *link) deliver(ctx context.Context) error {
	for {
		l.mu.Lock()
		wait := time.Until(l.until)
		l.mu.Unlock()
		if wait <= 0 {
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (l *link) kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dead = true
}

func (l *link) freeze(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Now().Add(d)
}

func (l *link) cut(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = time.Now().Add(d)
}

// through does a request, and returns errLink if its answer is lost. When ctx ends the request goes on: it is on its way.
func through[T any](ctx context.Context, l *link, do func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	got := make(chan answer, 1)
	l.sim.requests.Go(func() {
		lost, err := l.pass()
		a := answer{err: err}
		if err == nil {
			if a.value, a.err = do(); lost {
				a = answer{err: errLink}
			}
		}
		got <- a
	})
	select {
	case a := <-got:
		return a.value, a.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// linkedStore is what a pipeline keeps, over a link.
type linkedStore struct {
	isb.Store
	link *link
}

func (s linkedStore) OpenPartition(ctx context.Context, name string, partition int, settings isb.Settings) (buffer.Driver, error) {
	return through(ctx, s.link, func() (buffer.Driver, error) {
		d, err := s.Store.OpenPartition(ctx, name, partition, settings)
		return linkedDriver{Driver: d, link: s.link, store: s, vertex: name, partition: partition}, err
	})
}

func (s linkedStore) AttachWriter(ctx context.Context, name string, partition int, settings isb.Settings) (buffer.WriterDriver, error) {
	return s.OpenPartition(ctx, name, partition, settings)
}

// linkedDriver is a partition over a link. What a cursor or a watch has given waits in the process.
type linkedDriver struct {
	buffer.Driver
	link      *link
	store     linkedStore
	vertex    string
	partition int
	of        Shard
}

// Shards implements buffer.Sharded.
func (d linkedDriver) Shards() int {
	if s, ok := d.Driver.(buffer.Sharded); ok {
		return s.Shards()
	}
	return 1
}

// Shard implements buffer.Sharded.
func (d linkedDriver) Shard(n int) buffer.Driver {
	d.of = Shard{Partition: d.partition, Shard: n, Of: d.Shards()}
	d.Driver = d.Driver.(buffer.Sharded).Shard(n)
	return d
}

// UsageOf implements buffer.ShardedUsage.
func (d linkedDriver) UsageOf(shard int) buffer.Usage { return d.Shard(shard) }

// Needs implements buffer.Siblings.
func (d linkedDriver) Needs() ([]buffer.Need, bool) {
	s, ok := d.Driver.(buffer.Siblings)
	if !ok {
		return nil, false
	}
	needs, ok := s.Needs()
	if d.link.sim.mistake == lonelyTrim {
		for i := range needs {
			needs[i].From = math.MaxUint64
		}
	}
	return needs, ok
}

func (d linkedDriver) register() buffer.StateRegister {
	r, ok := d.Driver.(buffer.StateRegister)
	if !ok {
		panic("the log in memory has no register")
	}
	return r
}

// receipt is what a Submit without an answer of the server ends with.
type receipt struct {
	duplicate bool
	err       error
}

func (r receipt) Wait(context.Context) (uint64, bool, error) { return 0, r.duplicate, r.err }

func (d linkedDriver) Submit(ctx context.Context, r buffer.Record) buffer.Receipt {
	if d.link.sim.mistake == earlyReceipt && d.vertex == "out" {
		own := bytes.Clone(r.Data)
		time.AfterFunc(300*time.Millisecond, func() { r.Data = own; d.submit(ctx, r) })
		return receipt{duplicate: true}
	}
	return d.submit(ctx, r)
}

func (d linkedDriver) submit(ctx context.Context, r buffer.Record) buffer.Receipt {
	r.Data = bytes.Clone(r.Data) // it may be sent after the caller has given up
	got, err := through(ctx, d.link, func() (buffer.Receipt, error) {
		got := d.Driver.Submit(ctx, r)
		if _, _, err := got.Wait(ctx); err == nil && d.vertex == "out" {
			d.link.sim.written(r.Data)
		}
		return got, nil
	})
	if err != nil {
		return receipt{err: err}
	}
	return got
}

func (d linkedDriver) Bounds(ctx context.Context) (buffer.Bounds, error) {
	return through(ctx, d.link, func() (buffer.Bounds, error) { return d.Driver.Bounds(ctx) })
}

func (d linkedDriver) Trim(ctx context.Context, seq uint64) error {
	if d.link.sim.mistake == wideTrim && seq > 1 {
		seq += 2
	}
	_, err := through(ctx, d.link, func() (struct{}, error) { return struct{}{}, d.Driver.Trim(ctx, seq) })
	return err
}

// Next is delayed as a whole: what a cursor has given is in the process.
func (d linkedDriver) Next(ctx context.Context) (buffer.Entry, error) {
	e, err := d.Driver.Next(ctx)
	if err != nil {
		return e, err
	}
	return e, d.link.deliver(ctx)
}

// stateAt is a saved state with its revision.
type stateAt struct {
	state    []byte
	revision uint64
}

// ReadState implements buffer.StateRegister.
func (d linkedDriver) ReadState(ctx context.Context) ([]byte, uint64, error) {
	at, err := through(ctx, d.link, func() (at stateAt, err error) {
		at.state, at.revision, err = d.register().ReadState(ctx)
		if d.link.sim.mistake == foreignFloor && d.vertex == "cat" && err == nil {
			var other buffer.Driver
			if other, err = d.store.Store.OpenPartition(ctx, d.vertex, (d.partition+1)%d.link.sim.partitions, isb.Settings{}); err == nil {
				at.state, err = other.LoadState(ctx)
			}
		}
		return at, err
	})
	return at.state, at.revision, err
}

// ReplaceState implements buffer.StateRegister.
func (d linkedDriver) ReplaceState(ctx context.Context, state []byte, revision uint64) (uint64, error) {
	return through(ctx, d.link, func() (next uint64, err error) {
		if d.link.sim.mistake == noFence {
			_, revision, _ = d.register().ReadState(ctx)
		}
		if next, err = d.register().ReplaceState(ctx, state, revision); err == nil && d.vertex == "cat" {
			of := d.of
			of.Partition = d.partition
			d.link.sim.saved(of, d.Driver, state)
		}
		return next, err
	})
}

// linkedShards are the leases, over a link.
type linkedShards struct {
	shard.Store
	link *link
}

func (s linkedShards) Write(ctx context.Context, key string, value []byte, expect uint64, ttl time.Duration) (uint64, error) {
	return through(ctx, s.link, func() (uint64, error) { return s.Store.Write(ctx, key, value, expect, ttl) })
}

func (s linkedShards) Remove(ctx context.Context, key string, expect uint64) (uint64, error) {
	return through(ctx, s.link, func() (uint64, error) { return s.Store.Remove(ctx, key, expect) })
}

func (s linkedShards) Read(ctx context.Context, key string) (shard.Entry, error) {
	return through(ctx, s.link, func() (shard.Entry, error) { return s.Store.Read(ctx, key) })
}

// Watch is delayed as a whole while the process is frozen.
func (s linkedShards) Watch(ctx context.Context, prefix string, deliver func(shard.Entry), synced func()) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	return s.Store.Watch(ctx, prefix, func(e shard.Entry) {
		if err := s.link.deliver(ctx); err != nil {
			end(err)
			return
		}
		deliver(e)
	}, synced)
}

// simProcess is a process of the shared vertex.
type simProcess struct {
	name  string
	link  *link
	stop  context.CancelFunc
	kill  context.CancelCauseFunc
	ended chan struct{}
}

var simOwner = naming.Owner{Namespace: "default", Kind: naming.Pipeline, Name: "p"}

// opener connects a process.
func (s *dataSim) opener(l *link) *isb.Opener {
	service := s.server.Connect()
	store, err := service.Open(context.Background(), isb.Request{Owner: simOwner})
	if err != nil {
		panic(err) // it is in memory
	}
	return &isb.Opener{Service: service, Store: linkedStore{store, l}, Logger: s.log, Shards: func(string) int { return s.shards }}
}

func (s *dataSim) newLink() *link {
	return &link{sim: s, random: rand.New(rand.NewPCG(s.seed, s.faults.Uint64()))}
}

// run runs a process of the shared vertex.
func (s *dataSim) run(name string) *simProcess {
	p := &simProcess{name: name, link: s.newLink(), ended: make(chan struct{})}
	var work, intake context.Context
	work, p.kill = context.WithCancelCause(context.Background())
	intake, p.stop = context.WithCancel(work)
	incarnation := strconv.FormatUint(s.faults.Uint64(), 36)
	go func() {
		defer close(p.ended)
		err := s.process(drain.Context{Work: work, Intake: intake}, p, incarnation)
		if err != nil && work.Err() == nil && !errors.Is(err, shard.ErrSuperseded) {
			s.fail("process %s: %v", name, err)
		}
	}()
	return p
}

// process builds the vertex and runs it, as a process of the product does.
func (s *dataSim) process(d drain.Context, p *simProcess, incarnation string) error {
	o := s.opener(p.link)
	var writers []*buffer.Writer
	for n := range 2 {
		w, err := o.Writer(d.Work, "out", n, buffer.Options{}, func(error) func(error) { return func(error) {} })
		if err != nil {
			return err
		}
		writers = append(writers, w)
	}
	set := metrics.New("test").Namespace("default")
	letters, err := o.Store.DeadLetters(d.Work)
	if err != nil {
		return err
	}
	name := "cat"
	if s.mistake == forgottenLane {
		name += p.name
	}
	v, err := vertex.Build(d.Work, &vertex.Env{
		Namespace: "default", Pipeline: "p", Owner: o.Store.Owner(), Meta: &v1alpha1.Pipeline{}, Shared: "default-p-cat-0", Metrics: set, Logger: s.log, DeadLetters: letters,
		Writers: func(string) []*buffer.Writer { return writers },
	}, &vertex.Plan{
		Name: name, Kind: v1alpha1.VertexTypeMapUDF, Input: vertex.InputPlan{Partitions: s.partitions, MaxLength: 30000, UsageLimit: 80},
		Stages: []vertex.StagePlan{{Name: "cat", Role: function.UDF, Builtin: &v1alpha1.Builtin{Name: "cat"}}},
		Edges:  []vertex.EdgePlan{{To: "out", Partitions: 2}}, Limits: vertex.Limits{Batch: 5, Concurrency: 5},
	})
	if err != nil {
		return err
	}
	server, err := s.server.Connect().Open(d.Work, isb.Request{Owner: simOwner})
	if err != nil {
		return err
	}
	shards, err := server.(isb.Sharer).Shards(d.Work)
	if err != nil {
		return err
	}
	share := &Share{
		Shards: shard.Config{Store: linkedShards{shards, p.link}, Group: isb.ShardGroup("cat"), Name: p.name, Incarnation: incarnation, Logger: s.log},
		ByName: map[string]Shard{}, Logger: s.log,
		Open: func(ctx context.Context, start shard.Ownership, of Shard, fenced func(error)) (Input, error) {
			part, err := o.Shard(ctx, "cat", of.Partition, of.Shard, start, fenced, buffer.Options{TrimEvery: time.Second, Shared: true}, func(buffer.Loss) {})
			if err != nil {
				return Input{}, err
			}
			return Input{Partition: part, Metrics: set.Buffer(part.Name())}, nil
		},
	}
	for n := range s.partitions {
		for i := range s.shards {
			one := Shard{Partition: n, Shard: i, Of: s.shards}
			share.Shards.Shards = append(share.Shards.Shards, one.Name())
			share.ByName[one.Name()] = one
		}
	}
	ev := &Vertex{Vertex: v, Share: share, Outputs: writers}
	var upkeep sync.WaitGroup
	serving, end := context.WithCancel(d.Work)
	upkeep.Go(func() { _ = ev.Serve(serving) })
	err = ev.Run(d)
	end()
	upkeep.Wait()
	return errors.Join(err, v.Close(context.WithoutCancel(d.Work)))
}

// paced is a source of numbers, one at a time.
type paced struct{ numbers }

func (p *paced) Read(ctx context.Context, limit int) (*source.Batch, error) {
	if p.next < p.n {
		select {
		case <-time.After(simEvery):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	b, err := p.numbers.Read(ctx, limit)
	if b != nil {
		b.Stride = 1
	}
	return b, err
}

// arrivals is a sink that counts.
type arrivals struct{ *dataSim }

func (a arrivals) Write(_ context.Context, b *flow.Block) ([]sink.Result, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range b.Messages {
		a.arrived[string(b.Messages[i].Value)]++
	}
	return nil, nil
}

func (arrivals) Close(context.Context) error { return nil }

// simulateData runs one seed. The error says what did not hold.
func simulateData(t *testing.T, seed uint64, m mistake, log *slog.Logger) (failure error) {
	synctest.Test(t, func(t *testing.T) {
		shape := simShapes[seed%uint64(len(simShapes))]
		s := &dataSim{
			partitions: shape.partitions, shards: shape.shards, seed: seed, mistake: m, server: memory.NewServer(), faults: rand.New(rand.NewPCG(seed, 1)), log: log,
			durable: map[string]bool{}, arrived: map[string]int{}, floors: map[Shard]uint64{}, epochs: map[Shard]uint64{},
		}
		failure = s.live()
	})
	return failure
}

// live lets messages through while faults happen, and checks in the end that each came out once.
func (s *dataSim) live() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer s.requests.Wait()
	var steady sync.WaitGroup
	defer steady.Wait()
	defer cancel()
	quiet := &link{sim: s, random: rand.New(rand.NewPCG(s.seed, 2))}
	o := s.opener(quiet)
	events := metrics.New("test").Namespace("default").Vertex(metrics.VertexLabels{Pipeline: "p", Vertex: "steady"}, "steady", "")
	for n := range 2 { // out is read by one process that lives
		parts, err := o.Partition(ctx, "out", n, buffer.Options{Shared: true}, func(buffer.Loss) {})
		if err != nil {
			return err
		}
		for _, part := range parts {
			in := &forward.BufferInput{Vertex: "out", Index: n, Partition: part.Reader, Limit: 10}
			loop := &forward.Loop{Input: in, Output: &forward.Delivery{Primary: arrivals{s}, Events: events, Logger: s.log}, DeadLetters: noLetters{}, Events: events, Logger: s.log}
			steady.Go(func() { _ = part.Run(ctx) })
			steady.Go(func() { in.Run(ctx) })
			steady.Go(func() {
				if err := loop.Run(ctx, ctx); err != nil {
					s.fail("out: %v", err)
				}
			})
		}
	}
	var to []*buffer.Writer
	for n := range s.partitions {
		if shards, err := o.Create(ctx, "cat", n, func(buffer.Loss) {}); err != nil || shards != s.shards {
			return fmt.Errorf("a partition of cat has %d shards: %w", shards, err)
		}
		w, err := o.Writer(ctx, "cat", n, buffer.Options{}, func(error) func(error) { return func(error) {} })
		if err != nil {
			return err
		}
		to = append(to, w)
		steady.Go(func() { _ = w.Run(ctx) })
	}
	in := &forward.Loop{
		Input:  &forward.SourceInput{Vertex: "in", Reader: &paced{numbers{n: simMessages}}, Limit: 3, OnError: func(error) {}, Logger: s.log},
		Output: &forward.Router{Events: events, Edges: []forward.Edge{{To: "cat", Partitions: to}}}, DeadLetters: noLetters{}, Events: events, Logger: s.log,
	}
	steady.Go(func() {
		if err := in.Run(ctx, ctx); err != nil {
			s.fail("in: %v", err)
		}
	})
	processes := s.disturb()
	defer func() {
		for _, p := range processes {
			p.stop()
		}
		for _, p := range processes {
			<-p.ended
		}
	}()
	if s.failed() == nil {
		s.settle()
	}
	return s.failed()
}

// disturb starts processes and lets things go wrong for some time. It returns those that run in the end.
func (s *dataSim) disturb() (running []*simProcess) {
	names := []string{"a", "b", "c", "d"}
	for _, name := range names[:1+s.faults.IntN(3)] {
		running = append(running, s.run(name))
	}
	begun := time.Now()
	for time.Since(begun) < simMessages*simEvery && s.failed() == nil {
		time.Sleep(time.Duration(s.faults.IntN(1500)) * time.Millisecond)
		at := s.faults.IntN(len(running))
		p := running[at]
		switch s.faults.IntN(7) {
		case 0: // SIGKILL, and a start under the same name
			p.link.kill()
			p.kill(errKilled)
			<-p.ended
			time.Sleep(time.Duration(s.faults.IntN(400)) * time.Millisecond)
			running[at] = s.run(p.name)
		case 1: // SIGKILL, and somebody else comes later
			if len(running) > 1 {
				p.link.kill()
				p.kill(errKilled)
				<-p.ended
				running = slices.Delete(running, at, at+1)
			}
		case 2: // SIGTERM
			p.stop()
			<-p.ended
			running[at] = s.run(p.name)
		case 3: // SIGSTOP
			p.link.freeze(time.Duration(s.faults.IntN(9000)) * time.Millisecond)
		case 4:
			p.link.cut(time.Duration(s.faults.IntN(5000)) * time.Millisecond)
		case 5: // another one joins
			for _, name := range names {
				if !slices.ContainsFunc(running, func(p *simProcess) bool { return p.name == name }) {
					running = append(running, s.run(name))
					break
				}
			}
		case 6:
			s.server.ForgetIDs()
		}
	}
	return running
}

// settle waits until everything has arrived, and checks that it came once.
func (s *dataSim) settle() {
	complete := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.arrived) == simMessages
	}
	for begun := time.Now(); !complete() && time.Since(begun) < time.Minute && s.failed() == nil; {
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(10 * time.Second) // what comes twice comes late
	s.mu.Lock()
	defer s.mu.Unlock()
	for n := range simMessages {
		if count := s.arrived[strconv.Itoa(n)]; count != 1 && s.failure == nil {
			s.failure = fmt.Errorf("message %d came %d times", n, count)
		}
	}
}

// TestSharedVertexInVirtualTime: SHARING_SEEDS is how many seeds run; SHARING_SEED runs one, with its log.
func TestSharedVertexInVirtualTime(t *testing.T) {
	from, n, log := uint64(0), uint64(50), slog.New(slog.DiscardHandler)
	if v, err := strconv.ParseUint(os.Getenv("SHARING_SEEDS"), 10, 64); err == nil {
		n = v
	}
	if v, err := strconv.ParseUint(os.Getenv("SHARING_SEED"), 10, 64); err == nil {
		from, n, log = v, 1, slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	for seed := from; seed < from+n; seed++ {
		if err := simulateData(t, seed, noMistake, log); err != nil {
			t.Fatalf("SHARING_SEED=%d: %v", seed, err)
		}
	}
}

// TestSharedVertexSimulationFindsMistakes: each mistake must be found within some seeds.
func TestSharedVertexSimulationFindsMistakes(t *testing.T) {
	for name, m := range map[string]mistake{
		"saves without a fence":                   noFence,
		"the floor of another partition":          foreignFloor,
		"removes blocks above the saved floor":    wideTrim,
		"writes in a lane of the process":         forgottenLane,
		"removes blocks that another shard needs": lonelyTrim,
		"a block counts as durable before it is":  earlyReceipt,
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(100) {
				if err := simulateData(t, seed, m, slog.New(slog.DiscardHandler)); err != nil {
					t.Logf("found with seed %d: %v", seed, err)
					return
				}
			}
			t.Fatal("not found in 100 seeds")
		})
	}
}
