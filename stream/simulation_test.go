package stream_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/levada-io/levada/stream"
	"github.com/levada-io/levada/stream/memstore"
)

// TestSimulation runs whole systems in virtual time: producers, workers, store, sink, notifications and the network between them, all
// of which break at random. What happened is recorded where it takes effect, and must satisfy every validator.
//
// SIM_SEEDS is how many seeds to run (make test runs 10,000 of them), SIM_SEED one of them.
func TestSimulation(t *testing.T) {
	seeds, first := 300, uint64(1)
	if n, err := strconv.Atoi(os.Getenv("SIM_SEEDS")); err == nil {
		seeds = n
	}
	if n, err := strconv.ParseUint(os.Getenv("SIM_SEED"), 10, 64); err == nil {
		seeds, first = 1, n
	}
	var next atomic.Uint64
	var totals totals
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for !t.Failed() {
				seed := first + next.Add(1) - 1
				if seed >= first+uint64(seeds) {
					return
				}
				t.Run(fmt.Sprint(seed), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { simulate(t, seed, &totals) })
				})
			}
		})
	}
	workers.Wait()
	t.Logf("%d seeds: %s", seeds, totals.String())
	if !t.Failed() && seeds >= 200 {
		totals.check(t)
	}
}

// totals count what the seeds have met: a simulation that meets nothing proves nothing.
type totals struct {
	records, commits, kills, freezes, cuts, stops, restarts, outages, unknown, poison, panics, refused, producerBad, steered, notifier atomic.Int64
	handlers, pools, locks, disks, slows, rows, denials, admissions                                                                    atomic.Int64
}

func (n *totals) each() map[string]*atomic.Int64 {
	return map[string]*atomic.Int64{"records": &n.records, "commits": &n.commits, "kills": &n.kills, "freezes": &n.freezes, "cuts": &n.cuts,
		"stops": &n.stops, "restarts": &n.restarts, "outages": &n.outages, "unknown outcomes": &n.unknown, "deaths by poison": &n.poison,
		"panics": &n.panics, "refused": &n.refused, "bad at the producer": &n.producerBad, "cancelled, paused or retried": &n.steered, "notifier": &n.notifier,
		"failures behind the handler": &n.handlers, "waits for a connection": &n.pools, "waits for a lock": &n.locks, "full disks": &n.disks, "handlers out of time": &n.slows,
		"rows that come late": &n.rows, "denials": &n.denials, "refusals for lack of room": &n.admissions}
}

func (n *totals) String() (s string) {
	for name, count := range n.each() {
		s += fmt.Sprintf("%d %s, ", count.Load(), name)
	}
	return s
}

func (n *totals) check(t *testing.T) {
	for name, count := range n.each() {
		if count.Load() == 0 {
			t.Errorf("no seed met any %s", name)
		}
	}
}

// system is one run.
type system struct {
	t       *testing.T
	rng     *rand.Rand
	mu      sync.Mutex // for rng
	totals  *totals
	history *history
	store   *memstore.Store
	config  stream.WorkerConfig
	server  stream.ServerConfig

	streams map[string][]stream.Record
	nature  map[string]map[uint64]string // of records: kill, panic, refuse, bad
	outside map[string]string            // streams whose effects are outside the sink: each, batch
	flaky   float64                      // how often a handler fails for no reason

	notifier  *simNotifier // nil: none
	bounded   bounded
	producers []*simProducer
	processes []*process
	outage    atomic.Int32 // 1: the store fails, 2: the sink fails, 3: both
	trouble   atomic.Int32 // what is behind the handlers does not answer: one of the troubles
	denied    atomic.Int32 // the code with which producers deny streams, 0: they do not
	calm      atomic.Bool  // no more faults
	running   sync.WaitGroup

	placing sync.Mutex // while a process takes the place of another
	closing bool
}

func (s *system) n(limit int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.IntN(limit)
}

func (s *system) chance(p float64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rng.Float64() < p
}

func simulate(t *testing.T, seed uint64, totals *totals) {
	s := &system{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), totals: totals, history: &history{}, store: memstore.New(),
		streams: map[string][]stream.Record{}, nature: map[string]map[uint64]string{}, outside: map[string]string{},
	}
	s.config = stream.WorkerConfig{
		Store: s.store, Lease: time.Duration(2+s.n(14)) * time.Second, PollInterval: time.Duration(200+s.n(3000)) * time.Millisecond,
		MaxJobs: 1 + s.n(3), MaxInFlight: 1 + s.n(20000), CommitRecords: []int{1, 3, 17, 64, 1000}[s.n(5)], CommitBytes: 100 + s.n(10000),
		HandlerTimeout: 10 * time.Second, MaxRecord: 4 << 10, NoProgress: 24 * time.Hour, DeniedGrace: time.Hour, DependencyWait: time.Hour, ReleaseAfterFailures: 1 + s.n(8), MaxCrashes: 1 + s.n(3), DrainTimeout: 8 * time.Second,
		Logger: slog.New(slog.DiscardHandler),
	}
	if os.Getenv("SIM_SEED") != "" {
		s.config.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s.server = stream.ServerConfig{BatchBytes: 50 + s.n(2000), MaxRecord: 2 << 10, MaxStreamAge: time.Duration(1+s.n(120)) * time.Second, MaxStreams: 1 + s.n(5), Logger: slog.New(slog.DiscardHandler)}
	if s.chance(0.3) {
		s.flaky = 0.05
	}
	if s.chance(0.5) {
		s.notifier = &simNotifier{s: s}
	}
	// A batch may have a fourth of what the reader takes, and one more record.
	s.bounded = bounded{limit: uint64(s.config.MaxInFlight + s.config.MaxRecord + 200), frames: map[string][]stream.Event{}}
	s.config.Observe = func(e stream.Event) {
		s.bounded.observe(e)
		if e.Kind == stream.EventRetry {
			s.count(e.Reason)
		}
	}
	var jobs []stream.Status
	for i := range 1 + s.n(3) {
		name := fmt.Sprintf("stream%d", i)
		s.makeStream(name)
	}
	for range 1 + s.n(2) {
		s.producers = append(s.producers, s.startProducer())
	}
	for i := range 1 + s.n(3) {
		s.processes = append(s.processes, s.start(fmt.Sprintf("pod%d", i)))
	}
	for name := range s.streams {
		job, err := s.store.Submit(t.Context(), stream.Job{Stream: name, MaxBad: 1000, Priority: s.n(2)})
		if err != nil {
			t.Fatal(err)
		}
		if s.notifier != nil {
			s.notifier.Send(t.Context(), stream.Notification{Stream: name, Job: job.ID})
		}
		jobs = append(jobs, job)
	}
	for range s.n(25) {
		time.Sleep(time.Duration(s.n(4000)) * time.Millisecond)
		s.fault(jobs)
	}
	s.calm.Store(true)
	s.outage.Store(0)
	s.trouble.Store(0)
	s.denied.Store(0)
	for _, p := range s.all() {
		p.thaw()
	}
	for _, job := range jobs {
		s.store.Resume(t.Context(), job.ID) // if it is paused
	}
	deadline := time.Now().Add(6 * time.Hour)
	for time.Now().Before(deadline) && slices.ContainsFunc(jobs, func(j stream.Status) bool { return !s.status(j.ID).State.Final() }) {
		time.Sleep(time.Minute)
	}
	s.placing.Lock()
	s.closing = true
	s.placing.Unlock()
	for _, p := range s.all() {
		p.stop()
	}
	for _, p := range s.producers {
		p.down()
	}
	s.running.Wait()
	if err := s.bounded.err; err != nil {
		t.Error(err)
	}
	for _, job := range jobs {
		s.check(job)
	}
}

func (s *system) status(id string) stream.Status {
	status, err := s.store.Get(context.Background(), id)
	if err != nil {
		s.t.Error(err)
	}
	return status
}

func (s *system) check(job stream.Status) {
	s.t.Helper()
	final := s.status(job.ID)
	orphans, _ := s.store.Orphans(context.Background())
	x := expectation{records: slices.Clone(s.streams[job.Stream]), bad: map[uint64]bool{}, deaths: s.config.MaxCrashes, noProgress: s.config.NoProgress, pause: time.Minute, lease: s.config.Lease, final: final, orphans: orphans, outside: s.outside[job.Stream] != "", ended: true}
	for seq, nature := range s.nature[job.Stream] {
		x.bad[seq] = true
		if nature == "bad" {
			x.records[seq-1].Value = nil
		}
	}
	if err := s.history.validate(x); err != nil {
		s.t.Errorf("%v\n%+v", err, final)
	}
	if final.State != stream.Completed && final.State != stream.Cancelled {
		s.t.Errorf("the job is %s: %s", final.State, final.LastError)
	}
	s.totals.records.Add(int64(len(x.records)))
}

// makeStream makes records, some of which are bad by nature.
func (s *system) makeStream(name string) {
	n := s.n(400)
	if s.chance(0.05) {
		n = 0
	}
	records, nature := make([]stream.Record, n), map[uint64]string{}
	for i := range records {
		records[i] = stream.Record{Key: fmt.Appendf(nil, "%06d", i*7), Value: make([]byte, s.n(60))}
		if s.chance(0.002) {
			records[i].Value = make([]byte, 1500)
		}
	}
	if n > 0 {
		for range s.n(4) {
			nature[uint64(1+s.n(n))] = []string{"kill", "panic", "refuse", "bad"}[s.n(4)]
		}
	}
	s.streams[name], s.nature[name] = records, nature
	s.outside[name] = []string{"", "", "each", "batch"}[s.n(4)]
}

// simSource has the values of bad records panic.
type simSource struct {
	s    *system
	name string
}

// Size has the producer send a mark at any moment.
func (c simSource) Size(ctx context.Context, _ stream.Query) (uint64, error) {
	if !sleep(ctx, time.Duration(c.s.n(3))*time.Millisecond) {
		return 0, ctx.Err()
	}
	return uint64(len(c.s.streams[c.name])), nil
}

func (c simSource) Open(ctx context.Context, q stream.Query) (stream.Cursor, error) {
	if !c.s.calm.Load() && c.s.chance(0.02) {
		return nil, errors.New("the source is not there")
	}
	inner, err := stream.Slice(c.s.streams[c.name]...).Open(ctx, q)
	if err != nil {
		return nil, err
	}
	cursor := &simCursor{Cursor: inner, source: c}
	for _, r := range c.s.streams[c.name] {
		if string(r.Key) <= string(q.After) {
			cursor.seq++
		}
	}
	return cursor, nil
}

type simCursor struct {
	stream.Cursor
	source simSource
	seq    uint64
}

func (c *simCursor) Next(ctx context.Context) ([]byte, error) {
	c.seq++
	s := c.source.s
	if !s.calm.Load() && s.chance(0.01) {
		if !sleep(ctx, time.Duration(s.n(8000))*time.Millisecond) {
			return nil, context.Cause(ctx)
		}
	}
	return c.Cursor.Next(ctx)
}

func (c *simCursor) Value(dst []byte) ([]byte, error) {
	if c.source.s.nature[c.source.name][c.seq] == "bad" {
		c.source.s.totals.producerBad.Add(1)
		panic("cannot be encoded")
	}
	return c.Cursor.Value(dst)
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// simProducer is a server that can be ended and started again at the same place.
type simProducer struct {
	s        *system
	mu       sync.Mutex
	listener *bufconn.Listener
	grpc     *grpc.Server
	server   *stream.Server
	done     chan struct{}
	conns    []*simConn
}

func (s *system) startProducer() *simProducer {
	p := &simProducer{s: s}
	p.up()
	return p
}

func (p *simProducer) up() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listener, p.grpc, p.server, p.done = bufconn.Listen(1<<16), grpc.NewServer(grpc.StreamInterceptor(p.s.deny)), valid(stream.NewServer(p.s.server)), make(chan struct{})
	for name := range p.s.streams {
		p.server.Handle(name, simSource{p.s, name})
	}
	p.server.Register(p.grpc)
	listener, server, done := p.listener, p.grpc, p.done
	go func() { defer close(done); server.Serve(listener) }()
}

// deny is a policy, which is the same for all producers.
func (s *system) deny(server any, in grpc.ServerStream, _ *grpc.StreamServerInfo, serve grpc.StreamHandler) error {
	if code := codes.Code(s.denied.Load()); code != codes.OK {
		return status.Error(code, "by policy")
	}
	return serve(server, in)
}

// down ends it, at once.
func (p *simProducer) down() {
	p.mu.Lock()
	server, done, conns := p.grpc, p.done, p.conns
	p.listener, p.conns = nil, nil
	p.mu.Unlock()
	server.Stop()
	<-done
	for _, c := range conns {
		c.release()
	}
}

func (p *simProducer) drain() {
	p.mu.Lock()
	server, g := p.server, p.grpc
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	stream.Shutdown(ctx, g, server)
	p.down()
}

func (p *simProducer) dial(ctx context.Context) (net.Conn, error) {
	p.mu.Lock()
	listener := p.listener
	p.mu.Unlock()
	if listener == nil {
		return nil, errors.New("connection refused")
	}
	conn, err := listener.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	c := &simConn{Conn: conn, gone: make(chan struct{})}
	p.mu.Lock()
	p.conns = append(p.conns, c)
	p.mu.Unlock()
	return c, nil
}

// cut breaks what is connected: by closing, or by swallowing all that is said.
func (p *simProducer) cut(silently bool) {
	p.mu.Lock()
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	for _, c := range conns {
		if silently {
			c.silent.Store(true)
		} else {
			c.Close()
		}
	}
}

// simConn can fall silent: what is written vanishes, and nothing is read any more.
type simConn struct {
	net.Conn
	silent atomic.Bool
	once   sync.Once
	gone   chan struct{}
}

func (c *simConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.silent.Load() {
		<-c.gone
		return 0, net.ErrClosed
	}
	return n, err
}

func (c *simConn) Write(b []byte) (int, error) {
	if c.silent.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func (c *simConn) release() { c.once.Do(func() { close(c.gone) }) }

func (c *simConn) Close() error {
	c.release()
	return c.Conn.Close()
}

// process is a worker process. Its store, sink and network are reached through it, so that they can be taken away from it: a
// process that was killed has no effect any more, one that is frozen has its effects later.
type process struct {
	s      *system
	owner  stream.Owner
	worker *stream.Worker
	conns  *stream.Connections
	cancel context.CancelFunc
	done   chan struct{}

	mu       sync.Mutex
	dead     bool
	followed bool // another takes its place
	frozen   chan struct{}
}

var (
	errDead   = errors.New("this process is dead")
	errOutage = errors.New("not reachable")
)

func (s *system) start(pod string) *process {
	p := &process{s: s, owner: stream.Owner{Pod: pod, PodUID: pod, Incarnation: newProcess()}, done: make(chan struct{})}
	config := s.config
	config.Owner, config.Store = p.owner, &simStore{s.store, p}
	if s.notifier != nil {
		config.Notifier = s.notifier
	}
	p.conns = stream.NewConnections("passthrough:///any", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			if err := p.gate(ctx); err != nil {
				return nil, err
			}
			return s.producers[s.n(len(s.producers))].dial(ctx)
		}))
	config.Dial = p.conns.Dial
	worker, err := stream.NewWorker(config)
	if err != nil {
		s.t.Fatal(err)
	}
	for name := range s.streams {
		worker.Handle(name, p.sink(name))
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.worker, p.cancel = worker, cancel
	s.running.Go(func() {
		defer close(p.done)
		worker.Run(ctx)
		p.conns.Close()
	})
	return p
}

// gate lets an effect through, later if the process is frozen, or not at all.
func (p *process) gate(ctx context.Context) error {
	p.mu.Lock()
	frozen, dead := p.frozen, p.dead
	p.mu.Unlock()
	if dead {
		return errDead
	}
	if frozen != nil {
		<-frozen // a frozen process does not see its context end either
		return p.gate(ctx)
	}
	return ctx.Err()
}

func (p *process) freeze(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil || p.dead {
		return
	}
	frozen := make(chan struct{})
	p.frozen = frozen
	p.s.running.Go(func() {
		select {
		case <-time.After(d):
		case <-frozen:
			return
		}
		p.thaw()
	})
}

func (p *process) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen != nil {
		close(p.frozen)
		p.frozen = nil
	}
}

// kill takes all effects away, at once.
func (p *process) kill() {
	p.thaw()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return
	}
	p.dead = true
	p.cancel()
}

// stop is SIGTERM.
func (p *process) stop() {
	p.cancel()
	p.thaw()
	<-p.done
}

// handle is the users' code.
func (p *process) handle(ctx context.Context, b *stream.Batch) (func(), error) {
	if !p.s.calm.Load() {
		sleep(ctx, time.Duration(p.s.n(30))*time.Millisecond) // work takes time
		if err := p.gate(ctx); err != nil {
			return nil, err
		}
		if p.s.chance(p.s.flaky) {
			return nil, errors.New("no reason at all")
		}
	}
	if err := p.s.troubled(ctx); err != nil {
		return nil, err
	}
	for _, r := range b.Records {
		switch p.s.nature[b.Job.Stream][r.Seq] {
		case "kill":
			p.s.totals.poison.Add(1)
			p.kill()
			p.s.revive(p)
			return nil, errDead
		case "panic":
			p.s.totals.panics.Add(1)
			panic(fmt.Sprintf("record %d", r.Seq))
		case "refuse":
			p.s.totals.refused.Add(1)
			if r.Seq%2 == 0 {
				return nil, stream.Skip(errors.New("one of these"))
			}
			b.Skip(r, errors.New("this one"))
		case "bad":
			return nil, stream.Halt(fmt.Errorf("record %d was handed over though it is bad", r.Seq))
		}
	}
	return nil, nil
}

// revive starts a process in the place of a dead one.
func (s *system) revive(p *process) {
	again := time.Duration(s.n(5000)) * time.Millisecond
	pod := p.owner.Pod
	if s.chance(0.3) {
		pod += "x" // a new pod, which cannot know that it follows another
	}
	p.mu.Lock()
	twice := p.followed
	p.followed = true
	p.mu.Unlock()
	if twice {
		return
	}
	s.running.Go(func() {
		<-p.done
		time.Sleep(again)
		s.placing.Lock()
		defer s.placing.Unlock()
		if s.closing {
			return
		}
		next := s.start(pod)
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range s.processes {
			if s.processes[i] == p {
				s.processes[i] = next
			}
		}
	})
}

func (s *system) all() []*process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.processes)
}

func (s *system) some() *process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.processes[s.rng.IntN(len(s.processes))]
}

// fault breaks something.
func (s *system) fault(jobs []stream.Status) {
	producer := s.producers[s.n(len(s.producers))]
	if s.notifier != nil {
		job := jobs[s.n(len(jobs))]
		s.notifier.Send(context.Background(), stream.Notification{Stream: job.Stream, Job: job.ID})
	}
	switch s.n(12) {
	case 0, 1:
		if p := s.some(); !p.isDead() {
			s.totals.kills.Add(1)
			p.kill()
			s.revive(p)
		}
	case 2:
		s.totals.freezes.Add(1)
		s.some().freeze(time.Duration(s.n(40)) * time.Second)
	case 3:
		if p := s.some(); !p.isDead() {
			s.totals.stops.Add(1)
			p.cancel()
			s.revive(p)
		}
	case 4, 5:
		s.totals.cuts.Add(1)
		producer.cut(s.chance(0.4))
	case 6:
		s.totals.restarts.Add(1)
		if s.chance(0.5) {
			producer.drain()
		} else {
			producer.down()
		}
		time.Sleep(time.Duration(s.n(5)) * time.Second)
		producer.up()
	case 7:
		s.totals.outages.Add(1)
		s.outage.Store(int32(1 + s.n(3)))
		time.Sleep(time.Duration(s.n(30)) * time.Second)
		s.outage.Store(0)
	case 8:
		id := jobs[s.n(len(jobs))].ID
		ctx := context.Background()
		do := []func(context.Context, string) (stream.Status, error){s.store.Pause, s.store.Resume, s.store.Resume, s.store.Retry, s.store.Cancel}[s.n(5)]
		s.history.mu.Lock()
		status, err := do(ctx, id)
		s.history.mu.Unlock()
		if err == nil {
			s.totals.steered.Add(1)
			s.history.add(happened{what: "steer", job: id, epoch: status.Epoch, state: status.State})
		}
	case 9, 10:
		s.trouble.Store(int32(1 + s.n(len(troubles))))
		time.Sleep(s.while())
		s.trouble.Store(0)
	case 11:
		s.denied.Store(int32([]codes.Code{codes.PermissionDenied, codes.Unauthenticated, codes.NotFound, codes.Unimplemented}[s.n(4)]))
		time.Sleep(s.while())
		s.denied.Store(0)
	}
	s.due(jobs)
}

// while is how long something does not answer: mostly for less than a pause between attempts, and at times for many of them.
func (s *system) while() time.Duration {
	if s.chance(0.1) {
		return time.Duration(s.n(600)) * time.Second
	}
	return time.Duration(s.n(60)) * time.Second
}

// troubles are what can be away behind a handler, or between it and its database, each as the worker's process sees it.
var troubles = []func(s *system, ctx context.Context) error{
	func(*system, context.Context) error { return errors.New("503 Service Unavailable") },
	func(s *system, ctx context.Context) error { // a pool that others have used up
		if !sleep(ctx, time.Duration(s.n(15_000))*time.Millisecond) {
			return stream.WithReason(stream.ReasonPoolExhausted, ctx.Err())
		}
		return stream.WithReason(stream.ReasonPoolExhausted, errors.New("no connection became free"))
	},
	func(s *system, ctx context.Context) error {
		if !sleep(ctx, time.Duration(s.n(9_000))*time.Millisecond) {
			return ctx.Err()
		}
		return fmt.Errorf("insert: %w", sqlError([]string{"55P03", "40P01", "40001"}[s.n(3)]))
	},
	func(*system, context.Context) error { return sqlError("53100") },
	func(_ *system, ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, // it hangs
	func(*system, context.Context) error { return stream.Later(sqlError("23503")) },
}

// troubled fails as what is behind the handler does at the moment.
func (s *system) troubled(ctx context.Context) error {
	if i := s.trouble.Load(); i > 0 {
		return troubles[i-1](s, ctx)
	}
	return nil
}

// count counts what kept attempts from their work.
func (s *system) count(reason stream.Reason) {
	switch reason {
	case stream.ReasonHandlerFailed:
		s.totals.handlers.Add(1)
	case stream.ReasonPoolExhausted:
		s.totals.pools.Add(1)
	case stream.ReasonLockWait:
		s.totals.locks.Add(1)
	case stream.ReasonStorageFull:
		s.totals.disks.Add(1)
	case stream.ReasonTooSlow:
		s.totals.slows.Add(1)
	case stream.ReasonDependentRows:
		s.totals.rows.Add(1)
	case stream.ReasonTooManyStreams:
		s.totals.admissions.Add(1)
	case stream.ReasonPermissionDenied, stream.ReasonUnauthenticated, stream.ReasonUnknownStream, stream.ReasonUnimplemented:
		s.totals.denials.Add(1)
	}
}

// due notes when the store says that each job is looked at next.
func (s *system) due(jobs []stream.Status) {
	for _, job := range jobs {
		s.history.mu.Lock()
		status := s.status(job.ID)
		s.history.events = append(s.history.events, happened{what: "look", at: time.Now(), job: job.ID, state: status.State, due: dueAt(status)})
		s.history.mu.Unlock()
	}
}

func dueAt(s stream.Status) time.Time {
	if s.State == stream.Running {
		return s.LeaseUntil
	}
	return s.NotBefore
}

func (p *process) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// simNotifier is a bus that loses, doubles, delays and reorders notifications, and makes some up. That changes when things happen (I12), and
// nothing that any validator looks at.
type simNotifier struct {
	s         *system
	mu        sync.Mutex
	listeners []chan stream.Notification
}

func (b *simNotifier) Send(_ context.Context, h stream.Notification) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range b.s.n(3) { // none, one or two
		if len(b.listeners) == 0 {
			return errOutage
		}
		listener, delay := b.listeners[b.s.n(len(b.listeners))], time.Duration(b.s.n(10_000))*time.Millisecond
		notification := h
		if b.s.chance(0.1) {
			notification = stream.Notification{Stream: "nobody's", Job: "none"}
		}
		b.s.totals.notifier.Add(1)
		time.AfterFunc(delay, func() {
			select {
			case listener <- notification:
			default:
			}
		})
	}
	return nil
}

func (b *simNotifier) Listen(ctx context.Context, wake func(context.Context, stream.Notification)) error {
	if b.s.chance(0.2) {
		return errOutage
	}
	mine := make(chan stream.Notification, 3)
	b.mu.Lock()
	b.listeners = append(b.listeners, mine)
	b.mu.Unlock()
	for {
		select {
		case h := <-mine:
			wake(ctx, h)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (b *simNotifier) Close() error { return nil }

// bounded checks I9, that what was received and is not committed is bounded, by the worker's events.
type bounded struct {
	limit  uint64
	mu     sync.Mutex
	frames map[string][]stream.Event // received and not committed, by job and epoch
	err    error
}

func (b *bounded) observe(e stream.Event) {
	b.mu.Lock()
	defer b.mu.Unlock()
	key := fmt.Sprint(e.Job.ID, e.Epoch)
	switch e.Kind {
	case stream.EventOpened:
		delete(b.frames, key)
	case stream.EventCommitted:
		b.frames[key] = slices.DeleteFunc(b.frames[key], func(f stream.Event) bool { return f.To <= e.To })
	case stream.EventReceived:
		b.frames[key] = append(b.frames[key], e)
		sum := uint64(0)
		for _, f := range b.frames[key] {
			sum += f.Bytes
		}
		if sum > b.limit && len(b.frames[key]) > 1 && b.err == nil {
			b.err = fmt.Errorf("I9 bounded: %d bytes were received and not committed, and %d are allowed", sum, b.limit)
		}
	}
}

// simStore is the store as a process reaches it.
type simStore struct {
	*memstore.Store
	p *process
}

func (k *simStore) pass(ctx context.Context) error {
	if err := k.p.gate(ctx); err != nil {
		return err
	}
	if k.p.s.outage.Load()&1 != 0 {
		return errOutage
	}
	return nil
}

// lost decides whether the answer of a call that took effect is lost.
func (k *simStore) lost() error {
	if !k.p.s.calm.Load() && k.p.s.chance(0.01) {
		return errOutage
	}
	return nil
}

func (k *simStore) Claim(ctx context.Context, c stream.Claim) ([]stream.Status, error) {
	if err := k.pass(ctx); err != nil {
		return nil, err
	}
	h := k.p.s.history
	h.mu.Lock()
	claimed, err := k.Store.Claim(ctx, c)
	for _, status := range claimed {
		if j := status.CrashState; status.Reclaimed && j.BatchLimit == 1 && j.InFlightSeq > 0 {
			// Killed, frozen, or cut off from the store: its owner did not return.
			h.events = append(h.events, happened{what: "death", job: status.ID, hand: []uint64{j.InFlightSeq}})
		}
		h.events = append(h.events, happened{what: "claim", job: status.ID, epoch: status.Epoch, owner: status.Owner.Incarnation})
	}
	h.mu.Unlock()
	return claimed, err
}

func (k *simStore) Renew(ctx context.Context, l stream.Lease, p stream.Progress, ttl time.Duration) error {
	if err := k.pass(ctx); err != nil {
		return err
	}
	return errors.Join(k.Store.Renew(ctx, l, p, ttl), k.lost())
}

func (k *simStore) SaveState(ctx context.Context, l stream.Lease, crash stream.CrashState, retry stream.RetryState) error {
	if err := k.pass(ctx); err != nil {
		return err
	}
	return errors.Join(k.Store.SaveState(ctx, l, crash, retry), k.lost())
}

func (k *simStore) Release(ctx context.Context, l stream.Lease, r stream.Release) error {
	if err := k.pass(ctx); err != nil {
		return err
	}
	h := k.p.s.history
	h.mu.Lock()
	err := k.Store.Release(ctx, l, r)
	if err == nil {
		h.events = append(h.events, happened{what: "release", job: l.Job, epoch: l.Epoch, state: r.State, at: time.Now(), stall: r.RetryState, reason: r.Reason, due: dueAt(k.p.s.status(l.Job))})
	}
	h.mu.Unlock()
	return errors.Join(err, k.lost())
}

func (k *simStore) Expire(ctx context.Context, d stream.ExpireFilter) (int, error) {
	if err := k.pass(ctx); err != nil {
		return 0, err
	}
	return k.Store.Expire(ctx, d)
}

func (k *simStore) Owners(ctx context.Context) ([]stream.Owner, error) {
	if err := k.pass(ctx); err != nil {
		return nil, err
	}
	return k.Store.Owners(ctx)
}

// sink returns the sink of a stream, whose effects are in it or outside.
func (p *process) sink(name string) stream.Sink {
	inner := p.s.store.Sink(nil)
	sink := &simSink{p: p, inner: inner}
	switch p.s.outside[name] {
	case "each":
		return stream.AtLeastOnce(&simOffsets{inner, sink}, stream.Each(func(ctx context.Context, b *stream.Batch, r stream.Record) error {
			one := &stream.Batch{Job: b.Job, Epoch: b.Epoch, Records: []stream.Record{r}}
			_, err := p.handle(ctx, one)
			if err == nil && len(one.Skipped()) > 0 {
				return stream.Skip(errors.New("this one"))
			}
			return p.finished(ctx, b, err, r.Seq)
		}))
	case "batch":
		return stream.AtLeastOnce(&simOffsets{inner, sink}, func(ctx context.Context, b *stream.Batch) error {
			_, err := p.handle(ctx, b)
			var seqs []uint64
			for _, r := range b.Records {
				seqs = append(seqs, r.Seq)
			}
			for _, q := range b.Skipped() {
				seqs = slices.DeleteFunc(seqs, func(seq uint64) bool { return seq == q.Seq })
			}
			return p.finished(ctx, b, err, seqs...)
		})
	}
	return sink
}

// finished notes effects outside the sink, if the process is still there to have them.
func (p *process) finished(ctx context.Context, b *stream.Batch, err error, seqs ...uint64) error {
	if err == nil {
		err = p.gate(ctx)
	}
	if err == nil {
		p.s.history.add(happened{what: "handed", job: b.Job.ID, epoch: b.Epoch, owner: p.owner.Incarnation, seqs: seqs})
	}
	return err
}

// simOffsets keeps the checkpoints of effects that are outside.
type simOffsets struct {
	stream.ReplaySink
	sink *simSink
}

func (k *simOffsets) Fence(ctx context.Context, l stream.Lease) (stream.Checkpoint, error) {
	return k.sink.Fence(ctx, l)
}

func (k *simOffsets) Commit(ctx context.Context, c *stream.Commit) error {
	return k.sink.Commit(ctx, c)
}

// simSink is the sink as a process reaches it.
type simSink struct {
	p     *process
	inner *memstore.Sink
}

func (k *simSink) pass(ctx context.Context) error {
	if err := k.p.gate(ctx); err != nil {
		return err
	}
	if k.p.s.outage.Load()&2 != 0 {
		return errOutage
	}
	return nil
}

func (k *simSink) Fence(ctx context.Context, l stream.Lease) (stream.Checkpoint, error) {
	if err := k.pass(ctx); err != nil {
		return stream.Checkpoint{}, err
	}
	h := k.p.s.history
	h.mu.Lock()
	defer h.mu.Unlock()
	checkpoint, err := k.inner.Fence(ctx, l)
	if err == nil {
		h.events = append(h.events, happened{what: "fence", job: l.Job, epoch: l.Epoch, to: checkpoint.Seq})
	}
	return checkpoint, err
}

func (k *simSink) Commit(ctx context.Context, c *stream.Commit) error {
	if err := k.pass(ctx); err != nil {
		return err
	}
	if err := k.commit(ctx, c); err != nil {
		return err
	}
	if !k.p.s.calm.Load() && k.p.s.chance(0.01) {
		k.p.s.totals.unknown.Add(1)
		return errOutage // it took effect, and the answer was lost
	}
	return nil
}

// commit records the commit in the history at the moment it takes effect.
func (k *simSink) commit(ctx context.Context, c *stream.Commit) error {
	h := k.p.s.history
	locked := false
	defer func() {
		if locked {
			h.mu.Unlock()
		}
	}()
	sink := k.p.s.store.Sink(func(ctx context.Context, b *stream.Batch) (func(), error) {
		if _, err := k.p.handle(ctx, b); err != nil {
			return nil, err
		}
		if err := k.pass(ctx); err != nil {
			return nil, err
		}
		h.mu.Lock() // until the commit has happened, or not
		locked = true
		return nil, nil
	})
	if len(c.Batch.Records) == 0 {
		h.mu.Lock()
		locked = true
	}
	err := sink.Commit(ctx, c)
	if err == nil {
		k.committed(c)
	}
	return err
}

// committed notes a commit. The history is locked.
func (k *simSink) committed(c *stream.Commit) {
	next, aside, err := c.Result()
	if err != nil {
		k.p.s.t.Error(err)
	}
	k.p.s.totals.commits.Add(1)
	e := happened{what: "commit", job: c.Lease.Job, epoch: c.Lease.Epoch, from: c.Prev.Seq + 1, to: next.Seq, aside: aside, digest: next.Digest, done: next.Done}
	if next.Seq == c.Prev.Seq {
		e.what = "move"
	}
	skipped := map[uint64]bool{}
	for _, row := range c.Batch.Skipped() {
		skipped[row.Seq] = true
	}
	for _, r := range c.Batch.Records {
		if !skipped[r.Seq] {
			e.seqs = append(e.seqs, r.Seq)
		}
	}
	if c.Batch.EffectsOutside() {
		bad := map[uint64]bool{}
		for _, row := range aside {
			bad[row.Seq] = true
		}
		for seq := e.from; seq <= e.to; seq++ {
			if !bad[seq] {
				e.seqs = append(e.seqs, seq)
			}
		}
	}
	k.p.s.history.events = append(k.p.s.history.events, e)
}
